"""Training problems, asked with the prompts and scored as the test problems of their benchmark: the generalization gap.

``data_prep`` lists them beside the shards (``data_prep.problems``), a JSON line each. The benchmark's task of
lm-evaluation-harness gets them in place of its test split, so that nothing but the problems differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olmoe_parrots import remote
from olmoe_parrots.errors import InputError

if TYPE_CHECKING:
    from olmoe_parrots.evaluation.generation_tasks import Generated
    from olmoe_parrots.evaluation.measurements import Settings
    from olmoe_parrots.evaluation.task_tokenizer import TaskTokenizer

PROBLEMS = "generalization_gap.jsonl"
"""The file's name in a dataset folder, ``data_prep.prepare.PROBLEMS``."""
SPLIT = "train"
TASKS_OF = {"gsm8k": ("gsm8k_gen",), "math": ("hendrycks_math_gen", "minerva_math_gen")}
"""The generation tasks that ask problems of a group. Groups are named as OpenMathInstruct names where a problem comes
from, which are also the names of ``lm_tasks.benchmarks.BENCHMARKS``."""
_COLUMN_OF_QUESTION = {"gsm8k": "question", "math": "problem"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingProblems:
    """What a file of drawn problems holds.

    Args:
        path: of the file, on disk or under ``s3://``.
        sha256: of its bytes, in hexadecimal.
        documents: by group, in the file's order, each problem in its task's columns.
    """

    path: str
    sha256: str
    documents: dict[str, list[dict[str, str]]]

    def of_group(self, group: str) -> list[dict[str, str]]:
        """A group's problems. Raises InputError where there are none."""
        if group not in self.documents:
            remedy = f"it holds those of {', '.join(self.documents)}"
            raise InputError(self.path, f"it holds no training problems of {group}", remedy)
        return self.documents[group]


def read_problems(place: str) -> TrainingProblems:
    """The drawn problems of a dataset folder, or of a file.

    Args:
        place: the folder or the file, on disk or under ``s3://``; under ``s3://`` a file is what ends in ``.jsonl``.

    Raises InputError where there is no such file, it is empty, and for a line that is none of a known group's problems.
    """
    is_file = place.endswith(".jsonl") if remote.is_remote(place) else not Path(place).is_dir()
    path = place if is_file else remote.join(place, PROBLEMS)
    try:
        content = remote.read_bytes(path) if remote.is_remote(path) else Path(path).read_bytes()
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        remedy = "name a folder that data_prep made of a mixture that draws problems, or the file in it"
        raise InputError(path, what, remedy) from None
    documents: dict[str, list[dict[str, str]]] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            group, document = _problem(f"{path}, line {number}", line)
            documents.setdefault(group, []).append(document)
    if not documents:
        raise InputError(path, "it holds no problems", "draw some, see docs/mixtures.md")
    return TrainingProblems(path, hashlib.sha256(content).hexdigest(), documents)


def _problem(where: str, line: bytes) -> tuple[str, dict[str, str]]:
    """The group of one line, and its problem in the columns of the group's tasks."""
    remedy = "make the file again with data_prep"
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"it is no JSON ({error})", remedy) from None
    if not isinstance(row, dict):
        raise InputError(where, "it is no JSON object", remedy)
    answer = row.get("expected_answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    texts: dict[str, Any] = {"group": row.get("group"), "question": row.get("question"), "expected_answer": answer}
    if missing := [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]:
        raise InputError(where, f"its {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing", remedy)
    group = texts["group"]
    if group not in TASKS_OF:
        what = f"the group {group!r:.80} is of no benchmark that is asked here"
        raise InputError(where, what, f"draw problems of {' and '.join(TASKS_OF)}")
    return group, {_COLUMN_OF_QUESTION[group]: texts["question"], "answer": texts["expected_answer"]}


def plan_problems(
    problems: TrainingProblems,
    asked: Iterable[str],
    tokenizer: TaskTokenizer,
    settings: Settings,
    samples: Path | None = None,
) -> list[Generated]:
    """What the evaluation command measures on training problems: rows of the split ``train``.

    Args:
        asked: names of generation tasks; of TASKS_OF those among them are measured, all where none is.
        samples: a file that a line a problem is appended to.

    Raises InputError where none of the tasks asked for is of a group that the file holds.
    """
    from olmoe_parrots.evaluation.generation_tasks import GENERATION_TASKS, Generated, prepare_tasks

    group_of = {name: group for group, names in TASKS_OF.items() for name in names}
    wanted = [name for name in asked if name in group_of] or list(group_of)
    names = [name for name in wanted if group_of[name] in problems.documents]
    if not names:
        what = f"it holds no training problems for {', '.join(wanted)}"
        raise InputError(problems.path, what, f"it holds those of {', '.join(problems.documents)}")
    _warn(problems, settings.cfg.data_folder)
    prepared = prepare_tasks(names, training_problems=problems.path)
    planned = []
    for name in names:
        group = group_of[name]
        count = len(problems.of_group(group))
        task = replace(GENERATION_TASKS[name], split=SPLIT, examples=count)
        about: dict[str, Any] = {"training_problems": problems.path, "problems_sha256": problems.sha256}
        about |= {"groups": [group], "problems": count}
        planned.append(Generated(task, prepared[name], tokenizer, settings, samples, about=about))
    return planned


def _warn(problems: TrainingProblems, trained_on: str | None) -> None:
    """Of problems of other data than the model's, and of word problems whose answer is no number to score by."""
    from olmoe_parrots.evaluation.answers import parse_number

    folder = problems.path.rpartition("/")[0]
    if trained_on and Path(trained_on).name != Path(folder).name:
        log.warning("%s: the run was trained on %s, and these are problems of other data", folder, trained_on)
    answers = [document["answer"] for document in problems.documents.get("gsm8k", [])]
    if wrong := [answer for answer in answers if parse_number(answer) is None]:
        told = f"{len(wrong)} of {len(answers)} of the group gsm8k expect what is no number, such as {wrong[0]!r:.60}"
        log.warning("%s: %s; no answer to them is right", problems.path, told)
