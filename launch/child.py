"""One run's process: makes the data set where it is missing, then trains.

`python -m launch.child PARENT CONFIG [--key=value ...] -- SYNTHETIC ARGUMENTS`. It ends with the process PARENT that
started it, also when that was killed and could not say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from olmoe_parrots.errors import report_and_exit

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (Linux; elsewhere a killed launcher leaves it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)


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


def main() -> int:
    """Run both commands; the second one leaves the process with its own exit code."""
    split = sys.argv.index("--")
    parent, training, data = int(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :]
    end_with_parent(parent)
    if code := make_data([*data, "--processes=1"]):
        return code
    sys.argv = ["train", *training]
    runpy.run_module("olmoe_parrots.train", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
