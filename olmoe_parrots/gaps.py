"""The generalization gap: accuracy on training problems minus accuracy on the test problems of the same benchmark.

It is taken between rows of one task and metric, of the split ``train`` and of the task's own, and only where both were
measured alike. ``olmoe_parrots.evaluate --training-problems`` makes the former.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .columns import LOWER_IS_BETTER, Catalogue, Column, evaluations
from .errors import InputError
from .model_results import Cell, ModelResults, collect, errors_note, listed, mean_and_error
from .results import Row

ALIKE = ("limit", "shots", "examples_seed", "prompt", "precision", "context")
"""The details in which both measurements must agree, as far as rows tell them."""
ON_TRAINING, ON_TEST = "training problems", "test problems"


@dataclass(frozen=True)
class Gap:
    """A benchmark that was measured on training problems and on test problems."""

    title: str
    train: Column
    test: Column

    def cell(self, model: ModelResults) -> Cell | None:
        """Train minus test, None where :meth:`lacks` says why not.

        Its standard error is over seeds where both have the same several, else sqrt(a^2 + b^2) of the two.
        """
        train, test = model.cell_of(self.train), model.cell_of(self.test)
        if train is None or test is None or self.lacks(model):
            return None
        rows, others = model.values[self.train], model.values[self.test]
        if len(rows) > 1 and set(rows) == set(others):
            return Cell(*mean_and_error([rows[seed].value - others[seed].value for seed in rows]), len(rows))
        known = train.error is not None and test.error is not None
        error = math.hypot(train.error or 0.0, test.error or 0.0) if known else None
        return Cell(train.value - test.value, error, min(train.seeds, test.seeds))

    def lacks(self, model: ModelResults) -> str | None:
        """Why a model has no gap; None where it has one."""
        without = [
            f"no accuracy on {name}"
            for name, column in ((ON_TRAINING, self.train), (ON_TEST, self.test))
            if not model.values.get(column)
        ]
        if without:
            return " and ".join(without)
        if len({row.details.get("problems_sha256") for row in model.values[self.train].values()}) > 1:
            return "its seeds were asked different training problems"
        unlike = [told for name in ALIKE if (told := self._unlike(model, name))]
        return f"the two were not measured alike: {'; '.join(unlike)}" if unlike else None

    def _unlike(self, model: ModelResults, name: str) -> str:
        """The values of a detail on both sides where there are several; "" where there are not."""
        found: dict[str, set[str]] = {}
        for side, column in ((ON_TRAINING, self.train), (ON_TEST, self.test)):
            told = [row.details[name] for row in model.values[column].values() if name in row.details]
            found[side] = {"none" if value is None else str(value) for value in told}
        if len(found[ON_TRAINING] | found[ON_TEST]) < 2:
            return ""
        if name == "prompt":
            return "prompts, stop strings or lengths differ"
        values = [f"{listed(sorted(values))} on {side}" for side, values in found.items() if values]
        return f"{name.replace('_', ' ')} {', '.join(values)}"


def gaps(rows: Iterable[Row], catalogue: Catalogue) -> list[Gap]:
    """The benchmarks with rows of training problems, by a metric of which more is better, in the catalogue's order.

    Rows of the split ``train`` are none where that is the split that a benchmark is evaluated on.
    """
    found = sorted(dict.fromkeys(Column.of_row(row) for row in rows), key=catalogue.place)
    pairs = []
    for train in found:
        task = catalogue.tasks.get(train.task)
        own = (task.split if task else None) or "test"
        if train.split != "train" or own == "train" or train.metric in LOWER_IS_BETTER:
            continue
        tests = [train._replace(split=split) for split in dict.fromkeys((own, "test", "validation"))]
        test = next((column for column in tests if column in found), tests[0])
        pairs.append(Gap(task.title if task else train.task, train, test))
    return pairs


@dataclass(frozen=True)
class GapTable:
    """All models by all benchmarks that have training problems, and the notes below it."""

    models: tuple[ModelResults, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]


def build_gap_table(rows: Iterable[Row], catalogue: Catalogue, step: int | None = None) -> GapTable:
    """The gaps of rows, each model at the last step of its run or at `step`, as in ``model_results.collect``.

    Raises InputError where there are no rows of training problems, or none of `step`.
    """
    known = evaluations(rows)
    pairs = gaps(known, catalogue)
    if not pairs:
        remedy = "python -m olmoe_parrots.evaluate CHECKPOINT --training-problems FOLDER makes them"
        raise InputError("results", "they hold no accuracy on training problems", remedy)
    found = collect(known, {column for gap in pairs for column in (gap.train, gap.test)}, step)
    if not found.models:
        steps = sorted({row.step for row in known if row.step is not None})
        raise InputError(f"--step {step}", "no row is of this step", f"there are {listed(map(str, steps))}")
    cells = [
        cell
        for model in found.models
        for gap in pairs
        for cell in (model.cell_of(gap.train), model.cell_of(gap.test), gap.cell(model))
        if cell
    ]
    notes = [*missing_gaps(found.models, pairs), *found.notes, *errors_note(cells)]
    return GapTable(found.models, tuple(pairs), tuple(notes))


def missing_gaps(models: Sequence[ModelResults], pairs: Iterable[Gap]) -> list[str]:
    """A line for each benchmark and reason on the models that have no gap."""
    notes = []
    for gap in pairs:
        reasons: dict[str, list[str]] = {}
        for model in models:
            if reason := gap.lacks(model):
                reasons.setdefault(reason, []).append(model.name)
        notes += [f"{gap.title}: no gap of {listed(names)}, {reason}." for reason, names in reasons.items()]
    return notes
