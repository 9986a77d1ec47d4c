"""The benchmarks of the paper that need generated answers, through lm-evaluation-harness.

World knowledge by F1 and exact match of a short answer, mathematics by the accuracy of a solution's last number or
expression. Prompts, stop strings and scoring stand in the task files of :mod:`olmoe_parrots.evaluation.lm_tasks`,
which that library's own command reads too. Decoding is greedy.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.tasks import ACCURACY, EvaluationTask, MeasuredTask

if TYPE_CHECKING:
    from olmoe_parrots.evaluation.checkpoints import LoadedModel
    from olmoe_parrots.evaluation.measurements import Settings
    from olmoe_parrots.evaluation.rows import Evaluated
    from olmoe_parrots.evaluation.task_tokenizer import TaskTokenizer
    from olmoe_parrots.results import Row

F1, EXACT_MATCH = "f1", "exact_match"
EXTRA = "eval"
SEED = 1234
"""lm-evaluation-harness's own for drawing worked examples."""


def _fact(benchmark: str, title: str, split: str, examples: int) -> EvaluationTask:
    name = f"{benchmark}_gen"
    prompt = "Question: QUESTION\\nAnswer:| the first line"
    return EvaluationTask(name, title, "world_knowledge", F1, name, 5, split, prompt, examples)


def _word_problem(benchmark: str, title: str, split: str, examples: int) -> EvaluationTask:
    name = f"{benchmark}_gen"
    prompt = "Q: PROBLEM\\nA:| the number that the solution ends with"
    return EvaluationTask(name, title, "math", ACCURACY, name, 8, split, prompt, examples)


def _math(benchmark: str, title: str, shots: int, prompt: str) -> EvaluationTask:
    name = f"{benchmark}_gen"
    return EvaluationTask(
        name, title, "math", ACCURACY, name, shots, "test", f"{prompt}| the solution's final answer", 5000
    )


_WORLD_KNOWLEDGE = (
    _fact("trivia_qa", "TriviaQA", "validation", 17944),
    _fact("natural_questions", "Natural Questions", "validation", 3610),
    _fact("hotpot_qa", "HotpotQA, closed book", "validation", 7405),
    _fact("web_questions", "WebQuestions", "test", 2032),
    _fact("complex_web_questions", "ComplexWebQuestions", "validation", 3519),
)
_PROBLEMS = (
    _word_problem("svamp", "SVAMP", "test", 300),
    _word_problem("gsm8k", "GSM8K", "test", 1319),
    _word_problem("gsm_hard", "GSM-Hard", "train", 1319),
    _math("hendrycks_math", "Hendrycks-MATH", 0, "Problem: PROBLEM\\nAnswer:"),
    _math("minerva_math", "Minerva-MATH", 4, "Problem:\\nPROBLEM\\n\\nSolution:"),
)

GENERATION_TASKS: dict[str, EvaluationTask] = {task.name: task for task in (*_WORLD_KNOWLEDGE, *_PROBLEMS)}
"""The catalogue, by name, which is also that of lm-evaluation-harness's task."""

GENERATION_GROUPS: dict[str, tuple[str, ...]] = {
    "world_knowledge_gen": tuple(task.name for task in _WORLD_KNOWLEDGE),
    "math_gen": tuple(task.name for task in _PROBLEMS),
}
"""All benchmarks of the paper's two categories that need generated answers."""


@dataclass(frozen=True)
class GenerationScore:
    """What a task measured.

    Args:
        metric: ``f1``, ``exact_match`` or ``accuracy``; the mean over the examples.
        standard_error: of that mean; None for one example.
        truncated: prompts that did not fit into the model's context, and lost their beginning.
    """

    task: EvaluationTask
    metric: str
    value: float
    standard_error: float | None
    examples: int
    truncated: int


def prepare_tasks(
    names: Iterable[str], local: str | None = None, training_problems: str | None = None
) -> dict[str, Any]:
    """lm-evaluation-harness's tasks with their data, by name: all that can be missing, before a model is loaded.

    Args:
        names: of GENERATION_TASKS or GENERATION_GROUPS.
        local: a folder, on disk or under ``s3://``, with a folder of files for each benchmark; None for the hub.
        training_problems: a file of drawn training problems, which are asked in place of the test split.

    Raises InputError for an unknown name, a package that is not installed, and data that is not there.
    """
    asked = resolve_generated(names)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        remedy = f'install the {EXTRA} extra: pip install -e ".[{EXTRA}]"'
        raise InputError("generation tasks", f"{error.name} is not installed", remedy) from None
    from olmoe_parrots.evaluation.lm_tasks import FOLDER

    places = {"local": local, "training_problems": training_problems}
    metadata: Any = {name: place for name, place in places.items() if place is not None}
    with _quiet("lm_eval"):
        manager = TaskManager(include_path=FOLDER, include_defaults=False, metadata=metadata)
        return {name: manager.load(name)["tasks"][name] for name in asked}


def evaluate_generation(
    loaded: LoadedModel,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = SEED,
    samples: Path | None = None,
    tokenizer: TaskTokenizer | None = None,
    split: str | None = None,
) -> Iterator[GenerationScore]:
    """The scores of each task as soon as it is done, its own metric first.

    Args:
        tasks: from :func:`prepare_tasks`; each may be evaluated again, with another model.
        limit: of each task, so many examples from the first; all when None.
        seed: worked examples are drawn by it, where they are drawn.
        samples: a file that gets one JSON line an example appended: checkpoint, task, split, number, question,
            prompt, generated, extracted, gold and scores.
        tokenizer: the run's own when None.
        split: what samples say of it; the task's when None.

    Each of several ranks must hold the whole model and call this; the examples are shared out, and only rank 0 yields.
    Raises InputError where ranks are more than examples.
    """
    from lm_eval.evaluator import evaluate

    from olmoe_parrots.evaluation.lm_adapter import ParrotsLM

    lm = ParrotsLM(loaded, batch_size=batch_size, tokenizer=tokenizer)
    for name, task in tasks.items():
        lm.truncated = 0
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        if count < lm.world_size:
            raise InputError(name, f"{count} examples are fewer than {lm.world_size} ranks", "start fewer ranks")
        task.set_fewshot_seed(seed)
        results: Any = evaluate(lm, {"tasks": {name: task}, "groups": {}}, limit=count, bootstrap_iters=1)
        truncated = sum(lm.gather_object(lm.truncated) or ()) if lm.world_size > 1 else lm.truncated
        if results is None:
            continue
        if samples is not None:
            about = {"checkpoint": loaded.path, "task": name, "split": split or GENERATION_TASKS[name].split}
            _append_samples(samples, about, results["samples"][name])
        for metric in task.higher_is_better():
            value = results["results"][name][f"{metric},answer"]
            error = results["results"][name][f"{metric}_stderr,answer"]
            standard_error = None if error == "N/A" else float(error)
            yield GenerationScore(GENERATION_TASKS[name], metric, float(value), standard_error, count, truncated)


@dataclass(frozen=True)
class Generated(MeasuredTask):
    """One task as the evaluation command measures it, like :class:`~olmoe_parrots.evaluation.measurements.Benchmark`.

    Args:
        prepared: the task's of :func:`prepare_tasks`.
        samples: a file that a line an example is appended to.
        local: the folder of the data, where it is not the hub's.
        about: what rows say besides, of data that is neither.
    """

    task: EvaluationTask
    prepared: Any
    tokenizer: TaskTokenizer
    settings: Settings
    samples: Path | None = None
    local: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        told = self.settings.details()
        told["measured_with"] = {**told["measured_with"], "lm-eval": version("lm-eval")}
        told |= {"shots": self.task.shots, "examples_seed": SEED, "prompt": prompt_digest(self.prepared)}
        object.__setattr__(self, "details", {**told, "local": self.local, **self.about})

    def rows(self, evaluated: Evaluated, loop: Any) -> list[Row]:
        """Measure. All ranks must call this together; rank 0 gets the rows.

        Args:
            loop: whose ``model`` is measured.
        """
        from olmoe_parrots.evaluation.checkpoints import LoadedModel
        from olmoe_parrots.evaluation.harness import Score

        facts = evaluated.facts
        loaded = LoadedModel(loop.model, self.settings.cfg, facts["step"], facts["checkpoint"])
        found = evaluate_generation(
            loaded,
            {self.name: self.prepared},
            limit=self.settings.limit,
            batch_size=self.settings.batch_size,
            samples=self.samples,
            tokenizer=self.tokenizer,
            split=self.task.split,
        )
        rows: list[Row] = []
        for one in found:
            score = Score(one.metric, one.value, one.standard_error, one.examples)
            rows += evaluated.rows(self.name, self.task.split, [score], {**self.details, "truncated": one.truncated})
        return rows


def _append_samples(path: Path, about: Mapping[str, Any], found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for sample in sorted(found, key=lambda sample: sample["doc_id"]):
            document = sample["doc"]
            row = {
                **about,
                "number": sample["doc_id"],
                "question": document.get("question", document.get("problem")),
                "prompt": sample["arguments"][0][0],
                "generated": sample["resps"][0][0],
                "extracted": sample["filtered_resps"][0],
                "gold": document.get("answers", document.get("answer")),
                **{metric: sample[metric] for metric in sample["metrics"]},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def prompt_digest(prepared: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of all that a task puts around a question.

    That is its worked examples and its prompt, the strings at which answers stop, and their length.
    """
    blank = {"question": "QUESTION", "problem": "PROBLEM", "answer": "ANSWER", "answers": ["ANSWER"]}
    prepared.set_fewshot_seed(SEED)
    prompt = prepared.fewshot_context(blank, num_fewshot=prepared.config.num_fewshot)
    text = json.dumps([prompt, prepared.config.generation_kwargs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve_generated(names: Iterable[str]) -> list[str]:
    """The tasks of the groups and names, each once. Raises InputError for an unknown name, with the nearest ones."""
    found: dict[str, None] = {}
    for name in names:
        for part in GENERATION_GROUPS.get(name, (name,)):
            if part not in GENERATION_TASKS:
                near = difflib.get_close_matches(part, {*GENERATION_GROUPS, *GENERATION_TASKS}, n=3, cutoff=0.4)
                remedy = f"did you mean {', '.join(near)}?" if near else "see --list"
                raise InputError(f"task {part!r}", "there is no such task", remedy)
            found[part] = None
    return list(found)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the library's warnings, which tell the writers of task files what they can do."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
