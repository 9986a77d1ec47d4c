"""The core without dolma: a run trains, saves and resumes with whatever transformers the environment has."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses_of, train


@pytest.mark.slow
def test_a_run_trains_and_resumes(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config()
    train(config, f"--save_folder={tmp_path / 'whole'}")
    train(config, "--stop_at=2")
    train(config, "--try_load_latest_save=true")
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
