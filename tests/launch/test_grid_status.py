"""How the runs of a grid stand, from their folders alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from grid_maker import make_grid, write_config

from launch.__main__ import main
from launch.config_grid import GridJob
from launch.run_state import is_done, state_of


@pytest.fixture
def job(tmp_path: Path, shards: Path) -> GridJob:
    """A run of 100 steps of 8 x 16 tokens that has not begun."""
    config = write_config(tmp_path / "tiny.yaml", shards, max_duration=100)
    (job,) = make_grid(tmp_path, [{"configs": [str(config)]}]).jobs
    return job


def _tell(run: GridJob, step: int, **process: Any) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    row = {"step": step, "tokens": step * 128, "time": time.time(), "train/CrossEntropyLoss": 1.5}
    row["throughput/tokens_per_second"] = 64.0
    (run.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"step": step, "eval/x": 1}) + "\n")
    (run.folder / "process.json").write_text(json.dumps(process))


def test_a_run_waits_runs_stops_fails_and_is_done(job: GridJob) -> None:
    assert state_of(job, {}).name == "waiting"
    assert state_of(job, {job.name: ("queued", "Resources")}).reason == "Resources"
    _tell(job, 40, job="3_0", restarts=2)
    running = state_of(job, {job.name: ("running", "")})
    assert (running.name, running.step, running.loss, running.restarts) == ("running", 40, 1.5, 2)
    assert running.seconds_left == 60 * 128 / 64
    assert state_of(job, {}).name == "stopped", "it has no end and is not at work: its machine went"
    for code, name in ((75, "stopped"), (143, "stopped"), (1, "failed"), (137, "failed")):
        _tell(job, 40, exit_code=code)
        assert state_of(job, {}).name == name
    assert state_of(job, {job.name: ("queued", "BeginTime")}).name == "queued"
    _tell(job, 100, exit_code=0)
    assert state_of(job, {job.name: ("running", "COMPLETING")}).name == "done"


def test_a_run_that_was_made_longer_is_not_done(job: GridJob, tmp_path: Path) -> None:
    _tell(job, 100, exit_code=0)
    assert is_done(job)
    entry = {"configs": [str(tmp_path / "tiny.yaml")], "overrides": {"max_duration": 101}}
    (longer,) = make_grid(tmp_path, [entry]).jobs
    assert not is_done(longer)


def test_the_table_ends_with_the_last_words_of_what_failed(
    job: GridJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(job, 40, exit_code=2)
    (job.folder / "log.txt").write_text("first\n" + "line\n" * 20 + "error: the disk: it is full; free some space\n")
    assert main(["status", str(tmp_path / "sweep.yaml")]) == 0
    told = capsys.readouterr().out
    assert "0 done, 0 running, 0 queued, 1 failed" in told and "40/100" in told
    assert told.rstrip().endswith("error: the disk: it is full; free some space") and "first" not in told
