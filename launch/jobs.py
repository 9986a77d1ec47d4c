"""One training run of a sweep: its name, its config as a file, its data, its folder and its result rows."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.config_grid import override
from launch.sweep import Model, Sweep, TaskSpec, data_name
from olmoe_parrots.config_files import config_fields
from olmoe_parrots.errors import InputError
from olmoe_parrots.grid import synthetic_run
from olmoe_parrots.metrics import read_metrics
from olmoe_parrots.results import Row, config_digest

SPLITS = {"phone_book": "train", "shortest_path": "test"}
"""Where each task's test queries come from: phone-book's are of the training set."""


@dataclass(frozen=True)
class Job:
    """A model trained on `size` examples of a task at one learning rate from one seed. Equal jobs are one run."""

    sweep: Sweep
    task: TaskSpec
    model: Model
    size: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its config, folder and progress line."""
        return f"{self.task.label}_{self.size}_{self.model.name}_lr{self.learning_rate:g}_s{self.seed}"

    @property
    def folder(self) -> Path:
        """What the run saves. A sweep that was changed makes other folders, so that no run goes on from another."""
        return self.sweep.output / "runs" / f"{self.name}-{self.digest[:6]}"

    @property
    def config_path(self) -> Path:
        return self.sweep.output / "configs" / f"{self.folder.name}.yaml"

    @cached_property
    def steps(self) -> int:
        return self.task.steps(self.model, self.size)

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self.task.training.batch(self.size)

    @property
    def tokens(self) -> int:
        """Training tokens, padding and prompts included."""
        return self.steps * self.batch_size * self.task.task.row_length

    @cached_property
    def flops(self) -> int:
        """Training FLOPs."""
        return self.tokens * self.task.shape(self.model).flops_per_token()

    @cached_property
    def data(self) -> dict[str, Any]:
        """The settings of its data set."""
        return self.task.data_settings(self.size, self.seed)

    @property
    def data_folder(self) -> Path:
        """Shared by all runs on the same data."""
        return self.sweep.output / "data" / data_name(self.data)

    @cached_property
    def digest(self) -> str:
        return config_digest(self._config(), self.data)

    def config(self) -> dict[str, Any]:
        """The run's config as plain data. Raises InputError for an override of something that is no section."""
        return self._config() | {"save_folder": str(self.folder)}

    def _config(self) -> dict[str, Any]:
        """All of the config but the folder, whose name follows from it."""
        training, model = self.task.training, self.model
        run = synthetic_run(
            self.name,
            model.width,
            model.experts,
            hidden_size=model.hidden_size,
            gated=model.gated,
            top_k=model.top_k,
            layers=model.layers,
            head_size=model.width // model.heads,
            batch_size=self.batch_size,
            steps=self.steps,
            micro_batch=training.micro_batch or self.batch_size,
            learning_rate=self.learning_rate,
            data_folder=str(self.data_folder),
            log_every=max(1, self.steps // 100),
            eval_every=self.steps,
            save_every=min(training.save_every, self.steps),
        )
        config = config_fields(run)
        config |= {"run_name": self.name, "seed": self.seed, "save_num_checkpoints_to_keep": 1}
        config["scheduler"]["t_warmup"] = int(self.steps * training.warmup_share)
        for key, value in training.overrides.items():
            override(config, key, value, "training.overrides")
        return config

    def data_command(self) -> list[str]:
        """The command that makes its data set."""
        command = ["python", "-m", "olmoe_parrots.synthetic", self.task.task.name, "--output", str(self.data_folder)]
        command += [f"--size={self.size}", f"--seed={self.data['seed']}", f"--test-size={self.data['test_size']}"]
        return command + _task_options(self.task.task)

    def write_config(self) -> None:
        """Write the config, as a whole or not at all, with how to run it by hand."""
        import yaml

        shape = self.task.shape(self.model)
        header = (
            f"# {shape.total_params():,} parameters, {shape.active_params():,} active; {self.tokens:,} training tokens,"
            f" {self.flops:.3g} FLOPs; digest {self.digest}\n"
            f"# {shlex.join(self.data_command())}\n"
            f"# python -m olmoe_parrots.train {shlex.quote(str(self.config_path))}\n"
        )
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.config_path.with_suffix(".partial")
        scratch.write_text(header + yaml.safe_dump(self.config(), sort_keys=False, width=120), encoding="utf-8")
        os.replace(scratch, self.config_path)

    def rows(self, seconds: float | None = None) -> list[Row] | None:
        """The run's result rows, the deciding metric last; None where it has not reached its last evaluation.

        Args:
            seconds: how long its process took, where that is known.

        Raises InputError where it has but did not measure what decides.
        """
        path = self.folder / "metrics.jsonl"
        steps = [row for row in read_metrics(path) if row.get("step") == self.steps] if path.is_file() else []
        measured = next((row for row in reversed(steps) if "measurements" in row), None)
        if measured is None:
            return None
        found = [one for one in measured["measurements"] if one["task"] == self.task.task.name]
        found.sort(key=lambda one: one["metric"] == self.task.metric)
        if not found or found[-1]["metric"] != self.task.metric:
            raise InputError(path, f"it has no {self.task.metric} at its last step", "remove the folder and run again")
        loss = next((row["train/CrossEntropyLoss"] for row in reversed(steps) if "train/CrossEntropyLoss" in row), None)
        told = _provenance(self.folder)
        return [
            self.row(
                one["metric"],
                one["value"],
                standard_error=one["standard_error"],
                examples=one["examples"],
                step=self.steps,
                details={"training_loss": loss, "sweep": self.sweep.name, "seconds": seconds},
                **told,
            )
            for one in found
        ]

    def row(self, metric: str, value: float, **others: Any) -> Row:
        """A result row of this run, with `metric`, `value` and `others` as given."""
        shape = self.task.shape(self.model)
        about: dict[str, Any] = {"training_tokens": self.tokens, "training_flops": self.flops} | others
        return Row(
            model=self.model.name,
            config_digest=self.digest,
            total_params=shape.total_params(),
            active_params=shape.active_params(),
            non_embedding_params=shape.non_embedding_params(),
            task=self.task.task.name,
            split=SPLITS[self.task.task.name],
            metric=metric,
            value=value,
            architecture=self.model.architecture(),
            data={"name": self.task.label, **self.data},
            seed=self.seed,
            learning_rate=self.learning_rate,
            **about,
        )


def _task_options(task: Any) -> list[str]:
    """The options of a task that are not the usual ones, as the data command takes them."""
    words, lengths = [], (getattr(task, "min_length", None), getattr(task, "max_length", None))
    if lengths not in ((None, None), (1, None)):
        words.append(f"--lengths={lengths[0]}-{lengths[1] if lengths[1] is not None else task.vertices - 1}")
    for option in fields(task):
        value, name = getattr(task, option.name), option.name.replace("_", "-")
        if value == option.default or option.name in ("min_length", "max_length"):
            continue
        words.append(f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}")
    return words


def _provenance(folder: Path) -> dict[str, Any]:
    """Versions, commit and device of a run, the last start's where it was resumed."""
    files = sorted(folder.glob("provenance*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return {}
    told = json.loads(files[-1].read_text(encoding="utf-8"))
    commit = told.get("commit")
    if commit and told.get("uncommitted_changes"):
        commit += " with changes"
    return {"versions": told.get("versions", {}), "commit": commit, "device": told.get("device")}


def describe(job: Job) -> dict[str, Any]:
    """The job for `plan --json`."""
    shape = job.task.shape(job.model)
    return {
        "name": job.name,
        "task": job.task.label,
        "model": job.model.name,
        "size": job.size,
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "steps": job.steps,
        "tokens": job.tokens,
        "flops": job.flops,
        "total_params": shape.total_params(),
        "active_params": shape.active_params(),
        "digest": job.digest,
        "options": asdict(job.task.task),
    }
