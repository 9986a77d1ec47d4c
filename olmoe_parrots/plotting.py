"""What all figures of results share: a line a width, a marker a number of experts, colours that all can tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
DENSE_COLOR = "#000000"
MARKERS = "osD^vP*X<>"
STYLES = ("-", "--", "-.", ":")
SETTINGS: Any = {"svg.hashsalt": "olmoe_parrots", "font.family": "DejaVu Sans", "font.size": 9}
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Of each format of pictures: without time and version of the library, so that equal rows give equal bytes."""


class Drawable(Protocol):
    """What is drawn of a model: ``analysis.Point`` or ``evaluation_figures.EvaluationPoint``."""

    @property
    def total_params(self) -> int: ...
    @property
    def active_params(self) -> int: ...
    @property
    def architecture(self) -> Mapping[str, Any]: ...
    @property
    def bound(self) -> str | None: ...
    @property
    def mean(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...


class Looks(NamedTuple):
    """Colour and style of each line, the marker of each number of experts, and the lines' names."""

    lines: dict[tuple[Any, ...], tuple[str, str]]
    markers: dict[int, str]
    names: dict[tuple[Any, ...], str]


def line_of(point: Drawable) -> tuple[Any, ...]:
    """What the points of one line have in common. Dense models of all widths are one, MoEs of one width another."""
    shape = point.architecture
    width = shape.get("width", 0)
    factor = round(shape.get("hidden_size", width) / width, 3) if width else 1.0
    same = shape.get("layers"), factor, bool(shape.get("gated")), shape.get("flops_of", "")
    return (None, 0, *same) if not shape.get("experts") else (width, shape.get("top_k", 0), *same)


def line_names(points: Sequence[Drawable]) -> dict[tuple[Any, ...], str]:
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


def looks_of(points: Sequence[Drawable]) -> Looks:
    """A colour for each width, a style for each kind of model, a marker for each number of experts."""
    names = line_names(points)
    keys = list(names)
    widths = sorted({key[0] for key in keys if key[0] is not None})
    kinds = {dense: sorted({key[1:] for key in keys if (key[0] is None) is dense}, key=str) for dense in (True, False)}
    lines = {}
    for key in keys:
        color = DENSE_COLOR if key[0] is None else COLORS[widths.index(key[0]) % len(COLORS)]
        lines[key] = color, STYLES[kinds[key[0] is None].index(key[1:]) % len(STYLES)]
    experts = sorted({int(point.architecture.get("experts", 0)) for point in points})
    first = 0 if 0 in experts else 1  # the first marker is that of dense models
    return Looks(lines, {number: MARKERS[(i + first) % len(MARKERS)] for i, number in enumerate(experts)}, names)


def draw_lines(axes: Any, points: Sequence[Drawable], looks: Looks, x_of: Callable[[Any], float]) -> None:
    """Draw the points, joined along each line from the smallest model to the largest.

    Args:
        looks: of all points of the figure, so that its panels agree.
        x_of: a point's place on the x axis.
    """
    for key, (color, style) in looks.lines.items():
        line = sorted((p for p in points if line_of(p) == key), key=lambda p: (p.total_params, p.active_params))
        axes.plot([x_of(p) for p in line], [p.mean for p in line], style, color=color, linewidth=1.4, zorder=2)
        for point in line:
            marker = looks.markers[int(point.architecture.get("experts", 0))]
            _draw_point(axes, x_of(point), point, color, marker)
    axes.grid(which="major", alpha=0.35, linewidth=0.6)
    axes.grid(which="minor", alpha=0.15, linewidth=0.4)


def label_ticks(axis: Any, text_of: Callable[[float], str] | None = None) -> None:
    """Ticks of a logarithmic axis that has its points already: powers of ten are too far apart here.

    At 1, 2 and 5, and of an x axis of more than two decades at 1 and 3, since there labels stand side by side; of less
    than half a decade at a few round numbers.

    Args:
        text_of: a number as a label; 20k or 1.5M unless given.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    is_x = axis.axis_name == "x"
    low, high = axis.axes.get_xlim() if is_x else axis.axes.get_ylim()
    decades = math.log10(high / low)
    if decades < 0.5:  # of 1, 2 and 5 it may hold none
        axis.set_major_locator(MaxNLocator(4))
        axis.set_minor_locator(NullLocator())
    else:
        subs = (1.0, 2.0, 5.0) if decades <= 2 or not is_x else (1.0, 3.0) if decades <= 4 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: (text_of or short)(value)))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _draw_point(axes: Any, x: float, point: Drawable, color: str, marker: str) -> None:
    low, high = point.interval
    error = [[point.mean - low], [high - point.mean]]
    fill, edge = ("white", color) if point.bound else (color, "white")  # hollow: the value is a bound
    style = {"markersize": 7.5, "markerfacecolor": fill, "capsize": 2.5, "elinewidth": 1.0, "zorder": 3}
    axes.errorbar([x], [point.mean], yerr=error, fmt=marker, color=color, markeredgecolor=edge, **style)
    if point.bound:
        arrow = {"arrowstyle": "->", "color": color}
        reach = 20 if point.bound == "above" else -20
        axes.annotate("", (x, point.mean), (0, reach), textcoords="offset points", arrowprops=_turned(arrow))


def _turned(arrow: dict[str, Any]) -> dict[str, Any]:
    """The arrow away from the point, where matplotlib draws towards it."""
    return arrow | {"arrowstyle": "<-"}


def legend_of(points: Sequence[Drawable], looks: Looks, error: str = "95% interval over seeds") -> list[Any]:
    """Handles for the lines, the markers, bounds and, where a point has a bar, what it shows: `error`."""
    from matplotlib.lines import Line2D

    found: list[tuple[str, dict[str, Any]]] = [
        (looks.names[key], {"color": color, "linestyle": style}) for key, (color, style) in looks.lines.items()
    ]
    plain = {"color": "#555555", "linestyle": "none"}
    for number, marker in looks.markers.items():
        found.append((f"{number} experts" if number else "no experts", plain | {"marker": marker}))
    if any(point.bound for point in points):
        found.append(("beyond the sizes tried", plain | {"marker": "o", "markerfacecolor": "white"}))
    if any(point.interval[0] < point.interval[1] for point in points):
        found.append((error, plain | {"marker": "|", "markersize": 11}))
    return [Line2D([], [], label=label, **look) for label, look in found]


def save(figure: Any, folder: Path, stem: str, kinds: Sequence[str]) -> list[Path]:
    """Write the figure as each of `kinds`, png or svg; returns the files. SETTINGS must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        figure.savefig(path, dpi=150, metadata=METADATA[kind])
    return paths
