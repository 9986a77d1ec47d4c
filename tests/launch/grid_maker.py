"""Grids of tiny configs for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN

from launch.config_grid import ConfigGrid
from launch.config_grid_file import load_grid


def write_config(path: Path, shards: Path, *, moe: bool = True, **fields: Any) -> Path:
    """A config of a tiny model on the tiny shards; `fields` replace its top-level options."""
    config = {**TINY_RUN, "data_folder": str(shards), "save_folder": "runs/${run_name}", **fields}
    config["model"] = {**TINY_MODEL, **(TINY_MOE if moe else {})}
    config["data"] = {"paths": ["${data_folder}/train/0000.npy"], "drop_last": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def write_grid(folder: Path, grid: list[dict[str, Any]], **keys: Any) -> Path:
    """A sweep file in `folder`, whose output is below it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    content = {"name": "test", "output": str(folder / "output"), **keys, "grid": grid}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def make_grid(folder: Path, grid: list[dict[str, Any]], **keys: Any) -> ConfigGrid:
    """The same, loaded."""
    return load_grid(write_grid(folder, grid, **keys))
