"""Figures from results alone: ``python -m olmoe_parrots.figures RESULTS.jsonl --output DIR``.

For each task one picture of two panels, over total and over active parameters: phone-book capacity on logarithmic axes,
shortest-path accuracy on a linear one. A line a width, a marker a number of experts, dense models as a line of their
own; bars are 95% confidence intervals over seeds. The same rows give the same files, PNG and SVG.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .analysis import CAPACITY, Measure, Point, load_measures
from .errors import report_and_exit

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
DENSE_COLOR = "#000000"
MARKERS = "osD^vP*X<>"
STYLES = ("-", "--", "-.", ":")
SETTINGS: Any = {"svg.hashsalt": "olmoe_parrots", "font.family": "DejaVu Sans", "font.size": 9}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Of each format: without the time and the version of the library, so that equal rows give equal bytes."""


def draw(measure: Measure, folder: Path) -> list[Path]:
    """Draw a measure into `folder` as NAME_METRIC.png and .svg; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stem = f"{measure.name}_{'capacity' if measure.metric == CAPACITY else 'accuracy'}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(SETTINGS):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
        for panel, name in zip(axes, ("total", "active"), strict=True):
            _draw_panel(panel, measure, name)
        axes[0].set_ylabel(_value_label(measure))
        figure.legend(handles=_legend(measure), loc="outside right center", frameon=False)
        for kind, metadata in METADATA.items():
            paths.append(folder / f"{stem}.{kind}")
            figure.savefig(paths[-1], dpi=150, metadata=metadata)
        pyplot.close(figure)
    return paths


def _value_label(measure: Measure) -> str:
    if measure.metric == CAPACITY:
        return "phone-book capacity (entries recalled)"
    vertices = measure.data.get("vertices")
    return "shortest path: share of right answers" + (f" (graphs of {vertices} vertices)" if vertices else "")


def line_of(point: Point) -> tuple[Any, ...]:
    """What the points of one line have in common. Dense models of all widths are one, MoEs of one width another."""
    shape = point.architecture
    width = shape.get("width", 0)
    factor = round(shape.get("hidden_size", width) / width, 3) if width else 1.0
    same = shape.get("layers"), factor, bool(shape.get("gated")), shape.get("flops_of", "")
    return (None, 0, *same) if not shape.get("experts") else (width, shape.get("top_k", 0), *same)


def line_names(points: Sequence[Point]) -> dict[tuple[Any, ...], str]:
    """A name for each line, saying only what differs among them."""
    found = {line_of(point) for point in points}
    keys = sorted(found, key=lambda key: tuple(str(part or 0).zfill(8) for part in key))  # dense first
    moe, names = [key for key in keys if key[0] is not None], {}
    for key in keys:
        width, top_k, layers, factor, gated, flops_of = key
        parts = ["dense"] if width is None else [f"MoE, d = {width}"]
        if width is not None and len({other[1] for other in moe}) > 1:
            parts.append(f"top-{top_k}")
        if len({other[2] for other in keys}) > 1:
            parts.append(f"{layers} layers")
        if len({other[3] for other in keys}) > 1:
            parts.append(f"intermediate {factor:g}d")
        if len({other[4] for other in keys}) > 1:
            parts.append("gated" if gated else "plain")
        names[key] = ", ".join([*parts, *([f"FLOPs of {flops_of}"] if flops_of else [])])
    return names


def _looks(points: Sequence[Point]) -> tuple[dict[Any, tuple[str, str]], dict[int, str]]:
    """Colour and style of each line (a colour a width, a style a kind), and the marker of each number of experts."""
    keys = list(line_names(points))
    widths = sorted({key[0] for key in keys if key[0] is not None})
    kinds = {dense: sorted({key[1:] for key in keys if (key[0] is None) is dense}, key=str) for dense in (True, False)}
    lines = {}
    for key in keys:
        color = DENSE_COLOR if key[0] is None else COLORS[widths.index(key[0]) % len(COLORS)]
        lines[key] = color, STYLES[kinds[key[0] is None].index(key[1:]) % len(STYLES)]
    experts = sorted({int(point.architecture.get("experts", 0)) for point in points})
    if 0 in experts:
        return lines, {number: MARKERS[i % len(MARKERS)] for i, number in enumerate(experts)}
    return lines, {number: MARKERS[(i + 1) % len(MARKERS)] for i, number in enumerate(experts)}


def _draw_panel(axes: Any, measure: Measure, name: str) -> None:
    lines, markers = _looks(measure.points)
    for key, (color, style) in lines.items():
        points = [point for point in measure.points if line_of(point) == key]
        points.sort(key=lambda point: (point.total_params, point.active_params))
        counts = [getattr(point, f"{name}_params") for point in points]
        axes.plot(counts, [point.mean for point in points], style, color=color, linewidth=1.4, zorder=2)
        for count, point in zip(counts, points, strict=True):
            _draw_point(axes, count, point, color, markers[int(point.architecture.get("experts", 0))])
    axes.set_xscale("log")
    axes.set_xlabel(f"{name} parameters")
    _label_ticks(axes.xaxis)
    if measure.metric == CAPACITY:
        axes.set_yscale("log")
        _label_ticks(axes.yaxis)
    else:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(which="major", alpha=0.35, linewidth=0.6)
    axes.grid(which="minor", alpha=0.15, linewidth=0.4)


def _label_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written as 20k or 1.5M: powers of ten are too far apart here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _draw_point(axes: Any, count: int, point: Point, color: str, marker: str) -> None:
    low, high = point.interval
    error = [[point.mean - low], [high - point.mean]]
    fill, edge = ("white", color) if point.bound else (color, "white")  # hollow: the value is a bound
    style = {"markersize": 7.5, "markerfacecolor": fill, "capsize": 2.5, "elinewidth": 1.0, "zorder": 3}
    axes.errorbar([count], [point.mean], yerr=error, fmt=marker, color=color, markeredgecolor=edge, **style)
    if point.bound:
        arrow = {"arrowstyle": "->", "color": color}
        reach = 20 if point.bound == "above" else -20
        axes.annotate("", (count, point.mean), (0, reach), textcoords="offset points", arrowprops=_turned(arrow))


def _turned(arrow: dict[str, Any]) -> dict[str, Any]:
    """The arrow away from the point, where matplotlib draws towards it."""
    return arrow | {"arrowstyle": "<-"}


def _legend(measure: Measure) -> list[Any]:
    from matplotlib.lines import Line2D

    lines, markers = _looks(measure.points)
    names = line_names(measure.points)
    looks: list[tuple[str, dict[str, Any]]] = [
        (names[key], {"color": color, "linestyle": style}) for key, (color, style) in lines.items()
    ]
    plain = {"color": "#555555", "linestyle": "none"}
    looks += [(f"{n} experts" if n else "no experts", plain | {"marker": marker}) for n, marker in markers.items()]
    if any(point.bound for point in measure.points):
        looks.append(("beyond the sizes tried", plain | {"marker": "o", "markerfacecolor": "white"}))
    if any(len(point.values) > 1 for point in measure.points):
        looks.append(("95% interval over seeds", plain | {"marker": "|", "markersize": 11}))
    return [Line2D([], [], label=label, **look) for label, look in looks]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns 0. Raises InputError for files without results."""
    parser = argparse.ArgumentParser(prog="python -m olmoe_parrots.figures", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the pictures go")
    options = parser.parse_args(arguments)
    for measure in load_measures(options.results):
        for path in draw(measure, options.output):
            print(path)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
