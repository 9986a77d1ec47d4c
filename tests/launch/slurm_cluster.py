"""A real Slurm for tests, of one node or two, on the loopback: installed where that is possible, started and ended.

It runs without cgroups, so inside a container too, as root. Run as a program it starts a cluster and prints the
variable that Slurm's commands need, until it is interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.config_grid import GridJob


PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
PACKAGES = ("slurm-wlm", "munge")
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
MpiDefault=none
ReturnToService=2
KillWait=60
SlurmdParameters=config_overrides
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={processors} Gres=gpu:4 State=UNKNOWN\n"


class NoSlurmError(Exception):
    """Slurm is not here and cannot be installed, or does not start."""


def install() -> None:
    """Install Slurm by apt-get where it is missing. Raises NoSlurmError where that cannot be done."""
    if os.geteuid() != 0:
        raise NoSlurmError("its daemons need root")
    with open(Path(tempfile.gettempdir()) / "slurm-install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes one installs it, and the others wait
        if not all(shutil.which(program, path=SEARCHED) for program in PROGRAMS):
            _install_packages()


def _install_packages() -> None:
    if shutil.which("apt-get") is None:
        raise NoSlurmError("there is no apt-get to install it with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    patience = ["-o=DPkg::Lock::Timeout=120", "-o=Acquire::Retries=3", "-o=Acquire::http::Timeout=20"]
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        words = ["apt-get", "-qq", *patience, *command]
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            raise NoSlurmError(f"apt-get {command[0]} takes more than five minutes") from None
        # lists of before may do
        if done.returncode and command[0] == "install":
            raise NoSlurmError(f"apt-get cannot install it: {done.stderr[-500:]}")


@contextlib.contextmanager
def cluster_or_skip(nodes: int = 1) -> Iterator[dict[str, str]]:
    """:func:`running_cluster` for tests, which are skipped aloud where Slurm is not to be had."""
    import pytest

    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the names of sockets have to be short
    try:
        with running_cluster(folder / "s", nodes=nodes) as environment:
            yield environment
    except NoSlurmError as error:
        pytest.skip(f"SLURM IS NOT HERE AND CANNOT BE INSTALLED, so nothing was submitted to one: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(happens: Callable[[], object], what: str, seconds: float = 400, every: float = 0.1) -> None:
    """Wait for something; AssertionError with `what` where it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(every)


def hold(jobs: dict[str, GridJob], program: str, steps: int) -> dict[str, list[int]]:
    """Stop the processes of each run amid its steps, so that what befalls it does so there on any machine.

    Args:
        program: the module by which a process trains; shells, srun and torchrun, which name the run too, are none.
        steps: of the whole run.
    """
    from conftest import metrics_of

    held: dict[str, list[int]] = {}

    def is_all_held() -> bool:
        for name, job in jobs.items():
            path = job.folder / "metrics.jsonl"
            if name not in held and path.exists() and path.read_bytes().count(b"\n") >= 15:
                held[name] = _processes(program, job)
                for pid in held[name]:
                    os.kill(pid, signal.SIGSTOP)
        return len(held) == len(jobs)

    wait_until(is_all_held, "they train", every=0.02)
    for name, job in jobs.items():
        assert len(held[name]) == job.ranks and max(metrics_of(job.folder)) < steps
    return held


def _processes(program: str, job: GridJob) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if program.encode() in words[1:4] and str(job.config_path).encode() in words:
            found.append(int(entry.name))
    return found


@contextlib.contextmanager
def running_cluster(folder: Path, processors: int = 8, nodes: int = 1) -> Iterator[dict[str, str]]:
    """A cluster whose files are below `folder`; yields the environment in which Slurm's commands reach it.

    Args:
        folder: short, as sockets have to lie in it.
        processors: what a node is said to have, whatever it has.
        nodes: 1 or 2, all of them this machine.

    Raises NoSlurmError with the end of a log where it does not come up.
    """
    install()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munge's socket has to be within reach
    host = socket.gethostname().split(".")[0]
    # jobs meet on the first of their nodes by its name, so both have to resolve
    names = (host, "localhost")[:nodes]
    config = folder / "slurm.conf"
    lines = [NODE.format(name=name, port=_free_port(), processors=processors) for name in names]
    config.write_text(CONFIG.format(folder=folder, host=host, controller_port=_free_port()) + "".join(lines))
    # GPUs to ask for, of which there need be none
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": SEARCHED}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_start_munge(folder))
        slurmds = [["slurmd", "-D", "-N", name] for name in names]
        for number, (program, *options) in enumerate([["slurmctld", "-D"], *slurmds]):
            output = (folder / f"{program}{number}.out").open("wb")
            command = [_path(program), *options]
            daemons.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
            )
        _wait_for_node(folder, environment, daemons)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
        _wait_until_empty(environment)
    finally:
        for daemon in reversed(daemons):
            _end(daemon)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    options = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    files = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in options.items()]
    command = [_path("munged"), "--foreground", "--force", f"--key-file={key}", *files]
    output = (folder / "munged.out").open("wb")
    munge = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 30
    while not options["socket"].exists():
        if munge.poll() is not None or time.monotonic() > deadline:
            raise NoSlurmError(f"munged does not start: {(folder / 'munged.out').read_text()[-500:]}")
        time.sleep(0.05)
    return munge


def _wait_for_node(folder: Path, environment: dict[str, str], daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 90
    while True:
        told = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if told.stdout.split() and set(told.stdout.split()) == {"idle"}:
            return
        ended = [daemon for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.out")))
            raise NoSlurmError(f"it does not come up: {told.stdout} {told.stderr}\n{logs}")
        time.sleep(0.1)


def _wait_until_empty(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True).stdout.strip():
            return
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _path(program: str) -> str:
    found = shutil.which(program, path=SEARCHED)
    assert found is not None, program
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="slurm-") as place:
        try:
            with running_cluster(Path(place) / "s") as variables:
                print(f"export SLURM_CONF={variables['SLURM_CONF']}", flush=True)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.default_int_handler)
                signal.pause()
        except NoSlurmError as error:
            sys.exit(f"no Slurm: {error}")
        except KeyboardInterrupt:
            pass
