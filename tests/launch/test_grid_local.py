"""`python -m launch local` on a grid, with the real trainer: several processes a run, stopped amid it, gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, metrics_of, start_train
from grid_maker import make_grid, write_config

from launch.__main__ import main
from launch.processes import last_state
from olmoe_parrots.errors import InputError

pytestmark = pytest.mark.cluster
STEPS = 400


def _start(sweep: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "local", str(sweep)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_interrupted_grid_saves_and_goes_on_to_the_same_losses(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = write_config(tmp_path / "two.yaml", shards, max_duration=STEPS, save_interval=1000, console_log_interval=1)
    bad = write_config(tmp_path / "bad.yaml", shards)
    entries = [
        {"configs": [str(two)], "gpus_per_node": 2},
        {"configs": [str(bad)], "overrides": {"model.n_kv_heads": 3}},
    ]
    first, _ = make_grid(tmp_path, entries).jobs
    process = _start(tmp_path / "sweep.yaml")
    deadline = time.monotonic() + 240
    while not (first.folder / "metrics.jsonl").exists() or len(metrics_of(first.folder)) < 10:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    main(["status", str(tmp_path / "sweep.yaml")])
    assert "1 running, 0 queued, 0 failed, 0 stopped, 1 waiting" in capsys.readouterr().out
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and "stopped two" in told and "Traceback" not in told, told
    assert last_state(first.folder)["exit_code"] == 75
    stopped_at = max(metrics_of(first.folder))
    assert stopped_at < STEPS and (first.folder / f"step{stopped_at}").is_dir(), "it was saved where it stopped"

    undisturbed = start_train(first.config_path, f"--save_folder={tmp_path / 'undisturbed'}", ranks=2)
    process = _start(tmp_path / "sweep.yaml")
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "finished two" in told and "1 failed: bad" in told, told
    assert "cannot share that many key-value heads" in told, "the log's last lines are shown"
    output, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, output
    losses = {step: row["train/CrossEntropyLoss"] for step, row in metrics_of(first.folder).items()}
    expected = metrics_of(tmp_path / "undisturbed")
    assert losses == {step: row["train/CrossEntropyLoss"] for step, row in expected.items()} and max(losses) == STEPS
    main(["status", str(tmp_path / "sweep.yaml")])
    assert "1 done, 0 running, 0 queued, 1 failed" in capsys.readouterr().out


def test_runs_of_several_nodes_are_refused(tmp_path: Path, shards: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)
    make_grid(tmp_path, [{"configs": [str(config)], "nodes": 2}])
    with pytest.raises(InputError, match="it asks for 2 nodes"):
        main(["local", str(tmp_path / "sweep.yaml")])
