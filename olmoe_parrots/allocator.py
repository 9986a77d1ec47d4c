"""The C library's allocator, for work on the CPU that takes and frees the same large blocks again and again."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3), M_*
_LARGEST_KEPT = 1 << 30
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to 1 GiB for what is allocated next; False where nothing was changed.

    It gives blocks above 32 MiB back to the kernel at once, which clears every page of the next one: with a batch's
    logits that takes a third of an evaluation's time (docs/performance.md). What the user chose by environment
    variables, or another allocator, stays.
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in _USERS_OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
