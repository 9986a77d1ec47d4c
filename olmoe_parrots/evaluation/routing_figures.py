"""Pictures of routing, from the rows of :mod:`olmoe_parrots.evaluation.routing_measures` alone, as PNG and SVG.

Every heat map shows how many times as much there is as a plain guess would have: of load, the even share; of a group of
tokens, the expert's share of all; of a pair of experts, what picks that have nothing to do with each other give. White
is the guess, orange more and purple less, on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoe_parrots.plotting import COLORS, METADATA, SETTINGS

Rows = Sequence[dict[str, Any]]
Numbers = npt.NDArray[np.float64]
MOST_PANELS, PAGE = 6, 14.0
"""Layers in a picture of one panel a layer, and inches of its height: of more layers some are drawn, spread evenly. The
rows have all."""
FEWEST = 5.0
"""Where a guess would have fewer assignments, a ratio says nothing and the cell is left grey."""
LIMITS = (1.25, 2.0, 4.0, 8.0)
TITLES = {
    "share_by_source": "Which expert takes which source",
    "share_by_frequency_band": "Which expert takes how frequent tokens (first the most frequent tenth)",
    "share_by_part": "Which expert takes which part of a row",
}
LINES = {
    "token_specialization": "token id",
    "frequency_band_specialization": "frequency band",
    "source_specialization": "source",
    "part_specialization": "part of the row",
}


def pictures(rows: Rows) -> dict[str, Callable[[], Any]]:
    """By name, what makes each picture (a matplotlib Figure) that these rows have something for."""
    there = {row["measurement"] for row in rows}
    makers: dict[str, Callable[[], Any]] = {"load": partial(draw_load, rows)}
    for name in TITLES:
        if any(row["measurement"] == name and len(_large_groups(row)) > 1 for row in rows):
            makers[name] = partial(draw_groups, rows, name)
    if "co_activation" in there:
        makers["co_activation"] = partial(draw_co_activation, rows)
    if there & set(LINES):
        makers["specialization"] = partial(draw_specialization, rows)
    return makers


def save(make: Callable[[], Any], stem: Path, overwrite: bool = False) -> list[Path]:
    """Draw `stem`.png and .svg, or what is missing of them; the same rows give the same files.

    Returns the files written, each whole or not at all.
    """
    import matplotlib

    kinds = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in METADATA}
    wanted = {kind: path for kind, path in kinds.items() if overwrite or not path.exists()}
    if not wanted:
        return []
    with matplotlib.rc_context(SETTINGS):
        figure = make()
        for kind, path in wanted.items():
            scratch = path.with_name(f".{path.name}.partial")
            figure.savefig(scratch, dpi=130, metadata=METADATA[kind], format=kind)
            scratch.replace(path)
    return list(wanted.values())


def draw_load(rows: Rows) -> Any:
    """Each expert's load in each layer, in multiples of the even share."""
    found = _of(rows, "load")
    load_LE = np.array([row["value"] for row in found], dtype=np.float64)
    layers, experts = load_LE.shape
    figure, axes = _figure(1, 1, _width(experts), max(1.6, 0.22 * layers + 1.0))
    panel = axes[0]
    _heat_maps(figure, axes, [load_LE * experts], "times the even share")
    panel.set_title("Load of each expert", loc="left")
    panel.set_ylabel("layer")
    panel.set_yticks(range(layers), [str(row["layer"]) for row in found])
    return figure


def draw_groups(rows: Rows, name: str) -> Any:
    """Each expert's share of each group of tokens, in multiples of the expert's share of all: a panel a layer.

    Groups of too few tokens to say anything are left out.
    """
    found = _of(rows, name)
    experts, tokens = len(found[0]["counts"][0]), found[0]["tokens"]
    kept = _large_groups(found[0])
    groups = [f"{found[0]['groups'][place]}  ({tokens[place]:,})" for place in kept]
    columns, height = 2 if experts <= 32 else 1, max(1.5, 0.17 * len(kept) + 0.8)
    found, told = _chosen(found, columns, height)
    ratios = []
    for row in found:
        counts = np.array(row["counts"], dtype=np.float64)
        guess = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
        ratios.append(_ratio(counts, guess)[kept])
    figure, axes = _figure(len(found), columns, _width(experts), height)
    _heat_maps(figure, axes, ratios, "times the expert's share of all tokens")
    for place, (panel, row) in enumerate(zip(axes, found, strict=True)):
        panel.set_title(f"layer {row['layer']}", loc="left", fontsize=9)
        panel.set_yticks(range(len(groups)), groups if place % columns == 0 else [""] * len(groups))
    figure.suptitle(f"{TITLES[name]}{told}; in brackets the tokens counted", x=0.01, ha="left", fontsize=10)
    return figure


def draw_co_activation(rows: Rows) -> Any:
    """How often two experts take the same token, in multiples of what the same loads alone would give."""
    found = _of(rows, "co_activation")
    side = min(4.5, _width(len(found[0]["counts"])))
    found, told = _chosen(found, 2, side)
    ratios = []
    for row in found:
        counts, guess = (np.array(row[key], dtype=np.float64) for key in ("counts", "expected"))
        np.fill_diagonal(guess, 0)
        ratios.append(_ratio(counts, guess))
    figure, axes = _figure(len(found), 2, side, side)
    _heat_maps(figure, axes, ratios, "times independent picks of the same loads")
    for place, (panel, row) in enumerate(zip(axes, found, strict=True)):
        panel.set_title(f"layer {row['layer']}", loc="left", fontsize=9)
        panel.set_yticks(panel.get_xticks())
        panel.set_ylabel("" if place % 2 else "expert")
    figure.suptitle(f"Which experts take the same token{told}", x=0.01, ha="left", fontsize=10)
    return figure


def draw_specialization(rows: Rows) -> Any:
    """By layer, how much of an assignment's expert follows from what is known of its token: 0 by chance, 1 at most."""
    figure, axes = _figure(1, 1, 5.6, 3.4)
    panel = axes[0]
    for (name, label), color, marker in zip(LINES.items(), COLORS, "osD^", strict=False):
        if found := _of(rows, name):
            layers, values = [row["layer"] for row in found], [row["value"] for row in found]
            style = {"color": color, "marker": marker, "markersize": 6, "markeredgecolor": "white", "linewidth": 1.4}
            panel.plot(layers, values, label=label, **style)
    panel.set_ylim(min(-0.02, panel.get_ylim()[0]), 1.02)
    panel.set_xlabel("layer")
    panel.set_ylabel("specialization\n(0: as by chance, 1: as much as can be)")
    panel.set_title("What the choice of experts follows", loc="left")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3, linewidth=0.6)
    panel.legend(frameon=False)
    return figure


def _of(rows: Rows, measurement: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["measurement"] == measurement), key=lambda row: int(row["layer"]))


def _large_groups(row: dict[str, Any]) -> list[int]:
    """The places of the groups that have, on average, as many assignments of an expert as a ratio needs."""
    return [place for place, counts in enumerate(row["counts"]) if sum(counts) >= FEWEST * len(counts)]


def _chosen(found: list[dict[str, Any]], columns: int, height: float) -> tuple[list[dict[str, Any]], str]:
    """As many layers as a page holds, the first and the last among them, and what to say of the others."""
    most = min(MOST_PANELS, max(2, columns * int(PAGE / height)))
    if len(found) <= most:
        return found, ""
    places = [round(place * (len(found) - 1) / (most - 1)) for place in range(most)]
    return [found[place] for place in places], f", {most} of {len(found)} layers"


def _width(experts: int) -> float:
    """Of a panel, in inches."""
    return min(9.0, max(2.6, 0.17 * experts + 0.6))


def _figure(panels: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of so many panels of a size in inches, and the panels, row by row."""
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(columns * width + 2.6, lines * height + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def _ratio(counts: Numbers, guess: Numbers) -> Numbers:
    """How many times the guess, and nothing (NaN) where the guess is of too few to say."""
    return np.divide(counts, guess, out=np.full(counts.shape, np.nan), where=guess >= FEWEST)


def _limit(ratios: Sequence[Numbers]) -> float:
    """The smallest of LIMITS that nine in ten ratios lie within, upwards and downwards."""
    values = np.concatenate([ratio[np.isfinite(ratio)] for ratio in ratios])
    far = np.abs(np.log(np.maximum(values, 1 / LIMITS[-1]))) if len(values) else np.zeros(1)
    reach = math.exp(float(np.quantile(far, 0.9)))
    return next((limit for limit in LIMITS if reach <= limit), LIMITS[-1])


def _heat_maps(figure: Any, panels: Sequence[Any], ratios: Sequence[Numbers], label: str) -> None:
    """A heat map of the logarithms of ratios, (rows, experts), in each panel, and one colour bar."""
    from matplotlib import colormaps

    limit = _limit(ratios)
    colors = colormaps["PuOr_r"].with_extremes(bad="#bbbbbb")
    scale = {"cmap": colors, "vmin": -math.log(limit), "vmax": math.log(limit)}
    for panel, ratio in zip(panels, ratios, strict=True):
        logarithm = np.log(np.maximum(ratio, 1e-9))  # of nothing at all, the darkest
        image = panel.imshow(logarithm, aspect="auto", interpolation="nearest", **scale)
        step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if ratio.shape[1] / step <= 16)
        panel.set_xticks(range(0, ratio.shape[1], step))
        panel.set_xlabel("expert")
        panel.tick_params(length=2, labelsize=8)
    thickness = figure.get_size_inches()[1] / 0.17
    bar = figure.colorbar(image, ax=list(panels), extend="both", aspect=thickness, extendfrac=0.03, pad=0.02)
    bar.set_label(label)
    up = [math.sqrt(limit), limit]
    ticks, names = [math.log(tick) for tick in up], [f"{tick:.2g}" for tick in up]
    bar.set_ticks([-ticks[1], -ticks[0], 0.0, *ticks], labels=[f"1/{names[1]}", f"1/{names[0]}", "1", *names])
