"""The benchmarks that need generated answers: where their data is, and what a row of it becomes.

The task files beside this module name :func:`load` as their ``custom_dataset``, so that the rows of every benchmark of
a kind have the same columns: ``question`` and ``answers`` (questions of fact), ``question`` and ``answer`` (word
problems), ``problem`` and ``answer`` (MATH).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_prep.evaluation_tasks import MATH_SUBJECTS
from olmoe_parrots import remote
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.answers import boxed_content
from olmoe_parrots.evaluation.training_problems import read_problems

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's data is.

    Args:
        hub: the dataset's id on the hub.
        configs: of the hub, read one after the other; None for a dataset without configs.
        split: the one that is evaluated.
        examples_split: the one that worked examples are drawn from; None where they are fixed or none are given.
        convert: a row in the hub's columns to the task's columns.
    """

    hub: str
    configs: tuple[str | None, ...]
    split: str
    examples_split: str | None
    convert: Callable[[Row], Row]

    @property
    def splits(self) -> tuple[str, ...]:
        """The evaluated one first."""
        return (self.split, self.examples_split) if self.examples_split else (self.split,)


def _trivia_qa(row: Row) -> Row:
    answer = row["answer"]
    return {"question": row["question"], "answers": _distinct([answer["value"], *answer["aliases"]])}


def _natural_questions(row: Row) -> Row:
    # Google's queries have no question mark.
    return {"question": f"{row['question'].rstrip('? ')}?", "answers": _distinct(row["answer"])}


def _hotpot_qa(row: Row) -> Row:
    return {"question": row["question"], "answers": [row["answer"]]}


def _web_questions(row: Row) -> Row:
    return {"question": row["question"], "answers": _distinct(row["answers"])}


def _complex_web_questions(row: Row) -> Row:
    answers = row["answers"]
    if isinstance(answers, dict):  # as `datasets` gives a sequence of structures
        answers = [
            {"answer": name, "aliases": more} for name, more in zip(answers["answer"], answers["aliases"], strict=True)
        ]
    names = [name for answer in answers for name in (answer["answer"], *(answer["aliases"] or ()))]
    return {"question": row["question"], "answers": _distinct(name for name in names if name)}


def _svamp(row: Row) -> Row:
    body = row["Body"].strip()
    stop = "" if body.endswith((".", "?", "!", ",")) else "."
    return {"question": f"{body}{stop} {row['Question'].strip()}", "answer": str(row["Answer"])}


def _gsm8k(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"].rpartition("####")[2].strip()}


def _gsm_hard(row: Row) -> Row:
    return {"question": row["input"], "answer": str(row["target"])}


def _math(row: Row) -> Row:
    answer = boxed_content(row["solution"])
    if answer is None:
        raise TypeError("its solution has no \\boxed answer")
    return {"problem": row["problem"], "answer": answer}


def _distinct(answers: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(answers))


BENCHMARKS: dict[str, Benchmark] = {
    "trivia_qa": Benchmark("mandarjoshi/trivia_qa", ("rc.nocontext",), "validation", "train", _trivia_qa),
    "natural_questions": Benchmark(
        "google-research-datasets/nq_open", ("nq_open",), "validation", "train", _natural_questions
    ),
    "hotpot_qa": Benchmark("hotpotqa/hotpot_qa", ("fullwiki",), "validation", "train", _hotpot_qa),
    "web_questions": Benchmark("stanfordnlp/web_questions", (None,), "test", "train", _web_questions),
    # of its test split the answers are not published
    "complex_web_questions": Benchmark(
        "drt/complex_web_questions", ("complex_web_questions",), "validation", "train", _complex_web_questions
    ),
    "svamp": Benchmark("ChilleD/SVAMP", (None,), "test", None, _svamp),
    "gsm8k": Benchmark("openai/gsm8k", ("main",), "test", None, _gsm8k),
    "gsm_hard": Benchmark("reasoning-machines/gsm-hard", (None,), "train", None, _gsm_hard),
    "math": Benchmark("EleutherAI/hendrycks_math", MATH_SUBJECTS, "test", None, _math),
}
"""By the names of their folders below ``--local DIR``, which are those that decontamination reads too."""


def load(name: str, local: str | None = None, training_problems: str | None = None, **_: Any) -> dict[str, Any]:
    """The splits of a benchmark that its task needs, {split: datasets.Dataset}.

    Args:
        name: a key of BENCHMARKS.
        local: a folder, on disk or under ``s3://``, that holds a folder of files for each benchmark; None for the hub.
        training_problems: a file of drawn training problems, of which those of the benchmark stand in for its evaluated
            split; see :mod:`olmoe_parrots.evaluation.training_problems`.

    lm-evaluation-harness calls this with the metadata of a task, so that its ``--metadata '{"local": "DIR"}'`` has
    local files read. Raises InputError for data that is not there, naming what to bring where, or that cannot be read.
    """
    from datasets import Dataset

    benchmark = BENCHMARKS[name]
    if training_problems is not None:
        return {benchmark.split: Dataset.from_list(read_problems(training_problems).of_group(name))}
    found = {}
    for split in benchmark.splits:
        every = _hub_rows(name, split) if local is None else _local_rows(name, split, local)
        rows = [_converted(benchmark, where, row) for where, row in every]
        if not rows:
            raise InputError(f"{name}, split {split}", "it holds no rows", "bring its files again")
        found[split] = Dataset.from_list(rows)
    return found


def _converted(benchmark: Benchmark, where: str, row: Row) -> Row:
    try:
        return benchmark.convert(row)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"the row is not of {benchmark.hub}'s columns ({type(error).__name__}: {error})"
        raise InputError(where, what, "bring files with the hub's columns") from None


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Row]]:
    import datasets

    benchmark = BENCHMARKS[name]
    for config in benchmark.configs:
        told = f"{benchmark.hub}{f', config {config}' if config else ''}, split {split}"
        try:
            # Without trust_remote_code=False a terminal is asked whether a repository's script may run.
            rows = datasets.load_dataset(benchmark.hub, config, split=split, trust_remote_code=False)
        except Exception as error:  # datasets, huggingface_hub, fsspec and requests each raise their own
            what = f"the hub does not give it ({type(error).__name__}: {error})"[:200]
            file = f"DIR/{name}/{f'{config}/' if len(benchmark.configs) > 1 else ''}{split}.parquet (or .jsonl)"
            remedy = f"check the network, or bring it as {file} and use --local DIR"
            raise InputError(told, what, remedy) from None
        for number, row in enumerate(rows):
            yield f"{told}, row {number}", row


def _local_rows(name: str, split: str, local: str) -> Iterator[tuple[str, Row]]:
    from data_prep.rows import read_rows

    for file in _local_files(name, split, local):

        def refuse(reason: str, file: str = file) -> NoReturn:
            raise InputError(file, f"a row is unusable ({reason})", "bring the file again")

        with remote.local_copy(file) as path, open(path, "rb") as stream:
            for number, row in read_rows(stream, file, (), (), refuse):
                yield f"{file}, row {number}", row


def _local_files(name: str, split: str, local: str) -> list[str]:
    """The files of a split below ``local``/NAME, laid out as on the hub or as SPLIT.jsonl."""
    from data_prep.mixture import Source
    from data_prep.rows import DATA_SUFFIXES
    from data_prep.units import local_files

    benchmark, folder = BENCHMARKS[name], remote.join(local, name)
    if remote.is_remote(folder):
        names = [address.removeprefix(f"{folder}/") for address in remote.list_files(folder)]
    else:
        names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    names = [found for found in names if not any(part.startswith(".") for part in found.split("/"))]
    configs = tuple(config for config in benchmark.configs if config)
    found = local_files(names, Source(name, dataset=benchmark.hub, config=configs or None, split=split))
    if len(benchmark.splits) > 1:  # a file that names no split would serve as both
        found = [file for file in found if split in re.split(r"[^a-z]+", file.lower())]
    if not found:
        what = f"it has no file of the split {split}"
        remedy = f"bring {split}.parquet (or {', '.join(DATA_SUFFIXES[2:4])}) of {benchmark.hub} into it"
        raise InputError(folder, what, remedy)
    return [remote.join(folder, file) for file in found]
