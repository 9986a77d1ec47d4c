"""The generalization gap's table: its numbers against plain arithmetic, and why a gap is missing."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_rows import CATALOGUE, MODELS, evaluation_row, grid_rows, law, model_rows

from olmoe_parrots import results_command
from olmoe_parrots.columns import Catalogue
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation_figures import evaluation_figures
from olmoe_parrots.gaps import GapTable, build_gap_table, gaps
from olmoe_parrots.model_results import bootstrap_error
from olmoe_parrots.results import Row, append_rows
from olmoe_parrots.table_formats import as_csv, as_latex, as_markdown, as_plain


def pair(train: float, test: float, *, task: str = "gsm", **others: object) -> list[Row]:
    """A model's rows on training and on test problems."""
    return [evaluation_row(task, train, split="train", **others), evaluation_row(task, test, **others)]


def lines_of(table: GapTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(table))))


def only(rows: Sequence[Row]) -> dict[str, str]:
    (line,) = lines_of(build_gap_table(rows, CATALOGUE))
    return line


def test_each_gap_is_train_minus_test_with_the_errors_of_both() -> None:
    table = build_gap_table(grid_rows(), CATALOGUE)
    assert [gap.title for gap in table.gaps] == ["GSM", "MATH PROBLEMS"], "as in the catalogue"
    lines = {(line["task"], line["model"]): line for line in lines_of(table)}
    assert len(lines) == 2 * len(MODELS)
    for width, experts in MODELS:
        for task in ("gsm", "math_problems"):
            line = lines[task, f"moe_d{width}_e{experts}" if experts else f"dense_d{width}"]
            gap = 0.15 if experts else 0.05
            values = [float(line[name]) for name in ("train", "test", "gap", "gap:se")]
            expected = [law(task, width, experts) + gap, law(task, width, experts), gap, math.sqrt(2 * 0.02**2)]
            assert values == pytest.approx(expected)
            assert [line[name] for name in ("train:examples", "test:examples", "gap:seeds")] == ["400", "400", "1"]
    assert table.notes == ("± is one standard error, over examples.",)
    plain = as_plain(table)
    assert "GSM: accuracy on training problems minus accuracy on test problems\n" in plain
    shown = next(line for line in plain.splitlines() if line.startswith("dense_d64"))
    assert shown.split()[4:] == ["0.300", "±", "0.020", "0.250", "±", "0.020", "0.050", "±", "0.028", "400", "400"]


def test_the_standard_error_comes_of_outcomes_where_rows_hold_them() -> None:
    outcomes = [[1.0] * 150 + [0.0] * 50, [1.0] * 40 + [0.0] * 60]
    rows = [
        replace(row, standard_error=None, details={"outcomes": scores})
        for row, scores in zip(pair(0.75, 0.4), outcomes, strict=True)
    ]
    error = float(only(rows)["gap:se"])
    assert error == pytest.approx(math.hypot(*(bootstrap_error([scores]) for scores in outcomes)))
    assert error == pytest.approx(math.sqrt(0.75 * 0.25 / 200 + 0.4 * 0.6 / 100), rel=0.06)
    assert only([replace(rows[0], details={}), rows[1]])["gap:se"] == "", "one of the two is unknown"


def test_of_several_seeds_the_gap_and_its_error_are_over_seeds() -> None:
    trains, tests = (0.5, 0.62, 0.56), (0.4, 0.5, 0.42)
    rows = [row for seed in (0, 1, 2) for row in pair(trains[seed], tests[seed], seed=seed)]
    differences = [train - test for train, test in zip(trains, tests, strict=True)]
    line = only(rows)
    assert float(line["gap"]) == pytest.approx(statistics.fmean(differences))
    assert float(line["gap:se"]) == pytest.approx(statistics.stdev(differences) / math.sqrt(3))
    assert line["gap:seeds"] == "3"
    fewer = only(rows[:-1])
    apart = math.hypot(statistics.stdev(trains) / math.sqrt(3), statistics.stdev(tests[:2]) / math.sqrt(2))
    assert float(fewer["gap:se"]) == pytest.approx(apart)


def test_what_is_missing_is_told_and_never_taken_as_nought() -> None:
    rows = [*pair(0.5, 0.4), evaluation_row("gsm", 0.3, 64), evaluation_row("gsm", 0.9, 128, split="train")]
    table = build_gap_table(rows, CATALOGUE)
    lines = {line["model"]: line for line in lines_of(table)}
    assert [lines[f"dense_d{width}"]["gap"] for width in (64, 128)] == ["", ""]
    assert (lines["dense_d64"]["test"], lines["dense_d128"]["train"]) == ("0.3", "0.9")
    assert table.notes[:2] == (
        "GSM: no gap of dense_d64, no accuracy on training problems.",
        "GSM: no gap of dense_d128, no accuracy on test problems.",
    )
    for text in (as_plain(table), as_markdown(table), as_latex(table)):
        assert text.count("missing") == 6, "a value, its gap and its count, of two models"
    steps = [evaluation_row("gsm", 0.5, split="train", step=500), evaluation_row("gsm", 0.4)]
    assert only(steps)["missing"] == "no accuracy on training problems", "values of two steps are not put together"


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ({"limit": 200}, {"limit": None}, "limit 200 on training problems, none on test problems"),
        ({"shots": 8}, {"shots": 0}, "shots 8 on training problems, 0 on test problems"),
        ({"prompt": "a1"}, {"prompt": "b2"}, "prompts, stop strings or lengths differ"),
        (
            {"limit": 5, "precision": "fp32"},
            {"limit": 6, "precision": "amp_bf16"},
            "limit 5 on training problems, 6 on test problems; "
            "precision fp32 on training problems, amp_bf16 on test problems",
        ),
    ],
)
def test_no_gap_is_taken_between_measurements_that_differ(
    train: dict[str, object], test: dict[str, object], told: str
) -> None:
    of_train, of_test = pair(0.5, 0.4)
    rows = [replace(of_train, details=train), replace(of_test, details=test)]
    line = only(rows)
    assert (line["train"], line["test"], line["gap"]) == ("0.5", "0.4", "")
    assert line["missing"] == f"the two were not measured alike: {told}"
    figures, lacking = evaluation_figures([*rows, *model_rows(64, 0), *pair(0.5, 0.4, width=64)], CATALOGUE)
    assert len(figures["generalization_gap"].axes[0].containers) == 1
    assert f"GSM: no gap of dense_d32, {line['missing']}." in lacking
    alike = [replace(row, details={**train, "local": row.split}) for row in rows]
    assert float(only(alike)["gap"]) == pytest.approx(0.1)


def test_seeds_that_were_asked_other_problems_have_no_gap() -> None:
    rows = [row for seed in (0, 1) for row in pair(0.5, 0.4, seed=seed)]
    rows = [replace(row, details={"problems_sha256": f"{row.seed}"} if row.split == "train" else {}) for row in rows]
    assert only(rows)["missing"] == "its seeds were asked different training problems"


def test_a_benchmark_that_is_evaluated_on_its_split_train_has_no_training_problems() -> None:
    catalogue = Catalogue.load()
    rows = [evaluation_row("gsm_hard_gen", 0.5, metric="accuracy", split="train")]
    assert gaps(rows, catalogue) == []
    with pytest.raises(InputError, match=r"results: they hold no accuracy on training problems; .*--training-problems"):
        build_gap_table(rows, catalogue)
    rows.append(evaluation_row("minerva_math_gen", 0.5, metric="accuracy", split="train"))
    (gap,) = gaps(rows, catalogue)
    assert (gap.title, gap.test.split) == ("Minerva-MATH", "test")


def test_the_command_writes_what_suffixes_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, task="gsm8k_gen") for row in grid_rows() if row.task == "gsm"]
    append_rows(tmp_path / "r.jsonl", rows)
    words = ["gap", str(tmp_path / "r.jsonl")]
    outputs = [f"--output={tmp_path / name}" for name in ("gap.md", "gap.tex")]
    assert results_command.main([*words, *outputs, f"--csv={tmp_path / 'gap'}"]) == 0
    assert "GSM8K: accuracy on training problems minus accuracy on test problems" in capsys.readouterr().out
    assert (tmp_path / "gap.md").read_text().count("0.150 ± 0.028") == 4
    assert (tmp_path / "gap.tex").read_text().count(r"0.150 $\pm$ 0.028") == 4
    assert len((tmp_path / "gap").read_text().splitlines()) == 1 + len(MODELS)
    for option, told in (
        ("--output=gap.pdf", r"--output gap\.pdf: its suffix is of no kind of table; use \.csv, \.md, \.tex"),
        (outputs[0], "gap.md: it is there already"),
        (f"--step={5}", "--step 5: no row is of this step; there are 1000"),
    ):
        with pytest.raises(InputError, match=told):
            results_command.main([*words, option])
