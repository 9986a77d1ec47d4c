"""Figures of evaluations, from rows alone: a panel a category, a line a width, a marker a number of experts.

A category's average against total parameters (the paper's figure 1), active parameters, training FLOPs and validation
perplexity; and train minus test accuracy of each benchmark that has both. Models trained on different data get figures
of their own. Bars are 95% confidence intervals: Student's over seeds, 1.96 standard errors of a single seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .analysis import CONFIDENCE
from .columns import LOWER_IS_BETTER, PERPLEXITY, Average, Catalogue, Column, evaluations
from .gaps import Gap, gaps, missing_gaps
from .model_results import Cell, ModelResults, collect, listed
from .plotting import METADATA, SETTINGS, draw_lines, label_ticks, legend_of, looks_of, save
from .results import Row
from .tables import category_name, metric_name

VALIDATION = PERPLEXITY, "validation", "perplexity"
"""Task, split and metric of the rows that place a model on the axis of perplexity."""
AXES = {
    "total_params": "total parameters",
    "active_params": "active parameters",
    "training_flops": "training FLOPs",
    "perplexity": "validation perplexity (lower is better)",
}
"""What averages are drawn against, in names of files and on the axis."""


@dataclass(frozen=True)
class EvaluationPoint:
    """A model in a panel, at `x`."""

    model: str
    total_params: int
    active_params: int
    architecture: Mapping[str, Any]
    x: float
    cell: Cell
    bound: str | None = None

    @property
    def mean(self) -> float:
        return self.cell.value

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval; the value twice where it has no standard error."""
        if self.cell.error is None:
            return self.mean, self.mean
        from scipy.stats import norm, t

        level = (1 + CONFIDENCE) / 2
        factor = float(t.ppf(level, self.cell.seeds - 1) if self.cell.seeds > 1 else norm.ppf(level))
        return self.mean - factor * self.cell.error, self.mean + factor * self.cell.error


@dataclass(frozen=True)
class Panel:
    """One of a figure's panels."""

    title: str
    value: str
    points: tuple[EvaluationPoint, ...]


def draw_evaluations(
    rows: Iterable[Row], catalogue: Catalogue, folder: Path, kinds: Sequence[str] = tuple(METADATA)
) -> tuple[list[Path], list[str]]:
    """Draw whatever the rows allow into `folder`; returns the files, and lines on what is lacking."""
    from matplotlib import rc_context

    found, lacking = evaluation_figures(rows, catalogue)
    with rc_context(SETTINGS):
        return [path for stem, figure in found.items() for path in save(figure, folder, stem, kinds)], lacking


def evaluation_figures(rows: Iterable[Row], catalogue: Catalogue) -> tuple[dict[str, Any], list[str]]:
    """Matplotlib's figures by the stem of their files, and lines on what is lacking."""
    known = evaluations(rows)
    averages, pairs = catalogue.averages(), gaps(known, catalogue)
    columns = {column for average in averages for column in average.columns}
    columns |= {column for gap in pairs for column in (gap.train, gap.test)}
    columns |= {column for row in known if (column := Column.of_row(row))[:3] == VALIDATION}
    found = collect(known, columns)
    if not found.models:
        nothing = "No evaluation is drawn: there is no row of a category's tasks, nor of validation perplexity."
        return {}, [nothing] if known else []
    figures, lacking = dict[str, Any](), list(found.notes)
    by_data: dict[str, list[ModelResults]] = {}
    for model in found.models:
        by_data.setdefault(str(model.last.data.get("name") or ""), []).append(model)
    for data, models in by_data.items():
        drawing = _Drawing(models, data, f"_{_file_name(data)}" if len(by_data) > 1 else "")
        for name in AXES:
            drawing.averages(averages, name)
        drawing.gaps(pairs)
        figures |= drawing.figures
        lacking += [f"{data}: {line}" if len(by_data) > 1 else line for line in dict.fromkeys(drawing.lacking)]
    return figures, lacking


class _Drawing:
    """The figures of models that were trained on the same data."""

    def __init__(self, models: Sequence[ModelResults], data: str, suffix: str) -> None:
        self.models, self.suffix = models, suffix
        self.validation = _held_out(models, data)
        self.figures: dict[str, Any] = {}
        self.lacking: list[str] = []

    def averages(self, averages: Sequence[Average], name: str) -> None:
        """A panel for each average that a model has, against `name`."""
        if name == "perplexity" and self.validation is None:
            row = "task {}, split {}, metric {}".format(*VALIDATION)
            what = f"rows of {row}, on the data trained on or on one other folder"
            self.lacking.append(f"Nothing is drawn against validation perplexity: there are no {what}.")
            return
        panels = []
        for average in averages:
            self._say_what_lacks(average)
            values = [(model, model.cell_of(average)) for model in self.models]
            title = f"{category_name(average.category)} ({len(average.columns)} tasks)"
            value = f"mean {metric_name(average.metric)}{_direction(average.metric)}"
            panels.append(Panel(title, value, self._points(values, name)))
        self._draw(panels, name, f"averages_by_{name}")

    def gaps(self, pairs: Sequence[Gap]) -> None:
        """A panel for each benchmark."""
        panels = []
        for gap in pairs:
            value = f"train minus {gap.test.split} {metric_name(gap.test.metric)}"
            values = [(model, gap.cell(model)) for model in self.models]
            panels.append(Panel(gap.title, value, self._points(values, "total_params")))
        if not any(panel.points for panel in panels):
            row = "a task's accuracy of split train beside that of split test"
            self.lacking.append(f"No generalization gap is drawn: no model has rows of {row}.")
        self.lacking += missing_gaps(self.models, pairs)
        self._draw(panels, "total_params", "generalization_gap", zero=True)

    def _points(self, values: Iterable[tuple[ModelResults, Cell | None]], name: str) -> tuple[EvaluationPoint, ...]:
        """The models that have a value and a place on the axis `name`."""
        found = []
        for model, cell in values:
            last = model.last
            if name == "perplexity":
                place = model.cell_of(self.validation) if self.validation else None
            else:
                place = Cell(float(getattr(last, name)), None, 1)
            if cell is not None and place is not None:
                counts = last.total_params, last.active_params
                found.append(EvaluationPoint(model.name, *counts, last.architecture, place.value, cell))
        return tuple(found)

    def _say_what_lacks(self, average: Average) -> None:
        name = f"{category_name(average.category)} ({metric_name(average.metric)})"
        if all(model.missing(average) == list(average.columns) for model in self.models):
            tasks = listed(column.task for column in average.columns)
            self.lacking.append(f"{name} is not drawn: there are no rows of {tasks}.")
            return
        drawn = "drawn" if any(not model.missing(average) for model in self.models) else "not drawn: it is left"
        for model in self.models:
            if missing := model.missing(average):
                tasks = listed(column.task for column in missing)
                self.lacking.append(f"{name} is {drawn} without {model.name}, which has no rows of {tasks}.")

    def _draw(self, panels: Sequence[Panel], name: str, stem: str, *, zero: bool = False) -> None:
        shown = [panel for panel in panels if panel.points]
        if not shown:
            return
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        points = [point for panel in shown for point in panel.points]
        looks, across = looks_of(points), 2 if len(shown) == 4 else min(3, len(shown))
        down = -(-len(shown) // across)
        with rc_context(SETTINGS):
            figure = Figure(figsize=(3.5 * across + 1.7, 3.5 * down), layout="constrained")
            grid = figure.subplots(down, across, squeeze=False)
            for axes, panel in zip(grid.flat, shown, strict=False):
                draw_lines(axes, panel.points, looks, lambda point: point.x)
                _dress(axes, panel, name, zero=zero)
            for axes in list(grid.flat)[len(shown) :]:
                axes.remove()
            over = {point.cell.seeds > 1 for point in points if point.cell.error}
            error = {True: "95% interval over seeds", False: "95% interval over examples"}
            text = error[over.pop()] if len(over) == 1 else "95% interval"
            figure.legend(handles=legend_of(points, looks, text), loc="outside right center", frameon=False)
        self.figures[stem + self.suffix] = figure


def _held_out(models: Sequence[ModelResults], data: str) -> Column | None:
    """The perplexity to draw against: on the data that the models were trained on, or the only one that there is."""
    found = dict.fromkeys(column for model in models for column in model.values if column[:3] == VALIDATION)
    own = [column for column in found if column.text == data] or list(found)
    return own[0] if len(own) == 1 else None


def _dress(axes: Any, panel: Panel, name: str, *, zero: bool) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(AXES[name])
    axes.set_ylabel(panel.value)
    if name != "perplexity":
        axes.set_xscale("log")
        label_ticks(axes.xaxis, _power if name == "training_flops" else None)
    if zero:
        axes.axhline(0.0, color="#555555", linewidth=0.8, zorder=1)


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _direction(metric: str) -> str:
    return " (lower is better)" if metric in LOWER_IS_BETTER else ""


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text) or "unnamed"
