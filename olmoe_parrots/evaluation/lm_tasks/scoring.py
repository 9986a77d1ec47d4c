"""What the task files name: filters that take the answer out of a generated text, and its scores.

lm-evaluation-harness gives a filter the responses of all documents, a list each, and a scoring function one document
with its filtered response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from olmoe_parrots.evaluation.answers import (
    exact_match,
    extract_expression,
    extract_number,
    f1,
    is_equivalent,
    numbers_equal,
)


def _each(extract: Callable[[str], str], responses: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[extract(text) for text in texts] for texts in responses]


def first_line(responses: Iterable[Sequence[str]], documents: Any) -> list[list[str]]:
    """The first line that is not empty."""
    return _each(lambda text: text.strip().partition("\n")[0].strip(), responses)


def final_number(responses: Iterable[Sequence[str]], documents: Any) -> list[list[str]]:
    """The number that a solution ends with; "" where it has none."""
    return _each(extract_number, responses)


def final_expression(responses: Iterable[Sequence[str]], documents: Any) -> list[list[str]]:
    """The final answer of a solution, in LaTeX."""
    return _each(extract_expression, responses)


def first_answer(document: dict[str, Any]) -> str:
    """What a worked example of a question of fact answers."""
    answer: str = document["answers"][0]
    return answer


def score_text(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 and exact match, each the best over the answers."""
    return {"f1": f1(results[0], document["answers"]), "exact_match": exact_match(results[0], document["answers"])}


def score_number(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Accuracy, numbers compared as numbers."""
    return {"accuracy": float(numbers_equal(results[0], document["answer"]))}


def score_expression(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Accuracy, by mathematical equivalence."""
    return {"accuracy": float(is_equivalent(results[0], document["answer"]))}
