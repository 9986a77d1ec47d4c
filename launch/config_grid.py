"""A grid of training runs: configs x variants x seeds, each with its folder, its config as a file and its machines."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.slurm_settings import SlurmSettings
from olmoe_parrots.checkpoint import checkpoints_in
from olmoe_parrots.errors import InputError
from olmoe_parrots.strict_yaml import Section, read_yaml

if TYPE_CHECKING:
    from olmoe_parrots.config import TrainConfig

_DECIDING = (
    "model",
    "seed",
    "optimizer",
    "scheduler",
    "max_grad_norm",
    "max_duration",
    "global_train_batch_size",
    "data_folder",
    "data",
)
"""Options whose change makes another run of it, not the same one going on."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that a plan reckons with.

    Args:
        peak_flops: dense FLOP/s in the training precision.
        mfu: the share of them that training uses, where nothing was measured.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    mfu: float


@dataclass(frozen=True)
class ConfigGrid:
    """A grid as loaded. `output` holds configs, runs and what was submitted; `rates` is a benchmark's file."""

    name: str
    output: Path
    gpu: Gpu | None
    jobs: tuple[GridJob, ...] = field(compare=False, repr=False)
    rates: Path | None = None


@dataclass(frozen=True)
class GridJob:
    """One training run of a grid.

    Args:
        output: the grid's.
        source: the config file that it starts from.
        overrides: options that replace the config's, dotted where nested; its seed among them.
        gpus_per_node: 0 trains on the CPU, one process a node.
        device_tokens_per_second: measured, of one GPU; None where it was not.
        mfu: in place of the grid's.
    """

    name: str
    output: Path
    source: Path
    overrides: Mapping[str, Any] = field(hash=False)
    nodes: int = 1
    gpus_per_node: int = 1
    device_tokens_per_second: float | None = None
    mfu: float | None = None
    slurm: SlurmSettings = field(default_factory=SlurmSettings)

    @property
    def folder(self) -> Path:
        """What the run saves."""
        return self.output / "runs" / self.name

    @property
    def config_path(self) -> Path:
        """Its config as written for it."""
        return self.output / "configs" / f"{self.name}.yaml"

    @property
    def processes_per_node(self) -> int:
        """One a GPU, or one on the CPU."""
        return max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return self.nodes * self.processes_per_node

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The run's config as plain data. Raises InputError for an override of something that is no section."""
        config = copy.deepcopy(_read(self.source))
        told = {"run_name": self.name, "save_folder": str(self.folder)}
        for key, value in {**self.overrides, **told}.items():
            override(config, key, value)
        return config

    @property
    def steps(self) -> int | None:
        """Training steps as far as the config says without its data; None where it does not."""
        last, stop = _whole(self.config.get("max_duration")), _whole(self.config.get("stop_at"))
        if last is None and str(duration := self.config.get("max_duration")).endswith("T"):
            model = self.config.get("model")
            length = _whole(model.get("max_sequence_length")) if isinstance(model, dict) else None
            batch, tokens = _whole(self.config.get("global_train_batch_size")), _whole(str(duration)[:-1])
            if length and batch and tokens is not None:
                last = math.ceil(tokens / (batch * length))
        return min(last, stop) if last is not None and stop is not None else last

    def load(self) -> TrainConfig:
        """The run's config with OLMo's defaults; takes OLMo's import. Raises InputError for what OLMo refuses."""
        told = {"run_name": self.name, "save_folder": str(self.folder)}
        pairs = ((key, json.dumps(value)) for key, value in {**self.overrides, **told}.items())
        return _load(str(self.source), tuple(f"{key}={value}" for key, value in pairs))

    def check(self) -> TrainConfig:
        """As :meth:`load`; raises InputError also for a batch that the run's processes cannot share."""
        cfg = self.load()
        batch, micro = cfg.global_train_batch_size, cfg.device_train_microbatch_size
        if batch % self.ranks:
            what = f"global_train_batch_size={batch} does not divide among {self.ranks} GPUs"
            raise InputError(self.name, what, "use a divisor of it: nodes x gpus_per_node")
        share = batch // self.ranks
        if micro < 1 or (micro < share and share % micro):
            what = f"a GPU's {share} sequences do not divide into micro-batches of {micro}"
            raise InputError(self.name, what, f"set device_train_microbatch_size to a divisor of {share}")
        return cfg

    def check_inputs(self) -> None:
        """Raise InputError for whatever training would refuse before it starts and can be told here: its data,
        tokenizer and save folder, and values that do not fit them. Of files, sizes are compared and not contents."""
        from olmoe_parrots.preflight import check_inputs

        cfg = self.check()
        if cfg.verify_data in ("auto", "hashes"):
            cfg = replace(cfg, verify_data="sizes")
        try:
            check_inputs(cfg, self.name, self.ranks)
        except InputError as error:
            where = error.where if self.name in error.where else f"{self.name}: {error.where}"
            raise InputError(where, error.what, error.remedy) from None

    def write_config(self) -> None:
        """Write the config, as a whole or not at all."""
        import yaml

        header = f"# {self.name}: {self.source} with the overrides of its sweep\n"
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.config_path.with_suffix(".partial")
        scratch.write_text(header + yaml.safe_dump(self.config, sort_keys=False, width=120), encoding="utf-8")
        os.replace(scratch, self.config_path)

    def refuse_changes(self) -> None:
        """Raise InputError where the run has begun from a config that trains something else."""
        if not self.config_path.is_file() or not checkpoints_in(self.folder):
            return
        before, now = read_yaml(self.config_path), json.loads(json.dumps(self.config))
        for key in _DECIDING:
            if (changed := _difference(key, before.get(key), now.get(key))) is not None:
                option, was, is_ = changed
                what = f"it was begun with {option} {was!r}, and the sweep now says {is_!r}"
                remedy = "undo that, give the sweep another output, or train on as it is with --accept-changes"
                raise InputError(self.folder, what, remedy)


def override(config: dict[str, Any], key: str, value: Any, where: str = "overrides") -> None:
    """Set an option of a config, dotted where nested. Raises InputError where a part of the key is no section."""
    *sections, last = key.split(".")
    inner = config
    for name in sections:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{where}, {key}", f"{name} is no section of the config", "correct the key")
    inner[last] = value


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    return Section(read_yaml(path), str(path)).values


@functools.cache
def _load(path: str, overrides: tuple[str, ...]) -> TrainConfig:
    from olmo.exceptions import OLMoConfigurationError

    from olmoe_parrots.config import load_train_config
    from olmoe_parrots.preflight import config_error

    try:
        return load_train_config(path, list(overrides), validate_paths=False)
    except (OLMoConfigurationError, FileNotFoundError, TypeError, ValueError) as error:
        raise config_error(path, error, list(overrides)) from None


def _whole(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first option below `key` that differs, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if (found := _difference(f"{key}.{name}", before.get(name), now.get(name))) is not None:
                return found
        return None
    return None if before == now else (key, before, now)
