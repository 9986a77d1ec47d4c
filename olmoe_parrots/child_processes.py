"""What processes that this project forks have in common."""

import multiprocessing
import os
import threading
from multiprocessing import connection


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
