"""Checkpoints of real runs: sealed, kept, damaged; and what watches over a run."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses_of, start_train, train
from test_stopping import LONG, wait_for_steps

from olmoe_parrots.checkpoint import MANIFEST, checkpoint_at

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tiny_config: Callable[..., Path], tmp_path: Path, strategy: str
) -> None:
    config = tiny_config(distributed_strategy=strategy, save_interval=2, save_interval_unsharded=2, max_duration=8)
    train(config, f"--save_folder={tmp_path / 'whole'}")
    train(config, "--stop_at=6")
    folder = tmp_path / "run"
    for newest in folder.glob("step6*"):
        manifest = json.loads((newest / MANIFEST).read_text())
        assert set(manifest["files"]) == {
            path.relative_to(newest).as_posix()
            for path in newest.rglob("*")
            if path.is_file() and path.name != MANIFEST
        }
        name = max(manifest["files"], key=lambda name: manifest["files"][name]["bytes"])
        content = bytearray((newest / name).read_bytes())
        content[len(content) // 2] ^= 1
        (newest / name).write_bytes(content)
    output = train(config, "--try_load_latest_save=true")
    assert output.count("is passed over: the content of") == len(list(folder.glob("damaged-step6*"))) > 0
    assert "step4" in next(line for line in output.splitlines() if " loading " in line)
    assert losses_of(folder) == losses_of(tmp_path / "whole")
    assert all(checkpoint_at(path) for path in folder.glob("step*"))


def test_what_is_kept(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    options = {"save_interval": 1, "save_interval_unsharded": 1, "max_duration": 7, "keep_checkpoints_every": 3}
    options |= {"save_num_checkpoints_to_keep": 2, "save_num_unsharded_checkpoints_to_keep": 1}
    train(tiny_config(**options))
    kept = sorted(path.name for path in (tmp_path / "run").glob("step*"))
    sharded = [f"step{step}" for step in (3, 6, 7)]
    assert kept == sorted([*sharded, "step3-unsharded", "step6-unsharded", "step7-unsharded"])


def test_a_second_run_in_a_folder_is_refused(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    first = start_train(tiny_config(**LONG))
    try:
        wait_for_steps(tmp_path / "run", 1)
        second = start_train(tmp_path / "config.yaml", "--try_load_latest_save=true")
        output, _ = second.communicate(120)
        assert second.returncode == 2
        assert "another run is writing there; wait for it or choose another --save_folder" in output
    finally:
        first.kill()
    train(tmp_path / "config.yaml", "--try_load_latest_save=true", "--stop_at=1")  # the lock went with its holder


def test_a_rank_that_hangs_ends_the_run_with_its_stacks(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    run = start_train(tiny_config(**LONG), "--step_timeout=5", ranks=2)
    try:
        wait_for_steps(tmp_path / "run", 3)
        os.kill(run.pids[1], signal.SIGSTOP)
        output = run.output_of(0, 120)
        assert "Timeout (0:00:05)!" in output and "train_step" in output
    finally:
        run.kill()
