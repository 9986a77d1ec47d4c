"""Work shared out over CPU threads, each of which computes alone.

torch gives every operation all of its threads in turn. Small matrix products gain little from that: it pays to give
each thread products of its own.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Task = TypeVar("Task")


def share_out(work: Callable[[Task], None], tasks: Sequence[Task]) -> None:
    """Run ``work(task)`` for all tasks, in their order as threads become free, on as many threads as torch has.

    Inside, operations run on one thread each and nothing is recorded for autograd. Raises what `work` raises.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    # both modes are a thread's own, and what was made in the former may not be changed outside of it
    unrecorded = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    if threads < 2:
        with unrecorded():
            for task in tasks:
                work(task)
        return
    queue = iter(tasks)
    lock = threading.Lock()

    def take() -> None:
        with unrecorded():
            while True:
                with lock:
                    task = next(queue, None)
                if task is None:
                    return
                work(task)

    pool = _pool(os.getpid(), torch.get_num_threads())
    running: list[Future[None]] = [pool.submit(take) for _ in range(threads)]
    for future in running:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads on each of which torch runs an operation alone. By process, since threads do not survive a fork."""
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # else the first operation here would set this thread to the number of all others
        torch.set_num_threads(1)  # of this thread, and of threads that have yet to begin: put right below
        started.wait()

    pool = ThreadPoolExecutor(threads, "experts", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)
    return pool
