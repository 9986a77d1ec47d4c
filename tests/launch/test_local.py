"""`python -m launch local` with the real trainer: killed at any moment, gone on with, failing, interrupted."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_maker import write_sweep

from launch.jobs import Job
from launch.processes import last_state
from launch.studies import studies_of
from launch.sweep_file import load_sweep
from olmoe_parrots.results import Row, read_rows

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
TASK: dict[str, Any] = {
    "task": "phone_book",
    "options": {"name_length": 2, "number_length": 3},
    "sizes": 64,
    "seeds": 0,
    "learning_rates": 0.01,
    "training": {"steps": 250, "batch_size": 32, "save_every": 25, "overrides": {"optimizer.weight_decay": 0.0}},
}
TINY: dict[str, Any] = {"models": [{"width": [8, 16], "layers": 1, "heads": 2}], "tasks": [TASK]}


def _start(sweep: Path, *arguments: str, command: str = "local") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", command, str(sweep), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(sweep: Path, *arguments: str, code: int = 0, command: str = "local") -> str:
    process = _start(sweep, *arguments, command=command)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


def _jobs(path: Path) -> list[Job]:
    return [job for study in studies_of(load_sweep(path)) for job in study.rate_jobs()]


def _wait(until: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _trained(job: Job, steps: int) -> bool:
    path = job.folder / "metrics.jsonl"
    return path.exists() and path.read_text().count("CrossEntropyLoss") >= steps


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def _measured(rows: list[Row]) -> list[tuple[Any, ...]]:
    return sorted((row.config_digest, row.metric, row.value, row.details.get("training_loss", 0.0)) for row in rows)


def test_a_killed_sweep_goes_on_to_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, killed = (write_sweep(tmp_path / name, TINY) for name in ("whole", "killed"))
    output = _finish(whole, "--processes", "2")
    assert output.count("finished ") == 2
    rows = read_rows(whole.parent / "output" / "results.jsonl", pytest.fail)
    assert [row.metric for row in rows].count("accuracy") == [row.metric for row in rows].count("chosen/accuracy") == 2
    first, second = _jobs(killed)

    process = _start(killed, "--processes", "1")
    _wait(lambda: _trained(first, 40) or _trained(second, 40))
    begun = first if _trained(first, 40) else second
    run = last_state(begun.folder)["pid"]
    os.kill(run, signal.SIGSTOP)  # so that it can't end while its status is asked for
    assert _is_alive(run)
    assert "1 running" in _finish(killed, command="status")
    process.send_signal(signal.SIGKILL)
    os.kill(run, signal.SIGCONT)
    process.communicate(timeout=30)
    _wait(lambda: not _is_alive(run), 30)

    output = _finish(killed, "--processes", "2")
    assert "loading" in (begun.folder / "log.txt").read_text(), "it went on from a checkpoint"
    assert _measured(read_rows(killed.parent / "output" / "results.jsonl", pytest.fail)) == _measured(rows)

    before = (killed.parent / "output" / "results.jsonl").read_bytes()
    assert "started" not in _finish(killed), "nothing is trained again"
    assert (killed.parent / "output" / "results.jsonl").read_bytes() == before
    assert not list(first.folder.glob("step*")), "checkpoints that nobody needs are gone"

    # without the results, finished runs are found by their metrics
    (killed.parent / "output" / "results.jsonl").write_bytes(before[:-300])
    assert "started" not in _finish(killed)
    rows = read_rows(killed.parent / "output" / "results.jsonl", lambda torn: None)
    assert len(_measured(rows)) == len(before.splitlines())


def test_failed_runs_are_shown_and_the_others_finish(tmp_path: Path) -> None:
    bad = {**TASK, "label": "bad", "training": {**TASK["training"], "overrides": {"model.n_kv_heads": 3}}}
    task = {**TASK, "training": {**TASK["training"], "steps": 20}}
    path = write_sweep(tmp_path, models=[{"width": 8, "layers": 1, "heads": 2}], tasks=[bad, task])
    output = _finish(path, code=1)
    assert "cannot share that many key-value heads" in output, "the log's last lines are shown"
    assert "1 runs trained, 1 failed" in output
    assert {row.data["name"] for row in read_rows(tmp_path / "output" / "results.jsonl")} == {"phone_book"}
    assert "1 done, 0 running, 1 failed" in _finish(path, command="status")


def test_an_interruption_ends_every_run(tmp_path: Path) -> None:
    long = {**TASK, "training": {**TASK["training"], "steps": 50_000}}
    path = write_sweep(tmp_path, {**TINY, "tasks": [long]})
    process = _start(path, "--processes", "2")
    jobs = _jobs(path)
    try:
        _wait(lambda: all("pid" in last_state(job.folder) for job in jobs))
        pids = [last_state(job.folder)["pid"] for job in jobs]
        assert "2 running" in _finish(path, command="status")
        assert "another launcher" in _finish(path, code=2)
        assert all(_is_alive(pid) for pid in pids)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "leaked" not in output and "Traceback" not in output, output
    _wait(lambda: not any(_is_alive(pid) for pid in pids), 30)
    assert "2 stopped" in _finish(path, command="status")


def test_the_configs_are_those_that_train_and_can_be_run_by_hand(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        models=[{"width": 8, "experts": 4, "layers": 1, "heads": 2, "intermediate": 4}],
        tasks=[{**TASK, "training": {**TASK["training"], "steps": 3}}],
    )
    (job,) = _jobs(path)
    job.write_config()
    commands = [line.removeprefix("# ") for line in job.config_path.read_text().splitlines() if "# python -m" in line]
    environment, told = {**os.environ, "PYTHONPATH": str(REPOSITORY)}, ""
    for command in commands:
        line = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(line, check=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        told += done.stderr
    config = yaml.safe_load((job.folder / "config.yaml").read_text())
    assert config["model"]["moe_num_experts"] == 4
    assert config["optimizer"]["weight_decay"] == 0.0
    assert config["max_duration"] == 3
    rows = job.rows()
    assert rows is not None
    assert rows[-1].metric == "accuracy"
    assert f"{rows[-1].total_params:,} parameters" in told, "the closed formula counts what was built"
    metrics = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-2]["tokens"] == rows[-1].training_tokens
