"""What processes of this project have in common: folders that one of them holds, and an end with their parent's."""

import contextlib
import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path

from .errors import InputError


@contextlib.contextmanager
def held_folder(folder: Path, output: Path, option: str = "--output") -> Iterator[int]:
    """Make a folder where it is missing and hold it against other runs; yields its descriptor.

    Args:
        output: what the user calls it, for messages.
        option: that names it.

    Raises InputError where it cannot be made or another run holds it. The kernel lets go of it when this process ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(folder, f"it cannot be made ({error.strerror})", f"choose another {option}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                output, "another run is writing there", f"wait for it or choose another {option}"
            ) from None
        yield lock
    finally:
        os.close(lock)


def end_with_parent() -> None:
    """Have this process end at once when the one that it works for does, also when that one is killed.

    For processes of :mod:`multiprocessing`. Those of a fork server outlive it, so the kernel can't see to it.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
