"""One training process under torchrun: its exit code goes into a file, since torchrun keeps none but 0 and 1.

`launch.torchrun_node` starts torchrun with the signals of a stop blocked; here they are let in again, those that came
in between too. Until training notes them itself, and after it, they end the process as they would without torchrun.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from olmoe_parrots.errors import report_and_exit
from olmoe_parrots.stopping import REQUEUE

CODES = "PARROTS_RANK_CODES"
"""Variable with the folder of exit codes: a file for each rank, named after it."""
PASSED_ON = (signal.SIGUSR1, signal.SIGTERM)
_LONGEST_WAIT = 600.0
"""Seconds in which the other ranks of a run that was asked to stop have ended: the last may be copying a checkpoint."""


def note_code(code: int) -> None:
    """Write this rank's exit code, whole or not at all."""
    path = Path(os.environ[CODES]) / os.environ["RANK"]
    beside = path.with_name(f".{path.name}")
    beside.write_text(str(code), encoding="ascii")
    os.replace(beside, path)


def read_codes(folder: Path) -> dict[int, int]:
    """The exit codes that are noted so far, by rank."""
    return {int(path.name): int(path.read_text(encoding="ascii")) for path in folder.glob("[0-9]*")}


def _leave(number: int, _: object) -> None:
    note_code(128 + number)
    os._exit(128 + number)


def main() -> NoReturn:
    """Train as `python -m olmoe_parrots.train` with the same arguments."""
    for number in PASSED_ON:
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*PASSED_ON, signal.SIGCHLD))
    code = 1
    try:
        report_and_exit(_train)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    note_code(code)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    if code == REQUEUE:
        _wait_for_others()
    sys.exit(code)


def _train() -> int:
    from olmoe_parrots import train

    sys.argv[0] = "train"  # what the run's provenance names
    return train.main(sys.argv[1:])


def _wait_for_others() -> None:
    """torchrun ends all ranks of a node as soon as one ends with another code than 0."""
    deadline = time.monotonic() + _LONGEST_WAIT
    while len(read_codes(Path(os.environ[CODES]))) < int(os.environ["WORLD_SIZE"]) and time.monotonic() < deadline:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
