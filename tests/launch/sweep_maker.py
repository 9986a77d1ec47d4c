"""Sweep files for tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from launch.sweep import Sweep
from launch.sweep_file import load_sweep

SEARCHED: dict[str, Any] = {
    "name": "test",
    "models": [{"width": [16, 32], "experts": [0, 8], "layers": 2, "heads": 2}],
    "tasks": [
        {
            "task": "phone_book",
            "options": {"name_length": 3, "number_length": 4},
            "sizes": {"smallest": 64, "largest": 9_000, "ratio": 1.3},
            "capacity": {"recall": 0.9, "bits_per_parameter": 0.5},
            "learning_rates": [0.003, 0.01],
            "seeds": [0, 1, 2],
            "training": {"epochs": 100, "batch_size": 32},
        }
    ],
}
FIXED: dict[str, Any] = {
    **SEARCHED,
    "tasks": [
        {
            "task": "shortest_path",
            "options": {"vertices": 10, "max_length": 4},
            "sizes": 500,
            "test_size": 50,
            "learning_rates": [0.003, 0.01],
            "seeds": [0, 1],
            "training": {"steps": 40, "batch_size": 32},
        }
    ],
}


def write_sweep(folder: Path, base: dict[str, Any] = SEARCHED, **changes: Any) -> Path:
    """A sweep file in `folder`, whose output is below it; `changes` replace its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"output": str(folder / "output"), **base, **changes}, sort_keys=False))
    return path


def make_sweep(folder: Path, base: dict[str, Any] = SEARCHED, **changes: Any) -> Sweep:
    """The same, loaded."""
    return load_sweep(write_sweep(folder, base, **changes))


def with_task(base: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The tasks of `base` with keys of the first one changed."""
    return [{**copy.deepcopy(base["tasks"][0]), **changes}]


def with_model(base: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The models of `base` with keys of the first entry changed."""
    return [{**copy.deepcopy(base["models"][0]), **changes}]
