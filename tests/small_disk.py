"""A training run whose save folder lies on a small disk of its own, which is filled up or closed while it trains.

The disk is a tmpfs in this process's own mount namespace. :func:`main` is for tests/train_server.py; what is left of
the run is copied from the disk to a folder that outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import threading
import time
from pathlib import Path

from olmoe_parrots.train import main as train

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000  # sched.h
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18  # mount.h
_LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = 20_000_000


def main(arguments: list[str]) -> int:
    """`arguments`: the disk's folder, what happens to it, a folder for the copy, and those of the training command."""
    disk, event, kept, *training = arguments
    _use_own_mounts()
    _mount("tmpfs", disk, "tmpfs", 0, f"size={SIZE}")
    run = Path(disk, "run")
    if event == "closed before":
        _close(disk)
    else:
        threading.Thread(target=_wait_and_fail, args=(run, event), daemon=True).start()
    try:
        return train([*training, f"--save_folder={run}"])
    finally:
        if run.exists():
            shutil.copytree(run, kept, symlinks=True)


def _wait_and_fail(run: Path, event: str) -> None:
    while not any(run.glob("step*[0-9]-unsharded")):
        time.sleep(0.02)
    if event == "closed":
        _close(str(run.parent))
        return
    spare = run.parent / "spare"  # what the metrics of the next steps need
    if event == "full for checkpoints":
        spare.write_bytes(bytes(300_000))
    with contextlib.suppress(OSError), (run.parent / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass
    spare.unlink(missing_ok=True)


def _close(disk: str) -> None:
    """As a server's administrator may: files that are open stay so, and nothing new can be written."""
    _mount(disk, disk, "", _BIND)
    _mount("", disk, "", _BIND | _REMOUNT | _READ_ONLY)


def _use_own_mounts() -> None:
    """As root, or as whoever may become root of a namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_NEW_MOUNTS) != 0:
        _check(_LIBC.unshare(_NEW_MOUNTS | _NEW_USERS))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _mount("", "/", "", _RECURSIVE | _PRIVATE)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_LIBC.mount(*words))


def _check(code: int) -> None:
    if code != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
