"""Every shipped config trains a step: its own widths, experts and options, cut down to a layer and short sequences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port, write_shards

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SMALLER = [
    "model.n_layers=1",
    "model.max_sequence_length=16",
    "global_train_batch_size=2",
    "device_train_microbatch_size=1",
    "max_duration=1",
    "console_log_interval=1",
    "save_interval_unsharded=null",
    "save_num_checkpoints_to_keep=0",
    "evaluators=[]",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each config trained by the command with the same overrides, in one process."""
    root = tmp_path_factory.mktemp("shipped")
    shards = write_shards(root / "data", vocabulary=32_000)
    overrides = [f"--{override}" for override in [*SMALLER, f"data_folder={shards}"]]
    arguments = [
        f"{free_port()}:{config} --save_folder={root / config.stem} " + " ".join(overrides) for config in CONFIGS
    ]
    done = subprocess.run(
        [sys.executable, "tests/train_many.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains(runs: Path, config: Path) -> None:
    rows = [json.loads(line) for line in (runs / config.stem / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]
    assert 9.0 < rows[0]["train/CrossEntropyLoss"] < 11.5, "near ln 32,000 before anything is learned"
    assert ("train/LoadBalancingLoss" in rows[0]) == config.stem.startswith(("moe", "quickstart_moe"))
