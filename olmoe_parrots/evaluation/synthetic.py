"""The synthetic tasks in the loop: a model decodes the test queries, the task scores what it decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from olmo.torch_util import get_global_rank, get_world_size
from torch import Tensor

from olmoe_parrots.config import EvaluatorConfig, EvaluatorType, TrainConfig
from olmoe_parrots.generation import decode_greedily
from olmoe_parrots.model import ModelOutput
from olmoe_parrots.synthetic.build import load_task
from olmoe_parrots.synthetic.task import EOS, PAD, Integers, Measurement, Queries, Task


@dataclass(frozen=True)
class SyntheticEvaluator:
    """A task's test queries, decoded in batches of ``batch_size`` on each rank.

    Args:
        label: the evaluator's, in the names of its metrics: ``eval/LABEL/METRIC``.
        batches: how many batches a rank decodes; all when None.
    """

    label: str
    task: Task
    queries: Queries
    batch_size: int
    batches: int | None = None

    @classmethod
    def of_config(cls, cfg: TrainConfig, evaluator: EvaluatorConfig) -> SyntheticEvaluator:
        """The evaluator that an entry of ``evaluators`` describes. Raises InputError for a folder of something else."""
        folder = evaluator.folder or cfg.data_folder
        assert folder is not None, "preflight has looked"
        batch_size = evaluator.device_eval_batch_size or cfg.device_eval_batch_size
        limit = evaluator.subset_num_batches
        if limit is None and cfg.eval_subset_num_batches > 0:
            limit = cfg.eval_subset_num_batches
        return cls(evaluator.label, *load_task(folder), batch_size, limit)

    def measure(self, model: Callable[..., ModelOutput], device: torch.device) -> list[Measurement]:
        """Decode and score, the same on every rank. All ranks must call this together.

        Args:
            model: in eval mode; called with OLMo's arguments.
        """
        count = len(self.queries.prompts_QT)
        if self.batches is not None:
            count = min(count, self.batches * self.batch_size * get_world_size())
        queries = Queries(self.queries.prompts_QT[:count], self.queries.answers_QT[:count])
        return self.task.score(queries, self.decode(model, queries.prompts_QT, device))

    def decode(self, model: Callable[..., ModelOutput], prompts_QT: Integers, device: torch.device) -> Integers:
        """What the model decodes after each prompt: (Q, answer_length). The ranks share the prompts out."""
        count, ranks = len(prompts_QT), get_world_size()
        each = -(-count // ranks)
        # Every rank takes as many steps as the others; what is decoded twice for that is left out below.
        places = np.arange(get_global_rank() * each, (get_global_rank() + 1) * each) % count
        mine_QT = torch.from_numpy(prompts_QT[places].astype(np.int64)).to(device)
        decoded = [
            decode_greedily(model, batch_BT, self.task.answer_length, eos_token_id=EOS, pad_token_id=PAD)
            for batch_BT in mine_QT.split(self.batch_size)
        ]
        return _gathered(torch.cat(decoded))[:count].cpu().numpy()


def build_synthetic_evaluators(cfg: TrainConfig) -> list[SyntheticEvaluator]:
    """Those of a config, in its order."""
    asked = [evaluator for evaluator in cfg.evaluators if evaluator.type == EvaluatorType.synthetic]
    return [SyntheticEvaluator.of_config(cfg, evaluator) for evaluator in asked]


def _gathered(decoded_QT: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks."""
    if get_world_size() == 1:
        return decoded_QT
    parts: list[Any] = [torch.empty_like(decoded_QT) for _ in range(get_world_size())]
    dist.all_gather(parts, decoded_QT)
    return torch.cat(parts)
