"""What `launch slurm` looks at before it submits: a line for each run that could not start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grid_maker import write_config, write_grid

from launch.__main__ import main
from olmoe_parrots.errors import InputError


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that programs in place of Slurm's add to: an empty queue, and a number for each script."""
    told = tmp_path / "submitted.txt"
    programs = {"squeue": "exit 0", "sbatch": f'echo "$*" >> {told}; echo 7'}
    (tmp_path / "bin").mkdir()
    for name, line in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return told


def test_runs_that_could_not_start_are_told_and_nothing_is_submitted(
    tmp_path: Path, shards: Path, submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)
    variants = {
        "whole": {},
        "no_data": {"data_folder": str(tmp_path / "elsewhere")},
        "other_data": {"model.eos_token_id": 5},
        "no_tokenizer": {"tokenizer.identifier": "none.json", "evaluators": [{"label": "piqa", "type": "downstream"}]},
        "no_length": {"max_duration": "long"},
    }
    path = write_grid(tmp_path, [{"configs": [str(config)], "variants": variants}])
    with pytest.raises(InputError) as last:
        main(["slurm", str(path)])
    told = [*capsys.readouterr().err.splitlines(), f"error: {last.value}"]
    assert [line.split("tiny_")[1].split(",")[0].split(":")[0] for line in told] == [*variants][1:]
    assert all(line.startswith("error: ") for line in told)
    for line, part in zip(told, ("the file does not exist", "eos_token_id", "no such file", "no length"), strict=True):
        assert part in line, line
    assert told[-1].endswith("Nothing was submitted; --skip-checks where this machine does not see the data")
    assert not submitted.exists()
    assert main(["slurm", str(path), "--skip-checks"]) == 0
    assert submitted.read_text().count("--parsable") == 1
    assert main(["slurm", str(path), "--dry-run"]) == 0, "which looks at no data"


def test_a_save_folder_without_room_is_told(tmp_path: Path, shards: Path, submitted: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)
    path = write_grid(tmp_path, [{"configs": [str(config)], "overrides": {"model.embedding_size": 10**12}}])
    with pytest.raises(InputError, match=r"/runs/tiny: .* GB are free and two checkpoints take"):
        main(["slurm", str(path)])
    assert not submitted.exists()
