"""Worker processes, and the work of each in the order it was given."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TypeVar

from olmoe_parrots.errors import InputError
from olmoe_parrots.processes import end_with_parent

Key = TypeVar("Key")
Job = TypeVar("Job")
Result = TypeVar("Result")


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of processes that end at once, without a traceback, when interrupted or when their parent ends.

    They are forked from a fresh process that has imported dolma, which takes ten seconds, once for all of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.preloaded"])
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def end_all() -> None:
    """Kill the worker processes and the one they are forked from, so that none of them is left to complain."""
    for process in multiprocessing.active_children():
        process.kill()
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # type: ignore[attr-defined]
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


class Workers:
    """`processes` worker processes, started when first needed; with one, the work is done in this process."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def start(self) -> None:
        """Begin to start the processes, so that they are there when the first job is."""
        if self._pool is None and self._processes > 1:
            self._pool = worker_pool(self._processes)
            # Not in the main thread: interrupted there, it would leave a process behind that finds its parent gone.
            starter = ThreadPoolExecutor(1)
            self._starting = starter.submit(self._start_all)
            starter.shutdown(wait=False)

    def _start_all(self) -> None:
        assert self._pool is not None
        for _ in range(self._processes):
            self._pool.submit(os.getpid)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._starting.exception()  # waits; what it raised, map did too, or the work never got there
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, work: Callable[[Job], Result], jobs: Iterable[tuple[Key, Job]]
    ) -> Generator[tuple[Key, Result], None, None]:
        """Each key with its job's result, in the order of the jobs, which are taken only as far ahead as workers are
        free. Closing the generator early waits for the jobs in flight.

        Raises what `work` raises, and InputError if a worker process is killed.
        """
        if self._processes == 1:
            for key, job in jobs:
                yield key, work(job)
            return
        self.start()
        assert self._pool is not None
        try:
            self._starting.result()
        except (EOFError, ConnectionError, BrokenProcessPool):  # the process they are forked from is gone
            raise _killed() from None
        waiting: deque[tuple[Key, Future[Result]]] = deque()
        try:
            for key, job in jobs:
                waiting.append((key, self._pool.submit(work, job)))
                if len(waiting) > self._processes:
                    yield _finish(waiting)
            while waiting:
                yield _finish(waiting)
        finally:
            for _, future in waiting:
                future.cancel()
            for _, future in waiting:  # nothing may still be writing when the caller clears up
                if not future.cancelled():
                    future.exception()


def _finish(waiting: deque[tuple[Key, Future[Result]]]) -> tuple[Key, Result]:
    key, future = waiting.popleft()
    try:
        return key, future.result()
    except BrokenProcessPool:
        raise _killed() from None


def _killed() -> InputError:
    what = "one was killed, perhaps for want of memory"
    return InputError("worker processes", what, "run again with fewer --processes; it goes on where it was")
