"""What keeps a run from going wrong unseen: batches that are not finite, and routers that collapse."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from olmo.torch_util import get_global_rank, get_world_size
from torch import Tensor
from torch.nn.utils import get_total_norm

from .errors import RunError

log = logging.getLogger("olmoe_parrots")


class FiniteGuard:
    """Looks at loss and gradients before each optimizer step, over all ranks.

    A step that is not finite is not taken: the run stops, or, for the first `allowed` such batches, goes on with the
    next batch, weights and moments as they were. Either way each rank writes the places of its sequences to
    ``nonfinite/step{N}-rank{R}.json``. Costs one pass over the gradients and one all-reduce of a number.

    Args:
        optimizer: anything of torch; the guard hooks itself in before its steps.
        names: of the parameters, by identity.
        folder: the run's save folder.
    """

    def __init__(self, optimizer: Any, names: dict[int, str], folder: Path, allowed: int) -> None:
        self.folder, self.allowed, self.names = folder, allowed, names
        self.skipped = 0
        self.skips_this_step = False
        self._step, self._indices = 0, []  # type: tuple[int, list[int]]
        self._losses: list[Tensor] = []
        optimizer.register_step_pre_hook(self._before_step)

    def begin(self, step: int, batch: dict[str, Any]) -> None:
        """Tell it what the coming step trains on."""
        self._step, self.skips_this_step = step, False
        self._indices = batch["index"].tolist() if "index" in batch else []

    def expect(self, *losses: Tensor | None) -> None:
        """Tell it the losses of the step, which it overwrites with infinity if the step is skipped: OLMo, which looks
        for NaN after its step (olmo/train.py:878), goes on then."""
        self._losses = [loss for loss in losses if loss is not None]

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters]) if parameters else torch.zeros(())
        finite = torch.isfinite(norm)
        for loss in self._losses:
            finite = finite & torch.isfinite(loss).all().to(finite.device)
        bad: Any = (~finite).int()
        if get_world_size() > 1:
            dist.all_reduce(bad)
        if bad.item():
            self._report(parameters)
            for parameter in parameters:
                parameter.grad = None  # a step without gradients changes nothing
            for loss in self._losses:
                loss.fill_(float("inf"))

    def _report(self, parameters: list[Any]) -> None:
        path = self.folder / "nonfinite" / f"step{self._step}-rank{get_global_rank()}.json"
        losses = [float(loss) for loss in self._losses]
        wrong = [self.names.get(id(p), "?") for p in parameters if not torch.isfinite(p.grad).all()]
        told = {"step": self._step, "losses": [str(loss) for loss in losses], "gradients": wrong}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told | {"indices": self._indices}) + "\n", encoding="utf-8")
        what = f"loss or gradient of step {self._step} is not finite"
        if self.skipped >= self.allowed:
            skipped = f" ({self.skipped} batches were skipped before)" if self.skipped else ""
            remedy = (
                "the step was not taken; see the sequences there, or let batches be skipped: --skip_nonfinite_batches=N"
            )
            raise RunError(path, what + skipped, remedy)
        self.skipped += 1
        self.skips_this_step = True
        log.warning("%s: the batch is skipped (%d of at most %d); see %s", what, self.skipped, self.allowed, path)


class CollapseWatch:
    """Warns of a layer where one expert takes more than `share` of the tokens at `steps` logged steps in a row."""

    def __init__(self, share: float, steps: int, top_k: int) -> None:
        self.share, self.steps, self.top_k = share, steps, top_k
        self._in_a_row: dict[int, int] = {}

    def look(self, step: int, tokens_per_expert_LE: list[list[float]]) -> list[str]:
        """Warnings for the layers that have just been so for `steps` logged steps.

        Args:
            tokens_per_expert_LE: assignments, each token's to its `top_k` experts.
        """
        warnings = []
        for layer, counts in enumerate(tokens_per_expert_LE):
            share = max(counts) * self.top_k / sum(counts)
            self._in_a_row[layer] = self._in_a_row.get(layer, 0) + 1 if share > self.share else 0
            if self._in_a_row[layer] == self.steps:
                expert = counts.index(max(counts))
                warnings.append(
                    f"step {step}: expert {expert} of layer {layer} takes {share:.0%} of the tokens; for {self.steps} "
                    f"logged steps in a row one has taken more than {self.share:.0%}: the layer's router has collapsed"
                )
        return warnings
