"""`python -m launch.torchrun_node CODES -- ARGUMENTS`: one node's torchrun, for a batch system that warns and preempts.

torchrun dies of SIGUSR1, leaves its processes 30 seconds after SIGTERM, and ends with 1 whatever they end with. So both
signals are kept from it and passed on to the training processes, and the exit code is made of what each rank has
written into the folder CODES, which all nodes share: 75 when a run was asked to stop and has saved, 2 for bad input.
ARGUMENTS are torchrun's own, then those of training.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.run_state import ASKED
from launch.torchrun_rank import CODES, PASSED_ON, read_codes
from olmoe_parrots.errors import InputError, report_and_exit
from olmoe_parrots.stopping import REQUEUE

_SAME_REQUEST = 2.0
"""Seconds in which signals are one request, as in olmoe_parrots.stopping."""


def outcome(torchrun: int, codes: Mapping[int, int], ranks: int, second: int | None) -> int:
    """A run's exit code.

    Args:
        torchrun: torchrun's own.
        codes: what the ranks have noted; one that was killed has not.
        ranks: how many there are.
        second: the signal that came when the run was asked to stop already, and ended it at once.
    """
    noted = set(codes.values())
    if torchrun == 0:
        return 0
    if 2 in noted:
        return 2
    if failed := noted - {0, *ASKED}:
        return max(failed)
    if len(codes) < ranks:
        return 1 if second is None else 128 + second
    return REQUEUE if REQUEUE in noted else max(noted - {0}, default=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run torchrun; returns the run's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) < 3 or given[1] != "--":
        raise InputError("arguments", "they read CODES -- ARGUMENTS OF TORCHRUN", "see the job script's template")
    folder, command = Path(given[0]), [sys.executable, "-m", "torch.distributed.run", *given[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    waited_for = {*PASSED_ON, signal.SIGCHLD}
    # torchrun inherits the mask, and so do its processes until they lift it
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    process = subprocess.Popen(command, env={**os.environ, CODES: str(folder)})
    asked_at, second = None, None
    while process.poll() is None:
        number = signal.sigwait(waited_for)
        if number in PASSED_ON:
            _pass_on(number, process.pid)
            if asked_at is None:
                asked_at = time.monotonic()
            elif time.monotonic() - asked_at > _SAME_REQUEST:
                second = number
    return outcome(process.returncode, read_codes(folder), _ranks(command), second)


def _pass_on(number: int, torchrun: int) -> None:
    """Send a signal to the processes that torchrun has started; Slurm may have sent it to them too."""
    for pid in _children(torchrun):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # after the name in brackets, which may hold anything: state, then the parent (proc(5))
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def _ranks(command: Sequence[str]) -> int:
    told = dict(word.split("=", 1) for word in command if word.startswith(("--nnodes=", "--nproc_per_node=")))
    return int(told.get("--nnodes", 1)) * int(told.get("--nproc_per_node", 1))


if __name__ == "__main__":
    report_and_exit(main)
