"""What the pictures show, read from their axes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olmoe_parrots.evaluation.routing_figures import LINES, pictures, save

LAYERS, EXPERTS = 8, 4
SOURCES = [[100, 200, 50, 50], [300, 0, 150, 150], [1, 0, 0, 1]]
"""Assignments by source and expert, of every layer; the last source is too small to be shown."""


def rows_of(layers: int = LAYERS) -> list[dict[str, Any]]:
    rows = []
    for layer in range(layers):
        of_layer: list[dict[str, Any]] = [
            {"measurement": "load", "value": [0.4, 0.2, 0.2, 0.2 - layer / 100]},
            {"measurement": "share_by_source", "groups": ["a", "b", "c"], "tokens": [200, 300, 1], "counts": SOURCES},
            {"measurement": "share_by_part", "groups": ["one"], "tokens": [501], "counts": [[401, 200, 200, 201]]},
            {
                "measurement": "co_activation",
                "counts": [[9, 20, 5, 0], [20, 9, 1, 1], [5, 1, 9, 1], [0, 1, 1, 9]],
                "expected": [[9, 10, 20, 8], [10, 9, 3, 3], [20, 3, 9, 3], [8, 3, 3, 9]],
            },
            {"measurement": "token_specialization", "value": 1 - layer / 10},
            {"measurement": "source_specialization", "value": layer / 20},
        ]
        rows += [{"layer": layer, **row} for row in of_layer]
    return rows[::-1]


def drawn(panel: Any) -> np.ndarray:
    """The ratios of a heat map, NaN where it is grey."""
    return np.exp(np.ma.filled(panel.images[0].get_array().astype(float), np.nan))


def panels(figure: Any) -> list[Any]:
    return [panel for panel in figure.axes if panel.images and panel.get_label() != "<colorbar>"]


def test_a_picture_of_each_measurement_that_compares_something() -> None:
    assert list(pictures(rows_of())) == ["load", "share_by_source", "co_activation", "specialization"]
    assert list(pictures([row for row in rows_of() if row["measurement"] == "load"])) == ["load"]


def test_loads_are_in_multiples_of_the_even_share() -> None:
    figure = pictures(rows_of())["load"]()
    (panel,) = panels(figure)
    assert drawn(panel)[0].tolist() == pytest.approx([1.6, 0.8, 0.8, 0.8])
    assert drawn(panel)[:, 3].tolist() == pytest.approx([0.8 - layer / 25 for layer in range(LAYERS)])
    assert [label.get_text() for label in panel.get_yticklabels()] == [str(layer) for layer in range(LAYERS)]


def test_groups_are_in_multiples_of_the_experts_share_of_all() -> None:
    figure = pictures(rows_of())["share_by_source"]()
    found = panels(figure)
    assert [panel.get_title(loc="left") for panel in found] == [f"layer {n}" for n in (0, 1, 3, 4, 6, 7)]
    assert "6 of 8 layers" in figure.get_suptitle()
    load, total = [401, 200, 200, 201], 1002
    expected = [[count / (sum(group) * n / total) for count, n in zip(group, load, strict=True)] for group in SOURCES]
    np.testing.assert_allclose(drawn(found[2]), expected[:2], atol=1e-6)
    assert [label.get_text() for label in found[0].get_yticklabels()] == ["a  (200)", "b  (300)"]


def test_pairs_are_in_multiples_of_independent_picks() -> None:
    found = panels(pictures(rows_of(2))["co_activation"]())
    nan = np.nan  # of itself, and where fewer than five are expected
    expected = [[nan, 2, 0.25, 0], [2, nan, nan, nan], [0.25, nan, nan, nan], [0, nan, nan, nan]]
    assert len(found) == 2
    np.testing.assert_allclose(drawn(found[0]), expected, atol=1e-6)


def test_specialization_is_a_line_a_kind() -> None:
    (panel,) = pictures(rows_of())["specialization"]().axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert set(lines) == {LINES["token_specialization"], LINES["source_specialization"]}
    assert lines["token id"] == [[layer, 1 - layer / 10] for layer in range(LAYERS)]
    assert lines["source"] == [[layer, layer / 20] for layer in range(LAYERS)]


def test_the_scale_is_even_on_both_sides_of_the_guess() -> None:
    figure = pictures(rows_of())["share_by_source"]()
    low, high = panels(figure)[0].images[0].get_clim()
    assert low == pytest.approx(-high)
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    ticks = {label.get_text(): place for label, place in zip(bar.get_yticklabels(), bar.get_yticks(), strict=True)}
    # one ratio in eight is 0, so the scale goes as far as it can
    places = [-math.log(8), -math.log(8) / 2, 0, math.log(8) / 2, math.log(8)]
    assert ticks == dict(zip(("1/8", "1/2.8", "1", "2.8", "8"), map(pytest.approx, places), strict=True))


def test_equal_rows_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths = save(pictures(rows_of(1))["load"], tmp_path / folder / "load")
        assert [path.name for path in paths] == ["load.png", "load.svg"]
    for name in ("load.png", "load.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 2
