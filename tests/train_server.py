"""Training commands forked from one process that has imported what they need: each starts at once, not in 15 seconds.

Run as a program it is that process: each line that comes over its socket asks for one rank of a run. Elsewhere
:func:`start_run` has it started, once for all processes of a test run, and gives back what stands for the run.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


class Run:
    """A run in progress, one process a rank; what of subprocess.Popen the tests use."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        _wait_for(lambda: all(self._told(rank, "pid") for rank in range(ranks)), 300)
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

    def wait(self, timeout: float = 3600) -> int:
        """The code that it ends with."""
        _wait_for(lambda: self.returncode is not None, timeout)
        return self.returncode or 0

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
    arguments: list[str],
    ranks: int,
    environment: dict[str, str],
    port: int,
    module: str = "olmoe_parrots.train",
    **options: Any,
) -> Run:
    """Start `python -m MODULE ARGUMENTS`, with the variables that torchrun sets for several ranks.

    Options: files to write to instead of the run's own, ``output`` and ``errors``; a ``folder`` to run in; the
    ``executable`` that stands for Python, for what the module starts in turn.
    """
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    for rank in range(ranks):
        several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        several |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = environment | ({name: str(value) for name, value in several.items()} if ranks > 1 else {})
        request = {"module": module, "arguments": arguments, "environment": variables}
        request |= {"place": str(folder / str(rank)), **options}
        _server().sendall(json.dumps(request).encode() + b"\n")
    return Run(folder, ranks)


@functools.cache
def _server() -> socket.socket:
    """A connection to the server, which is one for all processes of a test run, and ends with the last of them."""
    name = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}-{time.time_ns()}")
    folder = os.environ.get("TRAIN_SERVER", f"{tempfile.gettempdir()}/train-server-{name}")
    return connect(Path(folder), REPOSITORY)


def connect(folder: Path, repository: Path) -> socket.socket:
    """A connection to the server whose socket is in `folder`; where there is none, it is started in `repository`."""
    folder.mkdir(mode=0o700, exist_ok=True)
    connection, path = socket.socket(socket.AF_UNIX), folder / "socket"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
            command = [sys.executable, str(repository / "tests" / "train_server.py"), str(path)]
            subprocess.Popen(command, cwd=repository, env=environment, stdin=subprocess.DEVNULL)
            _wait_for(path.exists, 120)
        connection.connect(str(path))
    return connection


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the run is still at work"
        time.sleep(0.02)


def _serve(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # there once it can be connected to
    from olmoe_parrots import train

    train.preload()
    begun: dict[socket.socket, bytes] = {}  # what has come of each connection's next request
    while True:
        ready, _, _ = select.select([listener, *begun], [], [], None if begun else 1)
        if not ready and _has_ended(path, listener):
            return
        for one in ready:
            if one is listener:
                begun[listener.accept()[0]] = b""
            elif received := one.recv(1 << 16):
                *requests, begun[one] = (begun[one] + received).split(b"\n")
                for request in requests:
                    _start(json.loads(request), [listener, *begun])
            else:
                one.close()
                del begun[one]


def _has_ended(path: Path, listener: socket.socket) -> bool:
    """Whether nobody is left to ask for runs; the next process that does so starts a server of its own."""
    with path.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if select.select([listener], [], [], 0)[0]:
            return False
        path.unlink()
        return True


def _start(request: dict[str, Any], sockets: list[socket.socket]) -> None:
    place = Path(request["place"])
    if (pid := os.fork()) == 0:
        for one in sockets:
            one.close()
        _end(lambda: _run(**request))
    threading.Thread(target=_tell_end, args=(pid, place), daemon=True).start()
    _write(place.with_suffix(".pid"), pid)


def _run(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    place: str,
    output: str | None = None,
    errors: str | None = None,
    folder: str | None = None,
    executable: str | None = None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or REPOSITORY)
    output = output or f"{place}.txt"
    with open(output, "a") as printed, open(errors or output, "a") as told, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(told.fileno(), 2)
    sys.argv = [module, *arguments]
    if executable is None:
        from olmoe_parrots.errors import report_and_exit

        report_and_exit(lambda: importlib.import_module(module).main(arguments))
    sys.executable = executable
    sys.modules.pop(module, None)  # it is run, whatever was imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


def _end(run: Callable[[], None]) -> None:
    """Run, and end as Python does, but for taking apart every module, which takes this process three seconds."""
    code: Any = 0
    try:
        run()
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _tell_end(pid: int, path: Path) -> None:
    _write(path.with_suffix(".code"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _write(path: Path, value: int) -> None:
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(str(value))
    os.replace(scratch, path)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
