"""Runs as processes of this machine: started, watched, stopped, and what their folders say of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from launch.child import run
from launch.jobs import Job
from olmoe_parrots.checkpoint import checkpoints_in, latest_checkpoint
from olmoe_parrots.errors import InputError

LOG, STATE = "log.txt", "process.json"
_SETTLING = 10.0
"""Seconds in which the processes of a killed launcher are gone, and those that are asked to stop have stopped."""


class Lock:
    """The right to start runs of a sweep: held by one launcher and by every run that it started."""

    def __init__(self, output: Path) -> None:
        """Take it. Raises InputError where another launcher, or a run that outlived one, has it."""
        output.mkdir(parents=True, exist_ok=True)
        self.file = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + _SETTLING
        while not _try_lock(self.file):
            if time.monotonic() > deadline:
                os.close(self.file)
                remedy = "wait for it, or end it; see `python -m launch status`"
                raise InputError(output, "another launcher, or a run of one, is at work there", remedy)
            time.sleep(0.1)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a run's argument: its process holds the same lock, until it ends."""
        return _descriptor, (reduction.DupFd(self.file),)

    def release(self) -> None:
        os.close(self.file)


def _descriptor(duplicate: Any) -> int:
    return duplicate.detach()


def is_locked(output: Path) -> bool:
    """Whether a launcher or a run is at work in a sweep's folder."""
    try:
        file = os.open(output / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(file)
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class Running:
    """A run that was started."""

    job: Job
    process: BaseProcess
    started: float
    """In seconds since 1970."""

    def stop(self, number: int) -> None:
        """Send a signal to the run and whatever it has started."""
        pid = self.process.pid or 0
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(pid, number)

    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    def finish(self) -> int:
        """Note how the run, which has ended, did so; returns its exit code, negative for a signal."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        seconds = round(time.time() - self.started, 1)
        note(self.job.folder, {"exit_code": code, "seconds": seconds})
        return code


def start(job: Job, lock: Lock) -> Running:
    """Start a run, from its last whole checkpoint where it has one, in a process group of its own.

    One core each. What it prints is appended to its folder's log. It is forked from a process that has imported all
    that training needs, once for all runs: that takes longer than a small model's first thousand steps.
    """
    _prepare_folder(job.folder)
    job.write_config()
    training = [str(job.config_path), "--try_load_latest_save=true"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.preloaded"])
    os.environ["OMP_NUM_THREADS"] = "1"
    process = context.Process(target=run, args=(training, job.data_command()[3:], job.folder / LOG, lock))
    process.start()
    note(job.folder, {"pid": process.pid})
    return Running(job, process, time.time())


def _prepare_folder(folder: Path) -> None:
    """Make the folder; one whose checkpoints are all half-written is emptied but for its log."""
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob("step*-tmp"):
        shutil.rmtree(partial, ignore_errors=True)
    if latest_checkpoint(folder) is None:
        for checkpoint in checkpoints_in(folder):
            shutil.rmtree(checkpoint.path)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt while this is entered."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished run needs no more: its checkpoints and the order of its data."""
    for checkpoint in checkpoints_in(folder):
        shutil.rmtree(checkpoint.path, ignore_errors=True)
    for name in ("latest", "latest-unsharded"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "train_data", ignore_errors=True)


def stop_all(running: list[Running]) -> None:
    """End runs, kindly at first; returns when all are gone."""
    for one in running:
        one.stop(signal.SIGTERM)
    deadline = time.monotonic() + _SETTLING
    for one in running:
        one.process.join(max(0.0, deadline - time.monotonic()))
        if not one.has_ended():
            one.stop(signal.SIGKILL)
        one.finish()


def last_state(folder: Path) -> dict[str, Any]:
    """What was last noted of a run's process: `pid` while it runs, `exit_code` and `seconds` after; {} for none."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def note(folder: Path, state: dict[str, Any]) -> None:
    """Write what :func:`last_state` reads, as a whole or not at all."""
    scratch = folder / f".{STATE}"
    scratch.write_text(json.dumps(state) + "\n", encoding="utf-8")
    os.replace(scratch, folder / STATE)


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """The last lines of a run's log that say something."""
    try:
        text = (folder / LOG).read_bytes()[-20_000:].decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]
