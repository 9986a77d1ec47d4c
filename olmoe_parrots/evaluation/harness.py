"""Tasks of ai2-olmo-eval as evaluators of OLMo's loop, in training and after it alike.

The task puts the questions into tokens and batches, and its metric takes the log-likelihoods of the options from the
model's logits; both are the package's. What is ours: which questions are asked, and what is told of each score.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from olmo.config import EvaluatorType
from olmo.eval import Evaluator
from olmo.torch_util import get_global_rank, get_world_size
from olmo_eval import ICLMetric, ICLMultiChoiceTaskDataset, build_task
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ..config import EvaluatorConfig, TrainConfig
from ..errors import InputError
from .task_tokenizer import TaskTokenizer
from .tasks import ACCURACY, BITS_PER_BYTE

State = Sequence[tuple[int | None, int | None, float | None]]
"""What a metric of ai2-olmo-eval keeps: (question, option, value), with ``None`` where a rank had nothing."""


@dataclass(frozen=True)
class Score:
    """A measurement over questions.

    ``standard_error`` is that of the mean over the questions, s/√n with s the sample's standard deviation; for an
    accuracy that is the binomial √(p(1-p)/(n-1)). ``None`` for what is no mean over questions.
    """

    metric: str
    value: float
    standard_error: float | None
    examples: int

    @classmethod
    def mean(cls, metric: str, values: Sequence[float]) -> "Score":
        """The mean of one value a question, there being at least one."""
        array = np.asarray(values, dtype=np.float64)
        error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
        return cls(metric, float(array.mean()), error, len(array))


@dataclass
class TaskEvaluator(Evaluator):
    """One task, for OLMo's loop: ``reset_metrics``, ``update_metrics`` a batch, ``compute_metrics``; or :meth:`scores`.

    :param eval_metric: ai2-olmo-eval's metric, whose updates take what that package's batches hold.
    :param left_out: questions that were not asked, since an option alone is longer than the model's context.
    :param shortened: questions that lost the beginning of their prompt, since the whole is longer than the context.
    """

    left_out: int = 0
    shortened: int = 0

    def update_metrics(self, batch: dict[str, Any], ce_loss: Tensor, logits: Tensor) -> None:
        """Take the answers of one batch. ``logits``: (batch, sequence, vocabulary).

        The package would add up log-likelihoods in the precision of the logits: 16 bits do not hold them.
        """
        self._metric.update(batch, logits.float())

    def compute_metrics(self) -> dict[str, float]:
        """The scores under the names that OLMo gives them: ``eval/downstream/LABEL_METRIC``."""
        names = {ACCURACY: self._metric.metric_type}
        return {f"eval/downstream/{self.label}_{names.get(one.metric, one.metric)}": one.value for one in self.scores()}

    def scores(self) -> list[Score]:
        """The task's own metric first, then what else its log-likelihoods tell. All ranks must call this together.

        Questions of which a limit in the loop left out options do not count.
        """
        metric = self._metric
        with metric.sync_context():
            states = metric.loglikelihoods, metric.bpbs, metric.celosses, metric.labels
            likelihoods, bits, nats, labels = (_by_question(state) for state in states)
        whole = [one for one, count in self._options().items() if len(likelihoods.get(one, {})) == count]
        if not whole:
            return []
        if metric.metric_type in ("bpb", "ce_loss"):
            told = [Score.mean(BITS_PER_BYTE, [bits[one][0] for one in whole])]
            if metric.metric_type == "ce_loss":
                told.append(Score.mean("nats_per_character", [nats[one][0] for one in whole]))
            return told
        chosen = [_likeliest(likelihoods[one]) for one in whole]
        right = [int(labels[one][0]) for one in whole]
        if metric.metric_type == "f1":
            return [Score("f1", metric.custom_f1_score(right, chosen, pos_label=0), None, len(whole))]
        return [
            Score.mean(ACCURACY, [float(answer == label) for answer, label in zip(chosen, right, strict=True)]),
            Score.mean(BITS_PER_BYTE, [bits[one][label] for one, label in zip(whole, right, strict=True)]),
        ]

    def _options(self) -> Counter[int]:
        """How many options each question has."""
        samples: Any = self.eval_loader.dataset
        options: Counter[int] = Counter()
        for sample in samples:
            options[sample["doc_id"]] += len(sample["choices"]) if samples.fast_mc else 1
        return options

    @property
    def _metric(self) -> ICLMetric:
        assert isinstance(self.eval_metric, ICLMetric)
        return self.eval_metric


def _by_question(state: State) -> dict[int, dict[int, float]]:
    """Values by question and option. What the sampler gave to two ranks, to give as much to each, counts once."""
    values: dict[int, dict[int, float]] = {}
    for question, option, value in state:
        if question is not None and option is not None and value is not None:
            values.setdefault(question, {}).setdefault(option, value)
    return values


def _likeliest(options: dict[int, float]) -> int:
    """The first of the likeliest options."""
    return max(sorted(options), key=lambda option: options[option])


def build_task_evaluator(
    label: str,
    tokenizer: TaskTokenizer,
    *,
    context: int,
    batch_size: int,
    device: torch.device,
    limit: int | None = None,
    subset_num_batches: int | None = None,
) -> TaskEvaluator:
    """The evaluator of one task; the ranks share its options out.

    :param label: ai2-olmo-eval's.
    :param context: the longest sequence of the model. Longer prompts lose their beginning.
    :param batch_size: options, on each rank.
    :param limit: only so many questions, the first ones, each with all its options.
    :param subset_num_batches: OLMo's own limit in the loop, which also breaks off in the middle of a question.
    :raises InputError: when no question fits the context.
    """
    dataset = build_task(label, tokenizer, model_ctx_len=context)
    left_out, shortened = _select(dataset, context, limit)
    if not dataset.samples:
        what = f"no answer of its {left_out} questions fits the model's context of {context} tokens"
        raise InputError(f"task {label}", what, "leave this task out")
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset,  # type: ignore[arg-type]
        num_replicas=get_world_size(),
        rank=get_global_rank(),
        shuffle=False,
    )
    return TaskEvaluator(
        label=label,
        type=EvaluatorType.downstream,
        eval_loader=DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=batch_size,
            collate_fn=dataset.collate_fn,
            sampler=sampler,
        ),
        eval_metric=ICLMetric(metric_type=dataset.metric_type).to(device),
        subset_num_batches=subset_num_batches,
        left_out=left_out,
        shortened=shortened,
    )


def evaluator_in_the_loop(
    cfg: TrainConfig, evaluator: EvaluatorConfig, tokenizer: TaskTokenizer, device: torch.device
) -> TaskEvaluator:
    """The evaluator that a ``downstream`` entry of a config's ``evaluators`` describes."""
    return build_task_evaluator(
        evaluator.label,
        tokenizer,
        context=cfg.model.max_sequence_length,
        batch_size=evaluator.device_eval_batch_size or cfg.device_eval_batch_size,
        device=device,
        subset_num_batches=evaluator.subset_num_batches,
    )


def _select(dataset: ICLMultiChoiceTaskDataset, context: int, limit: int | None) -> tuple[int, int]:
    """Keep the questions to be asked; how many of the first ``limit`` were left out, and how many are shortened.

    The package scores an option from ``ctx_len - 1`` on (olmo_eval/metrics.py:95): without a token of the prompt in
    front, where an option fills the context, it would score other tokens and not say so.
    """
    questions: dict[int, list[dict[str, Any]]] = {}
    for sample in dataset.samples:
        questions.setdefault(sample["doc_id"], []).append(sample)
    asked = list(questions.values())[:limit]
    fitting = [options for options in asked if all(option["ctx_len"] > 0 for option in options)]
    dataset.samples = [option for options in fitting for option in options]
    too_long = [any(len(one["ctx"]) + one["cont_len"] - 1 > context for one in options) for options in fitting]
    return len(asked) - len(fitting), sum(too_long)
