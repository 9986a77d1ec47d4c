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


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_settings_stay(name: str) -> None:
    value = "131072" if name.startswith("MALLOC") else "glibc.malloc.mmap_threshold=131072"
    changed, held = _run(**{name: value})
    assert not changed and held < 50_000_000
