"""Training commands forked from one process that has imported what they need: each starts at once, not in 15 seconds.

Run as a program it is that process: each line of its standard input asks for one rank of a run. Elsewhere
:func:`start_run` has it started, and gives back what stands for the run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


class Run:
    """A run in progress, one process a rank; what of subprocess.Popen the tests use."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        _wait_for(lambda: all(self._told(rank, "pid") for rank in range(ranks)), 120)
        self.pids = [int(self._told(rank, "pid")) for rank in range(ranks)]

    def _told(self, rank: int, what: str) -> str:
        path = self.folder / f"{rank}.{what}"
        return path.read_text() if path.exists() else ""

    def _has_failed(self) -> bool:
        return any(self._told(rank, "code") not in ("", "0") for rank in range(self.ranks))

    def output_of(self, rank: int, timeout: float = 600) -> str:
        """What one rank printed, when it has ended, whatever the others do."""
        _wait_for(lambda: self._told(rank, "code"), timeout)
        return (self.folder / f"{rank}.txt").read_text()

    @property
    def returncode(self) -> int | None:
        """0 when every rank ended so, else the first other code; None while one is at work."""
        codes = [self._told(rank, "code") for rank in range(self.ranks)]
        return next((int(code) for code in codes if code != "0"), 0) if all(codes) else None

    def send_signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def kill(self) -> None:
        """End every rank that has not ended."""
        for rank, pid in enumerate(self.pids):
            if not self._told(rank, "code"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """What the ranks printed, one after the other, when all have ended.

        As torchrun does, it ends those that are left when one has failed; those that fail with it have ten seconds.
        """
        _wait_for(lambda: self.returncode is not None or self._has_failed(), timeout)
        with contextlib.suppress(AssertionError):
            _wait_for(lambda: self.returncode is not None, 10)
        self.kill()
        _wait_for(lambda: self.returncode is not None, 10)
        return "".join((self.folder / f"{rank}.txt").read_text() for rank in range(self.ranks)), None


def start_run(
    arguments: list[str], ranks: int, environment: dict[str, str], port: int, module: str = "olmoe_parrots.train"
) -> Run:
    """Start `python -m MODULE ARGUMENTS`, with the variables that torchrun sets for several ranks."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    for rank in range(ranks):
        several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        several |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = environment | ({name: str(value) for name, value in several.items()} if ranks > 1 else {})
        request = {"module": module, "arguments": arguments, "environment": variables}
        request |= {"folder": str(folder), "rank": rank}
        stdin = _server().stdin
        assert stdin is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
    return Run(folder, ranks)


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, __file__], cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, text=True
    )


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the run is still at work"
        time.sleep(0.02)


def _serve() -> None:
    from olmoe_parrots import train

    train.preload()
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request["folder"]) / str(request["rank"])
        if (pid := os.fork()) == 0:
            _run(request, path)
        threading.Thread(target=_tell_end, args=(pid, path), daemon=True).start()
        _write(path.with_suffix(".pid"), pid)


def _run(request: dict[str, Any], path: Path) -> None:
    from olmoe_parrots.errors import report_and_exit

    os.environ.clear()
    os.environ.update(request["environment"])
    with path.with_suffix(".txt").open("w") as printed, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    sys.argv = [request["module"], *request["arguments"]]
    report_and_exit(lambda: importlib.import_module(request["module"]).main(request["arguments"]))


def _tell_end(pid: int, path: Path) -> None:
    _write(path.with_suffix(".code"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _write(path: Path, value: int) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(str(value))
    os.replace(scratch, path)


if __name__ == "__main__":
    _serve()
