"""The evaluator of synthetic tasks: 100% for a model that knows the answers, nothing for one that knows none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_data import KINDS, TASKS, make_data, make_model
from torch import Tensor, nn

from olmoe_parrots.evaluation.synthetic import SyntheticEvaluator
from olmoe_parrots.model import ModelOutput
from olmoe_parrots.synthetic.build import load_task
from olmoe_parrots.synthetic.task import EOS, PAD, Measurement, Queries

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
CPU = torch.device("cpu")


class Knows(nn.Module):
    """Has the answers by heart, and says PAD after a sequence that is not the beginning of one.

    Its cache of keys and values is the tokens so far, so that it knows what it has been told.
    """

    def __init__(self, queries: Queries, vocabulary: int) -> None:
        super().__init__()
        self.next: dict[tuple[int, ...], int] = {}
        self.vocabulary = vocabulary
        for prompt, answer in zip(queries.prompts_QT.tolist(), queries.answers_QT.tolist(), strict=True):
            for place, token in enumerate(answer):
                self.next[(*prompt, *answer[:place])] = token

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False, last_logits_only: bool = False
    ) -> ModelOutput:
        assert use_cache and last_logits_only
        if past_key_values is not None:
            input_ids = torch.cat([past_key_values[0][0], input_ids], dim=1)
        said = torch.tensor([self.next.get(tuple(row), PAD) for row in input_ids.tolist()])
        logits = nn.functional.one_hot(said, self.vocabulary)[:, None].float()
        return ModelOutput(logits, [(input_ids, input_ids)], None, None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    return {name: make_data(root / name, name) for name in TASKS}


def evaluator_of(folder: Path, **options: Any) -> SyntheticEvaluator:
    return SyntheticEvaluator("label", *load_task(folder), **{"batch_size": 64, **options})


def values_of(measurements: list[Measurement]) -> dict[str, float]:
    return {measurement.metric: measurement.value for measurement in measurements}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_model_that_knows_the_answers_has_all_right(folders: dict[str, Path], name: str) -> None:
    evaluator = evaluator_of(folders[name])
    model = Knows(evaluator.queries, len(evaluator.task.vocabulary.words))
    measured = evaluator.measure(model, CPU)
    metric = {"phone_book": "accuracy", "shortest_path": "right"}[name]
    assert values_of(measured)[metric] == 1.0
    assert [one.examples for one in measured if one.metric == metric] == [200]


def test_one_wrong_answer_is_one_wrong(folders: dict[str, Path]) -> None:
    """By batches of any size, the last of them short: each answer is scored with its own query."""
    for batch_size in (1, 7, 200, 1000):
        evaluator = evaluator_of(folders["phone_book"], batch_size=batch_size)
        model = Knows(evaluator.queries, len(evaluator.task.vocabulary.words))
        prompt, answer = evaluator.queries.prompts_QT[150].tolist(), evaluator.queries.answers_QT[150].tolist()
        model.next[(*prompt, *answer[:2])] = EOS
        assert values_of(evaluator.measure(model, CPU)) == {"accuracy": 199 / 200, "digit_accuracy": 798 / 800}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(TASKS))
def test_an_untrained_model_has_none_right(folders: dict[str, Path], name: str, kind: str) -> None:
    evaluator = evaluator_of(folders[name])
    values = values_of(evaluator.measure(make_model(kind, evaluator.task), CPU))
    if name == "phone_book":
        assert values["accuracy"] == 0.0
        assert values["digit_accuracy"] < 0.15, "a digit in ten at best"
    else:
        assert values["right"] < 0.02
        assert values["malformed"] + values["invalid_edge"] > 0.9


def test_a_subset_is_the_first_batches(folders: dict[str, Path]) -> None:
    evaluator = evaluator_of(folders["phone_book"], batch_size=10, batches=3)
    model = Knows(evaluator.queries, len(evaluator.task.vocabulary.words))
    model.next = {prompt: token for prompt, token in model.next.items()}
    for prompt in evaluator.queries.prompts_QT[30:].tolist():
        model.next[tuple(prompt)] = PAD
    measured = evaluator.measure(model, CPU)
    assert [(one.value, one.examples) for one in measured] == [(1.0, 30), (1.0, 30)]


def test_decoded_answers_are_in_the_order_of_the_prompts(folders: dict[str, Path]) -> None:
    evaluator = evaluator_of(folders["phone_book"], batch_size=13)
    model = Knows(evaluator.queries, len(evaluator.task.vocabulary.words))
    decoded = evaluator.decode(model, evaluator.queries.prompts_QT, CPU)
    assert np.array_equal(decoded, evaluator.queries.answers_QT)
