"""A model x task table of evaluation results: what stands in it and what a reader must be told beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .columns import LOWER_IS_BETTER, PERPLEXITY, Average, Catalogue, Column, Selection
from .errors import InputError
from .model_results import ModelResults, collect, errors_note, listed
from .results import Row

METRICS = {
    "f1": "F1",
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
}


def metric_name(metric: str) -> str:
    """As headings and axes have it."""
    return METRICS.get(metric, metric.replace("_", " "))


def category_name(category: str) -> str:
    """World knowledge, of world_knowledge."""
    return category.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Block:
    """Columns that are shown together: those of one category and metric, with their average last."""

    title: str
    columns: tuple[Column | Average, ...]
    headings: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """All models by all selected columns, and the notes below it."""

    models: tuple[ModelResults, ...]
    selection: Selection
    catalogue: Catalogue
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column | Average, ...]:
        """In order, each average behind its last column."""
        found: list[Column | Average] = list(self.selection.columns)
        for average in self.selection.averages:
            found.insert(1 + max(found.index(c) for c in average.columns if c in found), average)
        return tuple(found)

    def heading(self, column: Column | Average) -> str:
        """Short, for a block whose title says category and metric."""
        if isinstance(column, Average):
            return "average" if len(column.columns) == column.of else f"average of {len(column.columns)} of {column.of}"
        if column.task in self.catalogue.tasks:
            title, own = self.catalogue.tasks[column.task].title, self.catalogue.column(column.task)
            if column == own:
                return title
            split = "" if column.split == own.split else f", split {column.split}"
            return f"{title} ({metric_name(column.metric)}{split})"
        task, _, source = column.task.partition("/")
        texts = {other.text for other in self.selection.columns if other.task.split("/")[0] == task}
        where = [f"of {source}"] if source else []
        where += [f"on {column.text}"] if len(texts) > 1 and column.text else []
        if task == PERPLEXITY:
            return " ".join([metric_name(column.metric), *where])
        return f"{column.task} ({metric_name(column.metric)})"

    def blocks(self) -> list[Block]:
        """The averages alone where there are several, then each category and metric, then what has no category."""
        found: list[tuple[str, Sequence[Column | Average]]] = []
        averages, left = self.selection.averages, list(self.selection.columns)
        if len(averages) > 1:
            found.append(("Category averages", averages))
        for average in averages:
            here = [column for column in average.columns if column in left]
            left = [column for column in left if column not in here]
            found.append((f"{category_name(average.category)}: {metric_name(average.metric)}", [*here, average]))
        by_title: dict[str, list[Column | Average]] = {}
        for column in left:
            by_title.setdefault(self._title(column), []).append(column)
        return [self._block(title, columns) for title, columns in [*found, *by_title.items()]]

    def _title(self, column: Column) -> str:
        """Of the block of a column that is part of no average."""
        if column.task.split("/")[0] == PERPLEXITY:
            return "Held-out sequences"
        category = self.catalogue.category(column)
        return "Further tasks" if category == "other" else f"{category_name(category)}, not in the average"

    def _block(self, title: str, columns: Sequence[Column | Average]) -> Block:
        if title == "Category averages":
            headings = [self._average_heading(column) for column in columns if isinstance(column, Average)]
        else:
            headings = [self.heading(column) for column in columns]
        return Block(title, tuple(columns), tuple(headings))

    def _average_heading(self, average: Average) -> str:
        part = "" if len(average.columns) == average.of else f", {len(average.columns)} of {average.of} tasks"
        return f"{category_name(average.category)} ({metric_name(average.metric)}{part})"


def build_table(
    rows: Iterable[Row],
    catalogue: Catalogue,
    tasks: Sequence[str] = (),
    categories: Sequence[str] = (),
    step: int | None = None,
) -> Table:
    """The table of rows: see ``Catalogue.select`` for `tasks` and `categories`, ``collect`` for `step`.

    Raises InputError where no row is left, or a task or category is unknown.
    """
    known = list(rows)
    selection = catalogue.select(known, tasks, categories)
    found = collect(known, selection.all_columns, step)
    if not found.models:
        steps = sorted({row.step for row in known if row.step is not None})
        raise InputError(f"--step {step}", "no row is of this step", f"there are {listed(map(str, steps))}")
    table = Table(found.models, selection, catalogue, found.notes)
    notes = [*_missing(table), *found.notes, *_unequal(table), *_reading(table)]
    return Table(found.models, selection, catalogue, tuple(notes))


def _missing(table: Table) -> list[str]:
    """Why an average is not there: which tasks which model lacks."""
    notes = []
    for average in table.selection.averages:
        name = f"{category_name(average.category)} ({metric_name(average.metric)})"
        lacking: dict[tuple[str, ...], list[str]] = {}
        for model in table.models:
            if missing := model.missing(average):
                lacking.setdefault(tuple(table.heading(column) for column in missing), []).append(model.name)
        for tasks, names in lacking.items():
            who = "any model" if len(names) == len(table.models) else listed(names)
            notes.append(f"{name}: no average for {who}, since there is no value of {listed(tasks)}.")
        if len(average.columns) < average.of:
            notes.append(f"{name}: averaged over {len(average.columns)} of its {average.of} tasks, as asked.")
    return notes


def _unequal(table: Table) -> list[str]:
    """Values that rest on fewer examples or seeds than others."""
    notes, part = [], []
    for column in table.selection.columns:
        task = table.catalogue.tasks.get(column.task)
        cells = [cell for model in table.models if (cell := model.cell_of(column))]
        counts = sorted({cell.examples for cell in cells if cell.examples is not None})
        whole = task.examples if task is not None and column == table.catalogue.column(column.task) else None
        if counts and (len(counts) > 1 or (whole is not None and counts[0] < whole)):
            of = f" of {whole:,}" if whole is not None else ""
            part.append(f"{table.heading(column)} {' or '.join(f'{count:,}' for count in counts)}{of}")
    if part:
        notes.append(f"Measured on a part of the examples: {listed(part, 24)}.")
    for model in table.models:
        cells = [cell for column in table.selection.columns if (cell := model.cell_of(column))]
        seeds = sorted({cell.seeds for cell in cells})
        if len(seeds) > 1:
            most = [
                table.heading(c) for c in table.selection.columns if (x := model.cell_of(c)) and x.seeds < seeds[-1]
            ]
            notes.append(f"{model.name} has {seeds[-1]} seeds, but fewer of {listed(most)}.")
    return notes


def _reading(table: Table) -> list[str]:
    """How to read values and errors."""
    cells = [cell for m in table.models for column in table.columns if (cell := m.cell_of(column))]
    notes = errors_note(cells)
    lower = dict.fromkeys(metric_name(c.metric) for c in table.columns if c.metric in LOWER_IS_BETTER)
    if lower:
        notes.append(f"Of {' and '.join(lower)} lower is better, of all else higher.")
    return notes
