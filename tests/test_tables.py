"""Tables of evaluations: their numbers against plain arithmetic, their files parsed back, what is missing told."""

import csv
import io
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_rows import (
    CATALOGUE,
    GROUPS,
    HELD_OUT,
    MODELS,
    TASKS,
    evaluation_row,
    grid_rows,
    law,
    model_rows,
    perplexity_of,
)
from result_rows import make_row, params_of

from olmoe_parrots import results_command
from olmoe_parrots.columns import Average, Catalogue, Column
from olmoe_parrots.errors import InputError
from olmoe_parrots.model_results import Cell, bootstrap_error
from olmoe_parrots.results import Row, append_rows
from olmoe_parrots.table_formats import as_csv, as_latex, as_markdown, as_plain, print_rich, short_count
from olmoe_parrots.tables import Table, build_table


def table_of(rows: Sequence[Row], **options: object) -> Table:
    return build_table(rows, CATALOGUE, **options)


def cells(table: Table, column: Column | Average) -> dict[str, Cell | None]:
    return {model.name: model.cell_of(column) for model in table.models}


def average_of(table: Table, category: str, metric: str) -> Average:
    return next(a for a in table.selection.averages if (a.category, a.metric) == (category, metric))


def test_an_average_is_the_plain_mean_over_the_category_and_metrics_are_not_mixed() -> None:
    table = table_of(grid_rows())
    tasks = {("world_knowledge", "f1"): 2, ("commonsense", "accuracy"): 3, ("math", "accuracy"): 2}
    tasks["math", "bits_per_byte"] = 2
    assert {(a.category, a.metric): len(a.columns) for a in table.selection.averages} == tasks
    for width, experts in MODELS:
        name = f"moe_d{width}_e{experts}" if experts else f"dense_d{width}"
        knowledge = cells(table, average_of(table, "world_knowledge", "f1"))[name]
        assert knowledge is not None
        assert knowledge.value == pytest.approx((law("trivia", width, experts) + law("questions", width, experts)) / 2)
        assert knowledge.error == pytest.approx(0.02 / math.sqrt(2))
        bits = cells(table, average_of(table, "math", "bits_per_byte"))[name]
        assert bits is not None
        assert bits.value == pytest.approx(2.0 - 0.1 * math.log10(params_of(width, experts)[0]) + 0.075)
    common = cells(table, average_of(table, "commonsense", "accuracy"))
    assert [round(cell.value, 6) for cell in common.values() if cell] == [0.13, 0.23, 0.33, 0.13, 0.13, 0.23, 0.23]


def test_a_model_without_one_of_the_tasks_has_no_average_and_is_told() -> None:
    rows = [row for row in grid_rows() if not (row.model == "moe_d32_e4" and row.task == "piqa")]
    table = table_of(rows)
    common = cells(table, average_of(table, "commonsense", "accuracy"))
    assert common["moe_d32_e4"] is None
    assert [name for name, cell in common.items() if cell is None] == ["moe_d32_e4"]
    assert cells(table, average_of(table, "math", "accuracy"))["moe_d32_e4"] is not None
    assert "Commonsense (accuracy): no average for moe_d32_e4, since there is no value of PIQA." in table.notes
    line = next(line for line in as_plain(table).splitlines() if line.startswith("moe_d32_e4") and "0.120" in line)
    assert line.split()[4:] == ["0.120", "±", "0.020", "missing", "0.140", "±", "0.020", "missing"]


def test_a_task_that_no_model_has_is_not_left_out_of_an_average() -> None:
    table = table_of([row for row in grid_rows() if row.task != "piqa"])
    assert set(cells(table, average_of(table, "commonsense", "accuracy")).values()) == {None}
    assert any("no average for any model, since there is no value of PIQA" in note for note in table.notes)
    assert Column("piqa", "test", "accuracy") not in table.columns


def test_of_several_seeds_mean_and_standard_error_are_over_seeds() -> None:
    noise = {0: (0.01, -0.03, 0.02), 1: (0.0, 0.02, 0.05), 2: (-0.02, 0.0, 0.03)}
    rows = [
        evaluation_row(task, 0.5 + noise[seed][i], seed=seed)
        for seed in noise
        for i, task in enumerate(GROUPS["commonsense"])
    ]
    table = table_of(rows)
    arc = cells(table, Column("arc", "test", "accuracy"))["dense_d32"]
    values = [0.51, 0.5, 0.48]
    assert arc is not None and arc.seeds == 3
    assert arc.value == pytest.approx(statistics.fmean(values))
    assert arc.error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    averages = [0.5 + statistics.fmean(noise[seed]) for seed in noise]
    average = cells(table, average_of(table, "commonsense", "accuracy"))["dense_d32"]
    assert average is not None
    assert average.value == pytest.approx(statistics.fmean(averages))
    assert average.error == pytest.approx(statistics.stdev(averages) / math.sqrt(3))
    assert "± is one standard error, over seeds." in table.notes


def test_fewer_seeds_of_a_task_are_told_and_errors_are_then_independent() -> None:
    rows = [evaluation_row(task, 0.5, seed=seed) for seed in (0, 1) for task in GROUPS["commonsense"]]
    rows = [row for row in rows if (row.task, row.seed) != ("arc", 1)]
    table = table_of(rows)
    average = cells(table, average_of(table, "commonsense", "accuracy"))["dense_d32"]
    assert average is not None
    assert average.error == pytest.approx(0.02 / 3), "the tasks of two seeds agree exactly, that of one has 0.02"
    assert "dense_d32 has 2 seeds, but fewer of ARC." in table.notes


def test_a_task_without_standard_error_leaves_the_average_without_one() -> None:
    rows = [replace(row, standard_error=None) if row.task == "arc" else row for row in model_rows(32, 0)]
    table = table_of(rows)
    assert cells(table, Column("arc", "test", "accuracy"))["dense_d32"] == Cell(rows[2].value, None, 1, 400)
    average = cells(table, average_of(table, "commonsense", "accuracy"))["dense_d32"]
    assert average is not None and average.error is None


def test_the_bootstrap_comes_to_the_formula_of_shares() -> None:
    outcomes = [[1.0] * 120 + [0.0] * 280, [1.0] * 40 + [0.0] * 60]
    errors = [math.sqrt(p * (1 - p) / n) for p, n in ((0.3, 400), (0.4, 100))]
    assert bootstrap_error(outcomes[:1]) == pytest.approx(errors[0], rel=0.06)
    assert bootstrap_error(outcomes) == pytest.approx(math.hypot(*errors) / 2, rel=0.06)
    rows = [
        evaluation_row(task, statistics.fmean(scores), standard_error=None, details={"outcomes": scores})
        for task, scores in zip(GROUPS["world_knowledge"], outcomes, strict=True)
    ]
    table = table_of(rows)
    average = cells(table, average_of(table, "world_knowledge", "f1"))["dense_d32"]
    assert average is not None
    assert average.error == bootstrap_error(outcomes)
    wrong = table_of([replace(rows[0], value=0.9), rows[1]])
    assert cells(wrong, Column("trivia", "test", "f1"))["dense_d32"] == Cell(0.9, None, 1, 400), "outcomes of others"


def test_the_last_of_two_equal_measurements_counts_and_is_told() -> None:
    rows = [*model_rows(32, 0), evaluation_row("arc", 0.75, time=-5.0)]
    table = table_of(rows)
    arc = cells(table, Column("arc", "test", "accuracy"))["dense_d32"]
    assert arc is not None and arc.value == 0.75, "the order of the file decides, not the clock"
    assert "Measured more than once, the last row counts: arc of dense_d32 (seed 0)." in table.notes


def test_a_run_is_shown_at_its_last_step_or_at_the_one_asked_for() -> None:
    rows = [*model_rows(32, 0), evaluation_row("arc", 0.9, step=2000), *model_rows(64, 0)]
    arc, piqa = (Column(task, "test", "accuracy") for task in ("arc", "piqa"))
    table = table_of(rows)
    found = cells(table, arc)["dense_d32"]
    assert found is not None and found.value == 0.9
    assert cells(table, piqa)["dense_d32"] is None, "values of two steps are not put side by side"
    assert cells(table, piqa)["dense_d64"] is not None
    assert any(note.startswith("dense_d32 (seed 0) is shown at step 2000; measured at other") for note in table.notes)
    earlier = table_of(rows, step=1000)
    found = cells(earlier, arc)["dense_d32"]
    assert found is not None and found.value == law("arc", 32, 0)
    assert [model.name for model in table_of(rows, step=2000).models] == ["dense_d32"]
    with pytest.raises(InputError, match=r"--step 5: no row is of this step; there are 1000, 2000"):
        table_of(rows, step=5)


def test_models_of_one_name_are_told_apart_by_what_differs() -> None:
    rows = [*model_rows(32, 0), *model_rows(32, 0, data={"name": "math"}), *model_rows(64, 0)]
    assert [m.name for m in table_of(rows).models] == ["dense_d32 (math)", "dense_d32 (mixture)", "dense_d64"]
    rows = [*model_rows(32, 0), *model_rows(32, 0, learning_rate=3e-4)]
    names = [model.name for model in table_of(rows).models]
    assert names == ["dense_d32 (learning rate 0.0003)", "dense_d32 (learning rate 0.001)"]
    seeds = [*model_rows(32, 0), *model_rows(32, 0, seed=1, step=2000, total_params=7)]
    notes = table_of(seeds).notes
    assert "dense_d32 has seeds that are shown at different steps: 1000, 2000." in notes
    assert "dense_d32 has rows of different numbers of parameters: 7, 14336." in notes
    configs = [*model_rows(32, 0), *model_rows(32, 0, config_digest="other", step=2000)]
    assert any("rows of several configs, taken together as one run: 32-0, other" in n for n in table_of(configs).notes)


def test_a_perplexity_stands_under_the_text_it_was_measured_on() -> None:
    rows = grid_rows()
    table = table_of(rows)
    block = table.blocks()[-1]
    assert (block.title, block.headings) == ("Held-out sequences", ("perplexity",))
    found = cells(table, Column("perplexity", "validation", "perplexity", "mixture"))["moe_d64_e4"]
    assert found is not None and found.value == perplexity_of(64, 4)
    rows.append(evaluation_row("perplexity", 99.0, details={"folder": "s3://bucket/elsewhere/"}))
    block = table_of(rows).blocks()[-1]
    assert block.headings == ("perplexity on elsewhere", "perplexity on mixture")
    sources = table_of(grid_rows(), tasks=["perplexity/wiki", "perplexity:perplexity"]).blocks()[-1]
    assert sorted(sources.headings) == ["perplexity", "perplexity of wiki"]


def test_examples_that_were_not_all_measured_are_told() -> None:
    rows = [replace(row, examples=200) if row.task == "arc" else row for row in grid_rows()]
    assert "Measured on a part of the examples: ARC 200 of 400." in table_of(rows).notes
    rows[2] = replace(rows[2], examples=400)
    assert "Measured on a part of the examples: ARC 200 or 400 of 400." in table_of(rows).notes


def test_asked_tasks_alone_are_shown_and_their_average_says_of_how_many() -> None:
    table = table_of(grid_rows(), tasks=["arc", "piqa"])
    assert [c.task for c in table.selection.columns] == ["arc", "piqa"]
    average = average_of(table, "commonsense", "accuracy")
    assert table.heading(average) == "average of 2 of 3"
    assert "Commonsense (accuracy): averaged over 2 of its 3 tasks, as asked." in table.notes
    only = table_of(grid_rows(), categories=["math"])
    assert {column.task for column in only.selection.columns} == set(GROUPS["math"])
    everything = table_of(grid_rows(), tasks=["world_knowledge", "gsm:accuracy"])
    assert [(c.task, c.split) for c in everything.selection.columns] == [
        *(("trivia", "test"), ("questions", "test")),
        *(("gsm", "test"), ("gsm", "train")),
    ]
    bits = table_of(grid_rows(), tasks=["math:bits_per_byte"])
    assert [column.task for column in bits.selection.columns] == ["gsm_bits", "math_bits"]
    further = table_of([*grid_rows(), evaluation_row("arc_5shot", 0.5)])
    assert further.blocks()[-2].title == "Commonsense, not in the average"


def parsed_markdown(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as rows of cells, headings first."""
    tables = []
    for part in re.split(r"^### .*$", text, flags=re.M)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        tables.append([rows[0], *rows[2:]])
    return tables


def parsed_latex(text: str) -> list[list[list[str]]]:
    tables = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.S):
        lines = [line.removesuffix(r" \\") for line in body.splitlines() if line != r"\midrule"]
        rows = [re.split(r" (?<!\\)& ", line) for line in lines]
        tables.append([[re.sub(r"\\([&%$#_{}])", r"\1", c.replace(r"$\pm$", "±")) for c in row] for row in rows])
    return tables


def test_markdown_and_latex_parse_back_to_the_same_cells() -> None:
    rows = [replace(row, model="50%_a&b|c") if row.model == "dense_d64" else row for row in grid_rows()]
    table = table_of([row for row in rows if (row.model, row.task) != ("dense_d32", "gsm")])
    markdown = parsed_markdown(as_markdown(table))
    latex = parsed_latex(as_latex(table).replace(r"\textbar{}", "|"))
    assert markdown == latex
    assert len(markdown) == len(table.blocks()) == 6
    for block, (heading, *lines) in zip(table.blocks(), markdown, strict=True):
        assert heading == ["model", "total", "active", "tokens", *block.headings]
        assert [line[0] for line in lines] == [model.name for model in table.models]
        for model, line in zip(table.models, lines, strict=True):
            for column, text in zip(block.columns, line[4:], strict=True):
                cell = model.cell_of(column)
                if cell is None:
                    assert text == "missing"
                else:
                    value, error = (float(part) for part in text.split("±"))
                    assert [value, error] == pytest.approx([cell.value, cell.error], abs=6e-3)
    assert sum(text == "missing" for block in markdown for line in block for text in line) == 3
    for note in table.notes:
        assert f"- {note}\n" in as_markdown(table)


def test_csv_holds_every_digit_and_leaves_missing_values_empty() -> None:
    table = table_of([row for row in grid_rows() if (row.model, row.task) != ("dense_d32", "gsm")])
    lines = {line["model"]: line for line in csv.DictReader(io.StringIO(as_csv(table)))}
    assert len(lines) == len(MODELS)
    for width, experts in MODELS:
        line = lines[f"moe_d{width}_e{experts}" if experts else f"dense_d{width}"]
        assert [int(line["total_params"]), int(line["active_params"])] == list(params_of(width, experts))
        for task in TASKS:
            metric = CATALOGUE.tasks[task].metric
            if (width, experts, task) == (32, 0, "gsm"):
                assert line[f"{task}:{metric}"] == line[f"{task}:{metric}:se"] == ""
            else:
                assert float(line[f"{task}:{metric}"]) == law(task, width, experts)
                assert float(line[f"{task}:{metric}:se"]) == 0.02
    assert lines["dense_d32"]["average:math:accuracy"] == ""
    math_of = [law(task, 64, 4) for task in ("gsm", "math_problems")]
    assert float(lines["moe_d64_e4"]["average:math:accuracy"]) == pytest.approx(sum(math_of) / 2)


def test_a_terminal_gets_the_same_values_ruled() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    table = table_of([row for row in grid_rows() if (row.model, row.task) != ("dense_d32", "gsm")])
    print_rich(table, console)
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    plain = as_plain(table)
    numbers = re.compile(r"\d+\.\d+ ± \d+\.\d+|missing")
    assert numbers.findall(text) == numbers.findall(plain)
    assert len(numbers.findall(plain)) > 100
    assert all(note in re.sub(r"\s+", " ", text) for note in table.notes)


def test_counts_are_short() -> None:
    counts = {34_457_856: "34.46M", 2_144_500_000: "2.144B", 999: "999", 999_999: "1M", 63e9: "63B", 15_296: "15.3k"}
    assert {count: short_count(count) for count in counts} == counts


def test_the_averages_are_over_the_papers_benchmarks() -> None:
    """Section 5: five by F1, eight and five by accuracy; those scored without generated answers apart."""
    counts = {(a.category, a.metric): a.of for a in Catalogue.load().averages()}
    assert {key: n for key, n in counts.items() if key[1] != "bits_per_byte"} == {
        ("world_knowledge", "f1"): 5,
        ("commonsense", "accuracy"): 8,
        ("math", "accuracy"): 5,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Rows of the real catalogue's tasks, for the command."""
    rows, catalogue = [], Catalogue.load()
    for width, experts in MODELS[:3]:
        for category, names in catalogue.groups.items():
            for name in names:
                column = catalogue.column(name)
                value = law(GROUPS[category][0], width, experts)
                where = {"metric": column.metric, "split": column.split}
                rows.append(evaluation_row(name, value, width, experts, **where))
        rows.append(evaluation_row("perplexity", perplexity_of(width, experts), width, experts, details=HELD_OUT))
    append_rows(tmp_path / "results.jsonl", rows)
    return tmp_path / "results.jsonl"


def test_the_command_prints_and_writes_and_reads_past_a_torn_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with results.open("a") as file:
        file.write('{"format": "olmoe_parrots.results/1", "model": "to')
    before = results.read_bytes()
    outputs = {kind: tmp_path / "new" / f"table.{kind}" for kind in ("csv", "markdown", "latex")}
    options = [text for kind, path in outputs.items() for text in (f"--{kind}", str(path))]
    assert results_command.main(["table", str(results), *options]) == 0
    told = capsys.readouterr()
    assert "it ends in the middle; left out" in told.err
    assert all(f"written: {path}" in told.err for path in outputs.values())
    assert "0.120 ± 0.007" in told.out, "eight tasks of 0.02 each: 0.02 / sqrt(8)"
    assert "0.120 ± 0.007" in outputs["markdown"].read_text()
    lines = list(csv.DictReader(outputs["csv"].open()))
    assert [float(line["average:commonsense:accuracy"]) for line in lines] == pytest.approx(
        [law("arc", width, 0) for width in (32, 64, 128)]
    )
    assert results.read_bytes() == before


def test_nothing_is_overwritten_unasked(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "table.csv"
    there.write_text("mine")
    with pytest.raises(InputError, match="it is there already"):
        results_command.main(["table", str(results), "--csv", str(there)])
    assert (there.read_text(), capsys.readouterr().out) == ("mine", "")
    assert results_command.main(["table", str(results), "--csv", str(there), "--overwrite"]) == 0
    assert there.read_text().startswith("model,")
    with pytest.raises(InputError, match="it is a results file that is read"):
        results_command.main(["table", str(results), "--csv", str(results), "--overwrite"])
    with pytest.raises(InputError, match="is no folder that can be written to"):
        results_command.main(["table", str(results), "--csv", str(there / "table.csv")])
    with pytest.raises(InputError, match="they name one file twice"):
        results_command.main(["table", str(results), "--csv", str(tmp_path / "x"), "--latex", str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "pica_rc_0shot"], r"--tasks pica_rc_0shot: there is no such task; did you mean piqa_rc_0shot"),
        (["--category", "sports"], r"--category sports: there is no such category; use world_knowledge, commonsense"),
        (["--tasks", "jeopardy_bpb_5shot"], r"results: they hold no row of an evaluation of jeopardy_bpb_5shot"),
    ],
)
def test_what_is_not_there_is_one_line(results: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        results_command.main(["table", str(results), *options])


def test_rows_of_synthetic_tasks_are_no_evaluations(tmp_path: Path) -> None:
    append_rows(tmp_path / "results.jsonl", [make_row(32, 0, 100.0)])
    with pytest.raises(InputError, match=r"they hold no row of an evaluation; .*of synthetic tasks see python -m"):
        results_command.main(["table", str(tmp_path / "results.jsonl")])


def test_help_answers_without_heavy_imports(results: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['results', 'table', sys.argv[1]]\n"
        "try: runpy.run_module('olmoe_parrots.results', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'olmo', 'matplotlib', 'datasets', 'scipy', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Commonsense: accuracy" in done.stdout
