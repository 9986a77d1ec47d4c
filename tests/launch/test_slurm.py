"""`python -m launch slurm` on a real Slurm: four tiny models all finish, whatever befalls their jobs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, metrics_of, start_train
from grid_maker import make_grid, write_config, write_grid
from slurm_cluster import cluster_or_skip, hold, wait_until

from launch import slurm
from launch.__main__ import main
from launch.config_grid_file import load_grid
from launch.processes import last_state
from launch.run_state import is_done

pytestmark = pytest.mark.slow
STEPS = 100
MODELS = {
    "whole": {"model.d_model": 16},
    "killed": {"model.moe_num_experts": 8},
    "preempted": {"model.n_layers": 1},
    "limited": {"model.moe_top_k": 1},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a Slurm of one node."""
    with cluster_or_skip() as environment:
        yield environment


@pytest.fixture(autouse=True)
def _user(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster[name])


def _slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _sweep(folder: Path, shards: Path) -> Path:
    config = write_config(folder / "tiny.yaml", shards, max_duration=STEPS, save_interval=10, console_log_interval=1)
    entries = [
        {"configs": [str(config)], "gpus_per_node": gpus, "variants": {name: MODELS[name] for name in names}}
        for gpus, names in ((0, ("whole", "killed", "limited")), (2, ("preempted",)))
    ]
    settings = {"time": "20", "warning_seconds": 60, "environment": {"OMP_NUM_THREADS": "1"}}
    return write_grid(folder, entries, slurm=settings)


def test_killed_preempted_and_limited_runs_end_as_undisturbed_ones(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _sweep(tmp_path, shards)
    jobs = {job.name.removeprefix("tiny_"): job for job in load_grid(path).jobs}
    assert main(["slurm", str(path)]) == 0
    assert capsys.readouterr().out.count("submitted array") == 2, "one for each kind of machine"
    held = hold({name: job for name, job in jobs.items() if name != "whole"}, "olmoe_parrots.train", STEPS)
    (killed,) = held["killed"]
    os.kill(killed, signal.SIGKILL)
    _slurm("scontrol", "requeue", last_state(jobs["preempted"].folder)["job"])
    number = last_state(jobs["limited"].folder)["job"]
    *hours, minutes, seconds = map(int, _slurm("squeue", "-h", f"--jobs={number}", "--format=%M").split(":"))
    assert not hours
    # in whole minutes, and between 45 and 105 seconds away
    limit = math.ceil(minutes + seconds / 60 + 0.75)
    _slurm("scontrol", "update", f"jobid={number}", f"TimeLimit={limit}")
    log = jobs["limited"].folder / "log.txt"
    wait_until(lambda: "stopped at step" in log.read_text(), "Slurm lets it go on and warns it before the limit")
    _slurm("scontrol", "update", f"jobid={number}", "TimeLimit=20")  # of its second start

    main(["slurm", str(path)])
    assert "submitted" not in capsys.readouterr().out, "nothing is in the queue twice"
    main(["status", str(path)])
    assert "0 failed, 0 stopped, 0 waiting" in capsys.readouterr().out
    undisturbed = {
        name: start_train(job.config_path, f"--save_folder={tmp_path / name}", ranks=job.ranks)
        for name, job in jobs.items()
    }
    wait_until(lambda: all(is_done(job) for job in jobs.values()), "all finish")

    assert {name: last_state(job.folder)["restarts"] for name, job in jobs.items()} == {
        "whole": 0,
        "killed": 1,
        "preempted": 1,
        "limited": 1,
    }
    for name, job in jobs.items():
        output, _ = undisturbed[name].communicate()
        assert undisturbed[name].returncode == 0, output
        rows, expected = metrics_of(job.folder), metrics_of(tmp_path / name)
        losses = {step: row["train/CrossEntropyLoss"] for step, row in rows.items()}
        assert losses == {step: row["train/CrossEntropyLoss"] for step, row in expected.items()}
        assert max(losses) == STEPS
        assert ("loading" in (job.folder / "log.txt").read_text()) == (name != "whole"), "it went on from a checkpoint"
    for name in ("preempted", "limited"):
        steps = [json.loads(line)["step"] for line in (jobs[name].folder / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == len(set(steps)), "it stopped well: no step was trained twice"
    main(["slurm", str(path)])
    assert "4 of 4 runs are finished, 0 are in the queue" in capsys.readouterr().out


def test_cancelling_ends_this_sweep_and_no_other(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = tmp_path / "waits.sh"
    waits.write_text("#!/bin/bash\nexec sleep 600\n")
    waits.chmod(0o755)
    config = write_config(tmp_path / "tiny.yaml", shards)
    entry = {"configs": [str(config)], "gpus_per_node": 0, "variants": {"a": {}, "b": {}}}
    settings = {"python": str(waits), "time": "20", "at_once": 1}
    ours, other = (write_grid(tmp_path / name, [entry], slurm=settings) for name in ("ours", "other"))
    for path in (ours, other):
        assert main(["slurm", str(path)]) == 0
    grid = make_grid(tmp_path / "ours", [entry], slurm=settings)
    wait_until(lambda: {one.state for one in slurm.queued(grid).values()} == {"RUNNING", "PENDING"}, "one at a time")
    capsys.readouterr()
    assert main(["cancel", str(ours)]) == 0
    told = capsys.readouterr().out
    assert "cancelled tiny_a, which was running" in told and "cancelled tiny_b, which was pending" in told
    wait_until(lambda: not slurm.queued(grid), "it is gone")
    main(["cancel", str(ours)])
    assert capsys.readouterr().out.startswith("0 runs were in the queue")
    assert len(slurm.queued(make_grid(tmp_path / "other", [entry], slurm=settings))) == 2
    main(["cancel", str(other)])
