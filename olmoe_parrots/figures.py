"""Figures from results alone: ``python -m olmoe_parrots.figures RESULTS.jsonl --output DIR``.

For each synthetic task one picture of two panels, over total and over active parameters: phone-book capacity on
logarithmic axes, shortest-path accuracy on a linear one. A line a width, a marker a number of experts, dense models as
a line of their own; bars are 95% confidence intervals over seeds. Figures of evaluations are those of
``evaluation_figures``. The same rows give the same files, PNG and SVG.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .analysis import CAPACITY, MEASURES, Measure, measures
from .errors import ArgumentParser, InputError, report_and_exit
from .plotting import METADATA, SETTINGS, Looks, draw_lines, label_ticks, legend_of, line_names, line_of, looks_of, save
from .results import read_rows

__all__ = ["draw", "line_names", "line_of", "main"]


def draw(measure: Measure, folder: Path, kinds: Sequence[str] = tuple(METADATA)) -> list[Path]:
    """Draw a measure into `folder` as NAME_METRIC.png and .svg; returns the files."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    stem = f"{measure.name}_{'capacity' if measure.metric == CAPACITY else 'accuracy'}"
    looks = looks_of(measure.points)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for panel, name in zip(axes, ("total", "active"), strict=True):
            _draw_panel(panel, measure, looks, name)
        axes[0].set_ylabel(_value_label(measure))
        figure.legend(handles=legend_of(measure.points, looks), loc="outside right center", frameon=False)
        return save(figure, folder, stem, kinds)


def _value_label(measure: Measure) -> str:
    if measure.metric == CAPACITY:
        return "phone-book capacity (entries recalled)"
    vertices = measure.data.get("vertices")
    return "shortest path: share of right answers" + (f" (graphs of {vertices} vertices)" if vertices else "")


def _draw_panel(axes: Any, measure: Measure, looks: Looks, name: str) -> None:
    draw_lines(axes, measure.points, looks, lambda point: getattr(point, f"{name}_params"))
    axes.set_xscale("log")
    axes.set_xlabel(f"{name} parameters")
    label_ticks(axes.xaxis)
    if measure.metric == CAPACITY:
        axes.set_yscale("log")
        label_ticks(axes.yaxis)
    else:
        axes.set_ylim(-0.02, 1.02)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the rows allow, print the files, and say on standard error what is not drawn; returns 0.

    Raises InputError for files that cannot be read, and where nothing can be drawn.
    """
    parser = ArgumentParser(prog="python -m olmoe_parrots.figures", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the pictures go")
    options = parser.parse_args(arguments)
    rows = [row for path in options.results for row in read_rows(path)]
    found = measures(rows)
    from .columns import Catalogue
    from .evaluation_figures import draw_evaluations

    paths = [path for measure in found for path in draw(measure, options.output)]
    drawn, lacking = draw_evaluations(rows, Catalogue.load(), options.output)
    if not paths and not drawn:
        known = ", ".join(f"{metric} of {task}" for task, metric in MEASURES)
        nearest = sorted(lacking, key=lambda line: "which has no rows" not in line)[:1]  # of a model with some tasks
        what = f"there is no {known} in it, nor an average of evaluations. {' '.join(nearest)}".rstrip(". ")
        raise InputError(", ".join(map(str, options.results)), what, "run a sweep to its end, or evaluate checkpoints")
    for line in lacking:
        print(line, file=sys.stderr)
    for path in [*paths, *drawn]:
        print(path)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
