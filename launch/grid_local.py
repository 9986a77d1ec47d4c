"""Runs a grid on this machine, one run after another or several at a time, each with a process for each of its GPUs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from launch.child import run_rank
from launch.config_grid import ConfigGrid, GridJob
from launch.processes import LOG, Lock, interrupted, last_lines, note
from launch.run_state import is_done
from olmoe_parrots.errors import InputError
from olmoe_parrots.stopping import REQUEUE

_POLL = 0.2
_LAGGING = 120.0
"""Seconds that the other processes of a run have after the first of them has ended."""


@dataclass
class _Running:
    job: GridJob
    processes: list[BaseProcess]
    started: float = field(default_factory=time.time)
    first_end: float | None = None

    def has_ended(self) -> bool:
        """Whether all processes have; those that lag behind the first for too long are killed."""
        ended = [one.exitcode is not None for one in self.processes]
        if any(ended) and self.first_end is None:
            self.first_end = time.monotonic()
        if self.first_end is not None and time.monotonic() - self.first_end > _LAGGING:
            self.send(signal.SIGKILL)
        return all(ended)

    def send(self, number: int) -> None:
        for one in self.processes:
            if one.exitcode is None and one.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, number)

    def code(self) -> int:
        """0 when all ended so, else the first other code; a signal as the shell tells it, 128 and more."""
        codes = [one.exitcode or 0 for one in self.processes]
        code = next((code for code in codes if code not in (0, REQUEUE)), max(codes))
        return 128 - code if code < 0 else code


def run_grid(grid: ConfigGrid, at_once: int, accept_changes: bool = False) -> int:
    """Run what is not finished; returns 0, or 1 if a run failed.

    Args:
        at_once: runs at a time.
        accept_changes: go on with runs whose config decides otherwise than the one that they began with.

    Raises InputError before anything starts, or KeyboardInterrupt on a signal: all runs have saved and stopped then.
    """
    for job in grid.jobs:
        if job.nodes > 1:
            raise InputError(job.name, f"it asks for {job.nodes} nodes", "use python -m launch slurm, or ask for one")
        job.check()
        if not accept_changes:
            job.refuse_changes()
    lock, running = Lock(grid.output), list[_Running]()
    failed: list[str] = []
    with interrupted():
        try:
            wanted = [job for job in grid.jobs if not is_done(job)]
            print(f"{len(grid.jobs) - len(wanted)} of {len(grid.jobs)} runs are finished", flush=True)
            while wanted or running:
                while wanted and len(running) < at_once:
                    running.append(_start(wanted.pop(0), lock))
                time.sleep(_POLL)
                for one in [one for one in running if one.has_ended()]:
                    running.remove(one)
                    if not _finish(one):
                        failed.append(one.job.name)
        finally:
            _stop(running)
            lock.release()
    print(f"runs are in {grid.output / 'runs'}; {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


def _start(job: GridJob, lock: Lock) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    job.write_config()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.preloaded"])
    arguments = [str(job.config_path), "--try_load_latest_save=true"]
    processes: list[BaseProcess] = []
    for environment in _environments(job.ranks):
        log = job.folder / LOG
        process = context.Process(target=run_rank, args=(arguments, environment, log, lock))
        process.start()
        processes.append(process)
    note(job.folder, {"pid": processes[0].pid})
    print(f"started {job.name}, {job.ranks} processes", flush=True)
    return _Running(job, processes)


def _environments(ranks: int) -> list[dict[str, str]]:
    """The variables that torchrun would set, for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    every = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    return [{name: str(value) for name, value in one.items()} for one in every]


def _finish(one: _Running) -> bool:
    """Note and tell how a run ended; returns whether it did not fail."""
    code, seconds = one.code(), round(time.time() - one.started, 1)
    note(one.job.folder, {"exit_code": code, "seconds": seconds})
    if code in (0, REQUEUE):
        print(f"{'finished' if code == 0 else 'stopped'} {one.job.name} after {seconds:.0f} s", flush=True)
        return True
    lines = last_lines(one.job.folder)
    print("\n  ".join([f"failed {one.job.name}, exit code {code}; its log ends:", *lines]), flush=True)
    return False


def _stop(running: list[_Running]) -> None:
    """Ask runs to save and stop, and wait for it; a further signal to this process ends them at once."""
    if not running:
        return
    try:
        print("asking all runs to save and stop; once more ends them at once", flush=True)
        for one in running:
            one.send(signal.SIGTERM)
        while any(not one.has_ended() for one in running):
            time.sleep(_POLL)
    except KeyboardInterrupt:
        for one in running:
            one.send(signal.SIGKILL)
    for one in running:
        for process in one.processes:
            process.join()
        _finish(one)
