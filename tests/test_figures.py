"""Figures and fits from rows whose shape is known."""

import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from result_rows import EXPERTS, WIDTHS, make_row, paper_like_rows, params_of

from olmoe_parrots import analysis, figures
from olmoe_parrots.analysis import fits, load_measures, mean_interval, measures
from olmoe_parrots.errors import InputError
from olmoe_parrots.results import append_rows


@pytest.fixture
def results(tmp_path: Path) -> Path:
    append_rows(tmp_path / "results.jsonl", paper_like_rows())
    return tmp_path / "results.jsonl"


def test_both_pictures_come_as_png_and_svg_and_equal_rows_give_equal_files(results: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert figures.main([str(results), "--output", str(tmp_path / folder)]) == 0
    names = {f"{stem}.{kind}" for stem in ("phone_book_capacity", "shortest_path_accuracy") for kind in ("png", "svg")}
    sums = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / f).iterdir()} for f in "ab"
    ]
    assert set(sums[0]) == names
    assert sums[0] == sums[1]
    svg = (tmp_path / "a" / "phone_book_capacity.svg").read_text()
    for label in ("total parameters", "active parameters", "entries recalled", "dense", "MoE, d = 64", "16 experts"):
        assert f"<!-- {label}" in svg or label in svg
    assert not re.search(r"20\d\d-\d\d-\d\dT", svg), "no time of making"


def test_a_line_is_a_width_and_dense_is_one_line(results: Path) -> None:
    book = next(measure for measure in load_measures([results]) if measure.task == "phone_book")
    names = figures.line_names(book.points)
    assert list(names.values()) == ["dense", "MoE, d = 32", "MoE, d = 64", "MoE, d = 128"]
    lines = {name: [p for p in book.points if figures.line_of(p) == key] for key, name in names.items()}
    assert {p.architecture["width"] for p in lines["dense"]} == set(WIDTHS)
    assert {p.architecture["experts"] for p in lines["MoE, d = 32"]} == set(EXPERTS) - {0}


def test_line_names_say_what_differs() -> None:
    shapes = [{"top_k": 1}, {"top_k": 4}, {"hidden_size": 128}]
    rows = [make_row(32, 8, 100.0) for _ in shapes]
    rows = [
        replace(r, model=f"m{i}", architecture=r.architecture | shape)
        for i, (r, shape) in enumerate(zip(rows, shapes, strict=True))
    ]
    names = figures.line_names(measures(rows)[0].points)
    assert sorted(names.values()) == [
        "MoE, d = 32, top-1, intermediate 1d",
        "MoE, d = 32, top-2, intermediate 4d",
        "MoE, d = 32, top-4, intermediate 1d",
    ]


def test_capacity_that_follows_total_parameters_is_found_to(results: Path) -> None:
    book, path = load_measures([results])
    by_total, by_active = fits(book)
    assert by_total.spearman == pytest.approx(1)
    assert by_total.r_squared == pytest.approx(1)
    assert by_active.r_squared < 0.9
    by_total, by_active = fits(path)
    assert by_active.spearman > by_total.spearman
    assert by_active.r_squared > by_total.r_squared


def test_fits_are_those_of_their_definitions() -> None:
    """Ranks counted by hand, and R² as one minus the residuals' share of the variance."""
    values = [30.0, 10.0, 70.0, 20.0, 90.0]
    rows = [make_row(width, 0, value) for width, value in zip((16, 32, 64, 128, 256), values, strict=True)]
    found = fits(measures(rows)[0])[0]
    ranks = [sorted(values).index(v) for v in values]
    assert found.spearman == pytest.approx(1 - 6 * sum((r - i) ** 2 for i, r in enumerate(ranks)) / (5 * 24))
    x = [math.log(params_of(width, 0)[0]) for width in (16, 32, 64, 128, 256)]
    y = [math.log(value) for value in values]
    mx, my = sum(x) / 5, sum(y) / 5
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    rest = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    assert found.r_squared == pytest.approx(1 - rest / sum((b - my) ** 2 for b in y))


def test_the_interval_is_students() -> None:
    # t(0.975) of 2 degrees of freedom is 4.302653, by any table
    low, mean, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert [high - mean, mean - low] == pytest.approx([4.302653 / math.sqrt(3)] * 2, rel=1e-6)
    assert mean_interval([5.0]) == (5, 5, 5)


def test_capacities_are_averaged_as_logarithms() -> None:
    point = measures([make_row(32, 0, value, seed=i) for i, value in enumerate((100.0, 400.0))])[0].points[0]
    assert point.mean == pytest.approx(200)
    low, high = point.interval
    assert low * high == pytest.approx(200**2)


def test_the_last_row_of_a_model_and_seed_counts() -> None:
    point = measures([make_row(32, 0, 100.0), make_row(32, 0, 150.0)])[0].points[0]
    assert point.values == (150.0,)


def test_bounds_are_drawn_hollow_and_left_out_of_fits(tmp_path: Path) -> None:
    rows = [make_row(width, 0, 10.0 * width) for width in WIDTHS]
    rows.append(make_row(256, 0, 5.0, details={"bound": "above"}))
    measure = measures(rows)[0]
    assert fits(measure)[0].models == 3
    assert fits(measure)[0].spearman == pytest.approx(1)
    assert "dense_d256 (above)" in analysis.markdown(measure)
    assert "beyond the sizes tried" in (figures.draw(measure, tmp_path)[1]).read_text()


def test_options_that_a_sweep_varies_are_pictures_of_their_own() -> None:
    rows = [
        make_row(32, 0, 0.5, metric="chosen/right", data={"name": f"shortest_path_vertices{n}", "vertices": n})
        for n in (8, 12)
    ]
    assert [measure.name for measure in measures(rows)] == ["shortest_path_vertices8", "shortest_path_vertices12"]


def test_the_tables_as_a_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis.main([str(results)]) == 0
    told = capsys.readouterr().out
    assert "| log total parameters | 12 | 1.000 | 1.000 |" in told
    assert "| dense_d32 | 14,336 | 14,336 | 3 |" in told


def test_a_file_without_results_is_one_line(tmp_path: Path) -> None:
    append_rows(tmp_path / "r.jsonl", [replace(make_row(32, 0, 1.0), metric="digit_accuracy")])
    with pytest.raises(InputError, match="there is no capacity of phone_book"):
        figures.main([str(tmp_path / "r.jsonl"), "--output", str(tmp_path)])
