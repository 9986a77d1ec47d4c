"""Figures of evaluations: what is drawn, read back from matplotlib's axes, and what is said of the rest."""

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_rows import (
    CATALOGUE,
    GROUPS,
    MODELS,
    evaluation_row,
    grid_rows,
    law,
    model_rows,
    paper_grid_rows,
    perplexity_of,
)
from result_rows import params_of

from olmoe_parrots import figures
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation_figures import evaluation_figures
from olmoe_parrots.plotting import MARKERS
from olmoe_parrots.results import Row, append_rows


@pytest.fixture(scope="module")
def grid() -> tuple[dict[str, Any], list[str]]:
    """The figures of all models on all tasks, and what is said of them."""
    return evaluation_figures(grid_rows(), CATALOGUE)


def panel_of(figure: Any, title: str, value: str) -> Any:
    return next(a for a in figure.axes if (a.get_title(), a.get_ylabel()) == (title, value))


def lines_of(axes: Any) -> list[list[tuple[float, float]]]:
    """The joined lines of a panel, as (x, y) of their points; error bars and the zero line are none."""
    lines = [
        line for line in axes.lines if line.get_marker() == "None" and not line.get_label().startswith("_nolegend")
    ]
    found = [[(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)] for line in lines]
    return [line for line in found if line and line != [(0.0, 0.0), (1.0, 0.0)]]


def mean_law(category: str, width: int, experts: int, metric: str) -> float:
    tasks = [task for task in GROUPS[category] if CATALOGUE.tasks[task].metric == metric]
    return sum(law(task, width, experts) for task in tasks) / len(tasks)


PANELS = {
    ("World knowledge (2 tasks)", "mean F1"): ("world_knowledge", "f1"),
    ("Commonsense (3 tasks)", "mean accuracy"): ("commonsense", "accuracy"),
    ("Math (2 tasks)", "mean accuracy"): ("math", "accuracy"),
    ("Math (2 tasks)", "mean bits per byte (lower is better)"): ("math", "bits_per_byte"),
}
LINES = (((32, 0), (64, 0), (128, 0)), ((32, 4), (32, 16)), ((64, 4), (64, 16)))
"""Dense models are one line; each width of MoEs another."""


def test_each_line_is_a_width_and_lies_where_the_law_puts_it(grid: tuple[dict[str, Any], list[str]]) -> None:
    drawn, lacking = grid
    assert lacking == []
    places = {
        "averages_by_total_params": lambda w, e: params_of(w, e)[0],
        "averages_by_active_params": lambda w, e: params_of(w, e)[1],
        "averages_by_training_flops": lambda w, e: 6.0 * params_of(w, e)[1] * 2_000_000,
        "averages_by_perplexity": perplexity_of,
    }
    assert set(drawn) == {*places, "generalization_gap"}
    for stem, place in places.items():
        assert len(drawn[stem].axes) == len(PANELS)
        for labels, (category, metric) in PANELS.items():
            found = lines_of(panel_of(drawn[stem], *labels))
            expected = [[(place(*m), mean_law(category, *m, metric)) for m in line] for line in LINES]
            assert [[*map(pytest.approx, line)] for line in expected] == found
    legend = [text.get_text() for text in drawn["averages_by_total_params"].legends[0].get_texts()]
    assert legend == [
        *("dense", "MoE, d = 32", "MoE, d = 64"),
        *("no experts", "4 experts", "16 experts", "95% interval over examples"),
    ]


def test_markers_are_numbers_of_experts_and_bars_are_95_percent(grid: tuple[dict[str, Any], list[str]]) -> None:
    drawn, _ = grid
    axes = panel_of(drawn["averages_by_total_params"], "World knowledge (2 tasks)", "mean F1")
    marked = {}
    for container in axes.containers:
        point, _, (bar,) = container.lines
        x, y = (float(values[0]) for values in point.get_data())
        ((_, low), (_, high)) = bar.get_segments()[0]
        assert [high - y, y - low] == pytest.approx([1.959964 * 0.02 / math.sqrt(2)] * 2)
        marked[round(x)] = point.get_marker()
    expected = {params_of(w, e)[0]: MARKERS[(0, 4, 16).index(e)] for w, e in MODELS}
    assert marked == expected


def test_the_gap_is_train_minus_test_accuracy(grid: tuple[dict[str, Any], list[str]]) -> None:
    drawn, _ = grid
    for title in ("GSM", "MATH PROBLEMS"):
        axes = panel_of(drawn["generalization_gap"], title, "train minus test accuracy")
        found = lines_of(axes)
        assert [[round(y, 9) for _, y in line] for line in found] == [[0.05] * 3, [0.15] * 2, [0.15] * 2]
        bar = axes.containers[0].lines[2][0].get_segments()[0]
        assert bar[1][1] - bar[0][1] == pytest.approx(2 * 1.959964 * math.hypot(0.02, 0.02))


def test_over_seeds_bars_are_students() -> None:
    rows = [replace(row, value=row.value + 0.01 * s, seed=s) for s in (0, 1, 2) for row in model_rows(32, 0)]
    drawn, _ = evaluation_figures(rows, CATALOGUE)
    axes = panel_of(drawn["averages_by_total_params"], "Commonsense (3 tasks)", "mean accuracy")
    ((_, low), (_, high)) = axes.containers[0].lines[2][0].get_segments()[0]
    # averages of 0, 0.01 and 0.02 above the law: s = 0.01; t(0.975) of 2 degrees of freedom is 4.302653
    assert [low, high] == pytest.approx([0.14 - 4.302653 * 0.01 / 3**0.5, 0.14 + 4.302653 * 0.01 / 3**0.5], rel=1e-6)
    assert "95% interval over seeds" in [t.get_text() for t in drawn["averages_by_total_params"].legends[0].get_texts()]


def test_what_is_not_drawn_is_said_with_the_rows_that_lack() -> None:
    rows = [
        row
        for row in grid_rows()
        if row.split != "train" and not row.task.startswith("perplexity")
        if CATALOGUE.tasks[row.task].category != "world_knowledge" and (row.model, row.task) != ("dense_d64", "gsm")
    ]
    drawn, lacking = evaluation_figures(rows, CATALOGUE)
    assert set(drawn) == {"averages_by_total_params", "averages_by_active_params", "averages_by_training_flops"}
    assert len(drawn["averages_by_total_params"].axes) == 3
    dense = lines_of(panel_of(drawn["averages_by_total_params"], "Math (2 tasks)", "mean accuracy"))[0]
    assert [x for x, _ in dense] == [params_of(32, 0)[0], params_of(128, 0)[0]]
    assert "World knowledge (F1) is not drawn: there are no rows of trivia, questions." in lacking
    assert "Math (accuracy) is drawn without dense_d64, which has no rows of gsm." in lacking
    assert any(line.startswith("Nothing is drawn against validation perplexity") for line in lacking)
    assert any(line.startswith("No generalization gap is drawn") for line in lacking)
    assert len(lacking) == len(set(lacking)) == 4


def test_models_of_other_data_are_pictures_of_their_own() -> None:
    rows = [row for row in grid_rows() if row.task in (*GROUPS["commonsense"], "perplexity")]
    elsewhere = [replace(row, data={"name": "math/65B"}) for row in rows if row.model == "moe_d64_e4"]
    elsewhere = [row for row in elsewhere if row.task != "perplexity"]
    foreign = evaluation_row("perplexity", 5.0, 64, 4, data={"name": "math/65B"}, details={"folder": "x/math/65B"})
    drawn, _ = evaluation_figures([*rows, *elsewhere, foreign], CATALOGUE)
    assert {"averages_by_total_params_mixture", "averages_by_total_params_math_65B"} <= set(drawn)
    axes = panel_of(drawn["averages_by_perplexity_math_65B"], "Commonsense (3 tasks)", "mean accuracy")
    assert lines_of(axes) == [[(5.0, pytest.approx(mean_law("commonsense", 64, 4, "accuracy")))]]
    axes = panel_of(drawn["averages_by_perplexity_mixture"], "Commonsense (3 tasks)", "mean accuracy")
    assert [len(line) for line in lines_of(axes)] == [3, 2, 2]


def two_rows_of_much_the_same_size() -> list[Row]:
    sizes = {(32, 0): 4_621_440, (32, 4): 5_411_968}
    about = {key: {"total_params": size, "training_flops": 2.1e6 * size} for key, size in sizes.items()}
    return [row for key, facts in about.items() for row in model_rows(*key, **facts)]


@pytest.mark.parametrize("rows", [paper_grid_rows, two_rows_of_much_the_same_size])
def test_ticks_do_not_run_into_each_other(rows: Callable[[], list[Row]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures_of_grid, _ = evaluation_figures(rows(), CATALOGUE)
    for stem in ("averages_by_total_params", "averages_by_training_flops"):
        figure = figures_of_grid[stem]
        FigureCanvasAgg(figure).draw()
        for axes in figure.axes:
            low, high = axes.get_xlim()
            labels = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
            boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
            assert len(boxes) >= 3
            assert len({label.get_text() for label in labels}) == len(labels)
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.fixture
def rows_of_real_tasks() -> list[Row]:
    from olmoe_parrots.columns import Catalogue

    catalogue = Catalogue.load()
    columns = [catalogue.column(name) for name in catalogue.groups["commonsense"]]
    return [
        evaluation_row(c.task, law("arc", w, e), w, e, metric=c.metric, split=c.split)
        for c in columns
        for w, e in MODELS[:2]
    ]


def test_the_command_draws_what_there_is_and_equal_rows_give_equal_files(
    rows_of_real_tasks: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_rows(tmp_path / "r.jsonl", rows_of_real_tasks)
    sums = []
    for folder in ("a", "b"):
        assert figures.main([str(tmp_path / "r.jsonl"), "--output", str(tmp_path / folder)]) == 0
        files = sorted((tmp_path / folder).iterdir())
        sums.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert sums[0] == sums[1]
    stems = [f"averages_by_{name}" for name in ("active_params", "total_params", "training_flops")]
    assert list(sums[0]) == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    told = capsys.readouterr()
    assert str(tmp_path / "a" / "averages_by_total_params.png") in told.out
    assert "World knowledge (bits per byte) is not drawn: there are no rows of trivia_qa_wiki_ppl" in told.err


def test_rows_that_make_no_average_are_one_line(rows_of_real_tasks: list[Row], tmp_path: Path) -> None:
    append_rows(tmp_path / "r.jsonl", [row for row in rows_of_real_tasks if row.task != "piqa_rc_0shot"])
    with pytest.raises(InputError, match=r"nor an average of evaluations.*which has no rows of piqa_rc_0shot"):
        figures.main([str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "figures")])
    assert not (tmp_path / "figures").exists()
