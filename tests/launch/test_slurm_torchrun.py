"""`slurm: {launcher: torchrun}`: the job script, the exit code of a run under torchrun, and both on a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port, metrics_of, start_train
from grid_maker import make_grid, write_config, write_grid
from slurm_cluster import cluster_or_skip, hold, wait_until

from launch import slurm
from launch.__main__ import main
from launch.config_grid_file import load_grid
from launch.processes import last_state
from launch.run_state import is_done
from launch.torchrun_node import outcome
from olmoe_parrots.errors import InputError

STEPS = 60


def test_the_script_starts_one_torchrun_a_node(tmp_path: Path, shards: Path) -> None:
    write_config(tmp_path / "configs" / "a.yaml", shards)
    settings = {"launcher": "torchrun", "cpus_per_task": 8, "container": "apptainer exec p.sif", "srun": ["--mpi=none"]}
    entry = {"configs": [f"{tmp_path}/configs/*.yaml"], "nodes": 2, "gpus_per_node": 4, "slurm": settings}
    grid = make_grid(tmp_path, [entry])
    text = slurm.script(grid, list(grid.jobs), {"a": 0})
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"nodes=2", "ntasks-per-node=1", "gres=gpu:4", "cpus-per-task=32", "requeue", "signal=USR1@300"} <= asked
    assert '-m launch.torchrun_node "$codes" -- \\\n  --nnodes=2 --nproc_per_node=4 \\\n' in text
    assert '--rdzv_backend=c10d --rdzv_endpoint="$rendezvous" --rdzv_id="$SLURM_JOB_ID"' in text
    assert "apptainer exec p.sif python -m" in text and "--mpi=none" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    ends = [script[script.index("case $code in") :] for script in (text, _script_of_srun(tmp_path, entry))]
    assert ends[0] == ends[1], "what ends a job is treated alike"
    with pytest.raises(InputError, match="launcher: 'mpirun' cannot be used"):
        make_grid(tmp_path, [{**entry, "slurm": {"launcher": "mpirun"}}])


def _script_of_srun(folder: Path, entry: dict) -> str:  # type: ignore[type-arg]
    grid = make_grid(folder, [{**entry, "slurm": {}}])
    return slurm.script(grid, list(grid.jobs), {"a": 0})


@pytest.mark.parametrize(
    ("torchrun", "codes", "second", "code"),
    [
        (0, [0, 0], None, 0),
        (1, [75, 75], None, 75),
        (1, [75, 143], None, 75),
        (1, [138, 143], None, 143),
        (1, [2, 143], None, 2),
        (1, [1, 143], None, 1),
        (1, [75, 3], None, 3),
        (1, [143], None, 1),  # a rank was killed, and torchrun ended the other
        (1, [143], signal.SIGTERM, 143),  # a second signal ended it at once
        (1, [], None, 1),
    ],
)
def test_the_exit_code_is_made_of_what_the_ranks_note(
    torchrun: int, codes: list[int], second: int | None, code: int
) -> None:
    assert outcome(torchrun, dict(enumerate(codes)), 2, second) == code


def _losses(folder: Path) -> dict[int, float]:
    return {step: row["train/CrossEntropyLoss"] for step, row in metrics_of(folder).items()}


def _config(folder: Path, shards: Path) -> Path:
    return write_config(folder / "tiny.yaml", shards, max_duration=STEPS, save_interval=10, console_log_interval=1)


def _steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.cluster
def test_a_signal_to_the_node_alone_saves_and_asks_for_a_requeue(tmp_path: Path, shards: Path) -> None:
    """Where Slurm does not reach the processes of torchrun: two nodes here, each told once."""
    config, folder = _config(tmp_path, shards), tmp_path / "run"

    def start() -> list[subprocess.Popen[str]]:
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        command = [sys.executable, "-m", "launch.torchrun_node", str(tmp_path / "codes"), "--", "--nnodes=2"]
        command += ["--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
        command += ["-m", "launch.torchrun_rank", str(config), f"--save_folder={folder}", "--try_load_latest_save=true"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OLMO_SHARED_FS": "1"}
        nodes = []
        for is_host in (1, 0):
            environment = {**environment, "PET_RDZV_CONF": f"is_host={is_host}"}
            nodes.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        return nodes

    nodes = start()
    wait_until(lambda: _steps(folder) >= 15 or any(node.poll() is not None for node in nodes), "it trains", 240, 0.02)
    for node in nodes:
        node.send_signal(signal.SIGUSR1)
    told = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [75, 75], told
    assert max(metrics_of(folder)) < STEPS and "stopped at step" in "".join(told)
    nodes = start()
    assert [node.communicate(timeout=300) and node.returncode for node in nodes] == [0, 0]
    undisturbed = start_train(config, f"--save_folder={tmp_path / 'undisturbed'}", ranks=2)
    output, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, output
    assert _losses(folder) == _losses(tmp_path / "undisturbed") and max(_losses(folder)) == STEPS


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a Slurm of two nodes."""
    with cluster_or_skip(nodes=2) as environment:
        yield environment


@pytest.mark.cluster
def test_runs_under_torchrun_end_as_undisturbed_ones(
    tmp_path: Path,
    shards: Path,
    cluster: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One on two nodes that is warned before its limit, one that is preempted, one with a rank that is killed."""
    monkeypatch.chdir(REPOSITORY)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster[name])
    config = _config(tmp_path, shards)
    settings = {"time": "20", "launcher": "torchrun", "environment": {"OMP_NUM_THREADS": "1"}}
    shared = {"configs": [str(config)], "gpus_per_node": 0}
    entries = [
        {**shared, "nodes": 2, "variants": {"warned": {}}},
        {**shared, "gpus_per_node": 2, "variants": {"preempted": {"model.n_layers": 1}}},
        {**shared, "gpus_per_node": 2, "variants": {"killed": {"model.moe_top_k": 1}}},
    ]
    path = write_grid(tmp_path, entries, slurm=settings)
    jobs = {job.name.removeprefix("tiny_"): job for job in load_grid(path).jobs}
    assert main(["slurm", str(path)]) == 0
    held = hold(jobs, "launch.torchrun_rank", STEPS)
    # the signal that --signal=USR1@SECONDS has Slurm send, to every process of the job's steps
    number = last_state(jobs["warned"].folder)["job"]
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    subprocess.run(["scontrol", "requeue", last_state(jobs["preempted"].folder)["job"]], check=True)
    os.kill(held["killed"][1], signal.SIGKILL)
    for pid in [*held["warned"], *held["preempted"], held["killed"][0]]:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: all(is_done(job) for job in jobs.values()), "all finish", 400)
    assert {name: last_state(job.folder)["restarts"] for name, job in jobs.items()} == dict.fromkeys(jobs, 1)
    for name in ("warned", "preempted"):
        assert "stopped at step" in (jobs[name].folder / "log.txt").read_text()
        steps = [json.loads(line)["step"] for line in (jobs[name].folder / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == len(set(steps)), "it stopped well: no step was trained twice"
    for name, job in jobs.items():
        run = start_train(job.config_path, f"--save_folder={tmp_path / name}", ranks=job.ranks)
        output, _ = run.communicate()
        assert run.returncode == 0, output
        assert _losses(job.folder) == _losses(tmp_path / name) and max(_losses(job.folder)) == STEPS
    main(["slurm", str(path)])
    assert "3 of 3 runs are finished, 0 are in the queue" in capsys.readouterr().out
