"""What a process holds after it freed a large block, as the kernel counts it."""

import subprocess
import sys

import pytest

# The block is larger than any that glibc keeps by itself.
HELD_AFTER_A_FREE = """
import os
import torch
from olmoe_parrots.allocator import keep_freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

changed = keep_freed_memory()
before = held()
torch.ones(50_000_000)
print(int(changed), held() - before)
"""


def _run(**environment: str) -> tuple[bool, int]:
    run = subprocess.run(
        [sys.executable, "-c", HELD_AFTER_A_FREE], env=environment, check=True, capture_output=True, text=True
    )
    changed, held = map(int, run.stdout.split())
    return bool(changed), held


def test_a_freed_block_is_kept() -> None:
    changed, held = _run()
    assert changed and held > 190_000_000


SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072",
    "LD_PRELOAD": "libpthread.so.0",  # as good as an allocator: nothing looks into the library
}


@pytest.mark.parametrize(("name", "value"), SETTINGS.items())
def test_the_users_settings_stay(name: str, value: str) -> None:
    changed, held = _run(**{name: value})
    assert not changed and held < 50_000_000
