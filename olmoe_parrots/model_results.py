"""What the rows of evaluations come to: a value for each model and task, an average for each model and category.

The paper's average of a category is the plain mean over the category's tasks, each by the category's metric: F1 for
world knowledge, accuracy for commonsense and math. Tasks of another metric are averaged among themselves. A model that
lacks one of the tasks has no average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .columns import Average, Column, evaluations
from .results import Row

BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0


class Variant(NamedTuple):
    """What tells apart models of one name: the data they were trained on and the learning rate."""

    model: str
    data: str | None = None
    learning_rate: float | None = None

    @classmethod
    def of_row(cls, row: Row) -> Variant:
        return cls(row.model, row.data.get("name"), row.learning_rate)


@dataclass(frozen=True)
class Cell:
    """A value with its standard error (None: unknown), over `seeds` seeds."""

    value: float
    error: float | None
    seeds: int
    examples: int | None = None


@dataclass
class ModelResults:
    """One model's rows: for each column the one that counts of each seed."""

    name: str
    last: Row
    """Holds its parameters, architecture, tokens and FLOPs."""
    values: dict[Column, dict[int | None, Row]] = field(default_factory=dict)
    _known: dict[Column | Average, Cell | None] = field(default_factory=dict, repr=False)
    """What was asked for before, since a bootstrap takes its time."""

    def cell_of(self, column: Column | Average) -> Cell | None:
        """The value in a column, None where it is missing; asked for once all rows are there."""
        if column not in self._known:
            self._known[column] = self._average(column) if isinstance(column, Average) else self._cell(column)
        return self._known[column]

    def _cell(self, column: Column) -> Cell | None:
        """Mean and standard error over seeds; of a single seed the row's own. None where there is no row."""
        rows = list(self.values.get(column, {}).values())
        if not rows:
            return None
        examples = min((row.examples for row in rows if row.examples is not None), default=None)
        if len(rows) > 1:
            return Cell(*mean_and_error([row.value for row in rows]), len(rows), examples)
        error = rows[0].standard_error
        if error is None and (outcomes := outcomes_of(rows[0])):
            error = bootstrap_error([outcomes])
        return Cell(rows[0].value, error, 1, examples)

    def missing(self, average: Average) -> list[Column]:
        """The tasks of the average that this model has no value of."""
        return [column for column in average.columns if not self.values.get(column)]

    def _average(self, average: Average) -> Cell | None:
        """The category's average, None where a task is missing.

        Its standard error: over seeds, of each seed's own average, where every task has the same several seeds;
        otherwise by a bootstrap over examples where all rows hold their outcomes; otherwise sqrt(sum of e^2) / n of
        the n tasks' standard errors e, as independent ones.
        """
        cells = [cell for column in average.columns if (cell := self.cell_of(column))]
        if len(cells) < len(average.columns) or not cells:
            return None
        by_seed = self._averages_by_seed(average)
        if len(by_seed) > 1:
            return Cell(*mean_and_error(by_seed), len(by_seed))
        value = math.fsum(cell.value for cell in cells) / len(cells)
        return Cell(value, self._error(average, cells), min(cell.seeds for cell in cells))

    def _averages_by_seed(self, average: Average) -> list[float]:
        """Of seeds that all tasks share; none where a task has other seeds."""
        by_task = [self.values[column] for column in average.columns]
        if any(set(rows) != set(by_task[0]) for rows in by_task):
            return []
        return [math.fsum(rows[seed].value for rows in by_task) / len(by_task) for seed in by_task[0]]

    def _error(self, average: Average, cells: Sequence[Cell]) -> float | None:
        by_task = [list(self.values[column].values()) for column in average.columns]
        outcomes = [outcomes_of(rows[0]) for rows in by_task if len(rows) == 1]
        if len(outcomes) == len(cells) and all(outcomes):
            return bootstrap_error(outcomes)
        errors = [cell.error for cell in cells if cell.error is not None]
        if len(errors) < len(cells):
            return None
        return math.sqrt(math.fsum(error**2 for error in errors)) / len(cells)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of two or more values and its standard error, s / sqrt(n) with n - 1 in the variance."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def errors_note(cells: Iterable[Cell]) -> list[str]:
    """How a reader takes their standard errors; no line where none has one."""
    over = {cell.seeds > 1 for cell in cells if cell.error is not None}
    if not over:
        return []
    kinds = {True: "over seeds", False: "over examples"}
    both = "over seeds where a model has several, otherwise over examples"
    return [f"± is one standard error, {both if len(over) > 1 else kinds[over.pop()]}."]


def outcomes_of(row: Row) -> list[float]:
    """Each example's score, ``details["outcomes"]``; none unless their mean is the row's value."""
    found = row.details.get("outcomes")
    if not isinstance(found, list) or not found or not all(isinstance(score, (int, float)) for score in found):
        return []
    agrees = math.isclose(math.fsum(found) / len(found), row.value, rel_tol=1e-6, abs_tol=1e-9)
    return [float(score) for score in found] if agrees else []


def bootstrap_error(outcomes: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean of the tasks' means, by resampling each task's examples with replacement.

    Args:
        outcomes: of each task each example's score.
    """
    import numpy as np

    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.zeros(BOOTSTRAP_RESAMPLES)
    for scores in outcomes:
        array = np.asarray(scores, dtype=np.float64)
        for i in range(BOOTSTRAP_RESAMPLES):  # one resample at a time: a task may have 15,000 examples
            means[i] += array[generator.integers(len(array), size=len(array))].mean()
    return float((means / len(outcomes)).std(ddof=1))


@dataclass(frozen=True)
class Collection:
    """The models of results files, dense ones first, and what a reader should know of how their rows were chosen."""

    models: tuple[ModelResults, ...]
    notes: tuple[str, ...]


def collect(rows: Iterable[Row], columns: Iterable[Column], step: int | None = None) -> Collection:
    """Each model's rows of `columns`: of a run those of its last step, or of `step`; of equal ones the last.

    Rows without a step, which sum up several runs, are always taken.
    """
    wanted, runs = set(columns), dict[tuple[Variant, int | None], list[Row]]()
    for row in evaluations(rows):
        if Column.of_row(row) in wanted:
            runs.setdefault((Variant.of_row(row), row.seed), []).append(row)
    names = variant_names(variant for variant, _ in runs)
    models: dict[Variant, ModelResults] = {}
    twice: list[str] = []
    steps = _Steps(step)
    for (variant, seed), of_run in runs.items():
        for row in steps.choose(names[variant], seed, of_run):
            model = models.setdefault(variant, ModelResults(names[variant], row))
            of_column = model.values.setdefault(Column.of_row(row), {})
            if seed in of_column:
                twice.append(f"{row.task} of {names[variant]}{_of_seed(seed)}")
            of_column[seed] = model.last = row
    notes = [*steps.notes]
    notes += [note for model in models.values() for note in _unlike(model)]
    if twice:
        notes.append(f"Measured more than once, the last row counts: {listed(dict.fromkeys(twice))}.")
    return Collection(tuple(sorted(models.values(), key=_order)), tuple(notes))


def _unlike(model: ModelResults) -> list[str]:
    """What rows of one model differ in that should not."""
    rows = [row for by_seed in model.values.values() for row in by_seed.values()]
    sizes = sorted({row.total_params for row in rows})
    steps = sorted({row.step for row in rows if row.step is not None})
    notes = []
    if len(sizes) > 1:
        notes.append(f"{model.name} has rows of different numbers of parameters: {listed(map(str, sizes))}.")
    if len(steps) > 1:
        notes.append(f"{model.name} has seeds that are shown at different steps: {listed(map(str, steps))}.")
    return notes


class _Steps:
    """Chooses the step of each run, and notes what that leaves out."""

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.notes: list[str] = []

    def choose(self, name: str, seed: int | None, rows: Sequence[Row]) -> list[Row]:
        found = sorted({row.step for row in rows if row.step is not None})
        if not found:
            return list(rows)
        step = found[-1] if self.step is None else self.step
        run = f"{name}{_of_seed(seed)}"
        digests = sorted({row.config_digest for row in rows if row.step is not None})
        if len(digests) > 1:
            self.notes.append(f"{run} has rows of several configs, taken together as one run: {listed(digests, 4)}.")
        if step not in found:
            self.notes.append(f"{run} was not measured at step {step}, but at {', '.join(map(str, found))}.")
        chosen = [row for row in rows if row.step in (None, step)]
        lost = {Column.of_row(row) for row in rows} - {Column.of_row(row) for row in chosen}
        if lost and step in found:
            tasks = listed(sorted({column.task for column in lost}))
            self.notes.append(f"{run} is shown at step {step}; measured at other steps only: {tasks}.")
        return chosen


def variant_names(variants: Iterable[Variant]) -> dict[Variant, str]:
    """A name for each: the model's, and in brackets what differs among those of the same model."""
    by_model: dict[str, list[Variant]] = {}
    for variant in dict.fromkeys(variants):
        by_model.setdefault(variant.model, []).append(variant)
    names = {}
    for model, same in by_model.items():
        for variant in same:
            parts = []
            if len({other.data for other in same}) > 1:
                parts.append(variant.data or "data without a name")
            if len({other.learning_rate for other in same}) > 1 and variant.learning_rate is not None:
                parts.append(f"learning rate {variant.learning_rate:g}")
            names[variant] = f"{model} ({', '.join(parts)})" if parts else model
    return names


def _order(model: ModelResults) -> tuple[Any, ...]:
    shape = model.last.architecture
    return bool(shape.get("experts")), shape.get("width", 0), model.last.total_params, model.name


def _of_seed(seed: int | None) -> str:
    return "" if seed is None else f" (seed {seed})"


def listed(names: Iterable[str], at_most: int = 12) -> str:
    """Names with commas; of many the first few and a count."""
    found = list(names)
    more = [f"and {len(found) - at_most} more"] if len(found) > at_most else []
    return ", ".join(found[:at_most] + more)
