"""One run's process: makes the data set where it is missing, then trains."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from olmoe_parrots.errors import report_and_exit
from olmoe_parrots.processes import end_with_parent


def run(training: list[str], data: list[str], log: Path, lock: object) -> None:
    """Run both commands in this process, which then ends with the exit code of the last.

    Args:
        training: arguments of `python -m olmoe_parrots.train`.
        data: arguments of `python -m olmoe_parrots.synthetic`.
        log: the file that what they print is appended to.
        lock: held for as long as this process lives.
    """
    _set_up(log)
    report_and_exit(lambda: make_data([*data, "--processes=1"]) or _train(training))


def run_rank(training: list[str], environment: dict[str, str], log: Path, lock: object) -> None:
    """Run one rank of a training run in this process, which then ends with its exit code.

    Args:
        training: arguments of `python -m olmoe_parrots.train`.
        environment: the variables that torchrun would set.
        log, lock: as for :func:`run`.
    """
    os.environ.update(environment)
    _set_up(log)
    report_and_exit(lambda: _train(training))


def _set_up(log: Path) -> None:
    os.setsid()
    end_with_parent()
    _print_to(log)
    # tqdm's usual lock, shared between processes, is told of as a leak when this one is killed
    tqdm.set_lock(threading.RLock())


def _train(arguments: list[str]) -> int:
    from olmoe_parrots import train

    sys.argv = ["train", *arguments]  # what the run's provenance names
    return train.main(arguments)


def _print_to(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for the lock file at `path`, which the kernel frees when its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_data(arguments: list[str]) -> int:
    """Make the data set of `python -m olmoe_parrots.synthetic ARGUMENTS`, one run at a time for each folder."""
    from olmoe_parrots.synthetic.__main__ import main

    output = Path(arguments[arguments.index("--output") + 1])
    with held(output.parent / "locks" / output.name):
        return main(arguments)
