"""A table as CSV, Markdown, LaTeX, plain text and rich tables. Only CSV is one table; the others have one a block.

Tables of tasks have a block a category and metric, those of generalization gaps a block a benchmark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .columns import Average
from .gaps import ON_TEST, ON_TRAINING, Gap, GapTable
from .model_results import Cell, ModelResults
from .tables import Block, Table, metric_name

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "missing"
FIXED = ("model", "total", "active", "tokens")
"""Headings of what stands before the values: parameters, and tokens that the model was trained on."""


_MODEL_FIELDS = ("model", "total_params", "active_params", "training_tokens", "training_flops")


def short_count(number: float) -> str:
    """Four digits and a letter: 34.46M, 2.144B."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor * 0.99995:
            return f"{number / factor:.4g}{letter}"
    return f"{number:g}"


def cell_text(cell: Cell | None, plus_minus: str = "±") -> str:
    """Value and standard error, or that it is missing: three decimals below ten, two below a thousand, else none."""
    if cell is None:
        return MISSING
    size = abs(cell.value)
    decimals = 3 if size < 10 else 2 if size < 1000 else 0
    numbers = [cell.value] if cell.error is None else [cell.value, cell.error]
    return f" {plus_minus} ".join(f"{number:,.{decimals}f}" for number in numbers)


def fixed_cells(model: ModelResults) -> list[str]:
    """What stands before the values."""
    last = model.last
    return [model.name, *map(short_count, (last.total_params, last.active_params, last.training_tokens))]


def block_rows(table: Table, block: Block, plus_minus: str = "±") -> list[list[str]]:
    """A block as texts, its headings first."""
    rows = [[*FIXED, *block.headings]]
    for model in table.models:
        rows.append([*fixed_cells(model), *(cell_text(model.cell_of(c), plus_minus) for c in block.columns)])
    return rows


def gap_rows(table: GapTable, gap: Gap, plus_minus: str = "±") -> list[list[str]]:
    """A benchmark's gaps as texts, its headings first: both accuracies, their difference, and examples of each."""
    rows = [[*FIXED, ON_TRAINING, ON_TEST, "gap", "asked in training", "asked in test"]]
    for model in table.models:
        train, test = model.cell_of(gap.train), model.cell_of(gap.test)
        values = [cell_text(cell, plus_minus) for cell in (train, test, gap.cell(model))]
        counts = [f"{cell.examples:,}" if cell and cell.examples is not None else MISSING for cell in (train, test)]
        rows.append([*fixed_cells(model), *values, *counts])
    return rows


def block_texts(table: Table | GapTable, plus_minus: str = "±") -> list[tuple[str, list[list[str]]]]:
    """Each block's title, and its rows as texts, headings first."""
    if isinstance(table, Table):
        return [(block.title, block_rows(table, block, plus_minus)) for block in table.blocks()]
    found = []
    for gap in table.gaps:
        metric = metric_name(gap.train.metric)
        title = f"{gap.title}: {metric} on {ON_TRAINING} minus {metric} on {ON_TEST}"
        found.append((title, gap_rows(table, gap, plus_minus)))
    return found


def as_csv(table: Table | GapTable) -> str:
    """Full digits, the standard error of a value in ...:se, its seeds in ...:seeds, and a missing value an empty field.

    Of tasks one line a model; averages are named average:CATEGORY:METRIC. Of gaps one line a benchmark and model, with
    the reason where there is none.
    """
    text = io.StringIO()
    lines = _task_lines(table) if isinstance(table, Table) else _gap_lines(table)
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _model_fields(model: ModelResults) -> list[object]:
    last = model.last
    return [model.name, last.total_params, last.active_params, last.training_tokens, last.training_flops]


def _gap_lines(table: GapTable) -> list[list[object]]:
    values = [f"{name}{part}" for name in ("train", "test", "gap") for part in ("", ":se", ":seeds")]
    lines: list[list[object]] = [
        ["task", "metric", "split", *_MODEL_FIELDS, *values, "train:examples", "test:examples", "missing"]
    ]
    for gap in table.gaps:
        for model in table.models:
            train, test = model.cell_of(gap.train), model.cell_of(gap.test)
            line: list[object] = [gap.test.task, gap.test.metric, gap.test.split, *_model_fields(model)]
            for cell in (train, test, gap.cell(model)):
                line += [cell.value, cell.error, cell.seeds] if cell else [None, None, None]
            counts = [cell.examples if cell else None for cell in (train, test)]
            lines.append([*line, *counts, gap.lacks(model)])
    return lines


def _task_lines(table: Table) -> list[list[object]]:
    names = []
    for column in table.columns:
        if isinstance(column, Average):
            part = "" if len(column.columns) == column.of else f":{len(column.columns)}_of_{column.of}"
            names.append(f"average:{column.category}:{column.metric}{part}")
        else:
            main = column.task not in table.catalogue.tasks or column == table.catalogue.column(column.task)
            names.append(
                ":".join(filter(None, (column.task, column.metric, column.text, "" if main else column.split)))
            )
    values = [f"{name}{suffix}" for name in names for suffix in ("", ":se", ":seeds")]
    lines: list[list[object]] = [[*_MODEL_FIELDS, *values]]
    for model in table.models:
        line = _model_fields(model)
        for column in table.columns:
            cell = model.cell_of(column)
            line += [cell.value, cell.error, cell.seeds] if cell else [None, None, None]
        lines.append(line)
    return lines


def as_markdown(table: Table | GapTable) -> str:
    """Pipe tables under headings, with the notes as a list."""
    parts = []
    for title, texts in block_texts(table):
        heading, *rows = [[text.replace("|", "\\|") for text in row] for row in texts]
        rule = ["---", *("---:" for _ in heading[1:])]
        lines = [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]
        parts.append("\n".join([f"### {title}", "", *lines]) + "\n")
    if table.notes:
        parts.append("".join(f"- {note}\n" for note in table.notes))
    return "\n".join(parts)


_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def as_latex(table: Table | GapTable) -> str:
    """A ``table`` with a ``tabular`` for each block, for a document with the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for title, texts in block_texts(table):
        heading, *rows = [" & ".join(text.translate(_LATEX) for text in row) + r" \\" for row in texts]
        align = "l" + "r" * (len(texts[0]) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{title.translate(_LATEX)}}}"]
        lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"]
        parts.append("\n".join([*lines, r"\end{tabular}", r"\end{table}"]) + "\n")
    parts += [note.translate(_LATEX) + "\n" for note in table.notes]
    return "\n".join(parts)


def as_plain(table: Table | GapTable) -> str:
    """Columns in line, for a pipe."""
    parts = []
    for title, rows in block_texts(table):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        align: Sequence[Callable[[str, int], str]] = [str.ljust, *(str.rjust for _ in widths[1:])]
        lines = ["  ".join(a(text, w) for a, text, w in zip(align, row, widths, strict=True)).rstrip() for row in rows]
        parts.append("\n".join([title, *lines]) + "\n")
    parts.append("".join(f"{note}\n" for note in table.notes))
    return "\n".join(parts)


def print_rich(table: Table | GapTable, console: Console) -> None:
    """Ruled tables on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    for title, texts in block_texts(table):
        heading, *rows = [[escape(text) for text in row] for row in texts]
        shown = RichTable(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for i, text in enumerate(heading):
            shown.add_column(text, justify="right" if i else "left", no_wrap=i < len(FIXED), overflow="fold")
        for row in rows:
            shown.add_row(*(text if text != MISSING else f"[dim]{MISSING}[/dim]" for text in row))
        console.print(shown)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
