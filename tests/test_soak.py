"""The kill test in short; its full form is ``make soak``."""

from pathlib import Path

import pytest
from soak import s3_folder, soak, write_config

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_moments_comes_to_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    soaked = soak(write_config(tmp_path, steps=80, save_every=5), tmp_path / "run", kills=4, seed=1)
    assert soaked.kills == 4
    assert soaked.checked > 0
    assert soaked.damaged == []
    assert soaked.equal


def test_a_run_that_loses_its_disk_with_each_kill_goes_on_from_s3(tmp_path: Path) -> None:
    with s3_folder(tmp_path / "s3") as remote:
        soaked = soak(write_config(tmp_path, steps=80, save_every=5), tmp_path / "run", kills=3, seed=2, remote=remote)
    assert soaked.kills == 3
    assert soaked.damaged == []
    assert soaked.equal
