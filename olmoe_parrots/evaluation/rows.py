"""Result rows of an evaluated checkpoint, and whether a results file has a measurement already."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import remote
from ..accounting import ModelShape
from ..config import TrainConfig
from ..results import Row, config_digest
from .checkpoints import CONFIG, FoundCheckpoint
from .harness import Score

PERPLEXITY = "perplexity"
"""The task of measurements on held-out text; ``perplexity/SOURCE`` for one source."""
SAME_DETAILS = ("limit", "precision", "folder", "local", "problems_sha256")
"""The details that make one measurement another. Of training problems the file's sum counts, wherever it lies."""

_DECIDES = (
    "seed",
    "model",
    "optimizer",
    "scheduler",
    "data",
    "global_train_batch_size",
    "max_duration",
    "max_grad_norm",
    "precision",
    "softmax_auxiliary_loss",
)
"""The options of a run that its weights depend on. OLMo changes others of the config that it saves, as it goes."""


@dataclass(frozen=True)
class Evaluated:
    """What all rows of one checkpoint have in common, as keyword arguments of :class:`Row`."""

    facts: dict[str, Any]

    @classmethod
    def of(cls, found: FoundCheckpoint, cfg: TrainConfig) -> "Evaluated":
        """From a checkpoint and the config that lies in it, and from the provenance beside it where there is one."""
        if (facts := found.facts()) is not None:
            return cls(facts)
        shape = ModelShape.from_config(cfg.model)
        tokens = found.step * cfg.global_train_batch_size * cfg.model.max_sequence_length
        run, name = found.path.rpartition("/")[::2]
        with remote.local_copy(remote.join(found.path, CONFIG)) as path:
            saved: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        provenance = _provenance(run)
        return cls(
            {
                "model": cfg.run_name or run.rpartition("/")[2] or name,
                "config_digest": config_digest({key: saved.get(key) for key in _DECIDES}, {}),
                "total_params": shape.total_params(),
                "active_params": shape.active_params(),
                "non_embedding_params": shape.non_embedding_params(),
                "training_tokens": tokens,
                "training_flops": float(tokens * shape.flops_per_token()),
                "architecture": {
                    "width": shape.d_model,
                    "layers": shape.n_layers,
                    "heads": shape.n_heads,
                    "experts": shape.num_experts,
                    "top_k": shape.top_k,
                    "hidden_size": shape.hidden_size,
                    "gated": shape.gated,
                },
                "data": {"name": str(cfg.data_folder).rstrip("/").rpartition("/")[2]} if cfg.data_folder else {},
                "step": found.step,
                "checkpoint": found.path,
                "seed": cfg.seed,
                "learning_rate": cfg.optimizer.learning_rate,
                "versions": provenance.get("versions", {}),
                "commit": provenance.get("commit"),
                "device": provenance.get("device"),
            }
        )

    def rows(self, task: str, split: str | None, scores: Iterable[Score], details: dict[str, Any]) -> list[Row]:
        """A row a score."""
        return [
            Row(
                task=task,
                split=split or "",
                metric=score.metric,
                value=score.value,
                standard_error=score.standard_error,
                examples=score.examples,
                details=details,
                **self.facts,
            )
            for score in scores
        ]

    def holds(self, rows: Iterable[Row], task: str, metric: str, details: dict[str, Any]) -> bool:
        """Whether one of ``rows`` is this measurement of this checkpoint, made in the same way (SAME_DETAILS).

        Those on training problems are told from those on a task's own split by ``problems_sha256``.
        """
        wanted = [details.get(name) for name in SAME_DETAILS]
        return any(
            (row.task, row.metric) == (task, metric)
            and all(getattr(row, name) == self.facts[name] for name in ("checkpoint", "config_digest", "step"))
            and [row.details.get(name) for name in SAME_DETAILS] == wanted
            for row in rows
        )


def _provenance(run: str) -> dict[str, Any]:
    path = remote.join(run, "provenance.json")
    try:
        content = remote.read_bytes(path) if remote.is_remote(path) else Path(path).read_bytes()
        found = json.loads(content)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
