"""A table as CSV, Markdown, LaTeX, plain text and rich tables. Only CSV is one table; the others have one a block."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .columns import Average
from .model_results import Cell, ModelResults
from .tables import Block, Table

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "missing"
FIXED = ("model", "total", "active", "tokens")
"""Headings of what stands before the values: parameters, and tokens that the model was trained on."""


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


def as_csv(table: Table) -> str:
    """One line a model; of each column the value, its standard error (`:se`) and its seeds (`:seeds`), in full digits.

    A missing value is an empty field. Averages are named average:CATEGORY:METRIC.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
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
    fixed = ["model", "total_params", "active_params", "training_tokens", "training_flops"]
    writer.writerow([*fixed, *(f"{name}{suffix}" for name in names for suffix in ("", ":se", ":seeds"))])
    for model in table.models:
        last = model.last
        line: list[object] = [
            model.name,
            last.total_params,
            last.active_params,
            last.training_tokens,
            last.training_flops,
        ]
        for column in table.columns:
            cell = model.cell_of(column)
            line += [cell.value, cell.error, cell.seeds] if cell else [None, None, None]
        writer.writerow(line)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """Pipe tables under headings, with the notes as a list."""
    parts = []
    for block in table.blocks():
        heading, *rows = [[text.replace("|", "\\|") for text in row] for row in block_rows(table, block)]
        rule = ["---", *("---:" for _ in heading[1:])]
        lines = [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]
        parts.append("\n".join([f"### {block.title}", "", *lines]) + "\n")
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


def as_latex(table: Table) -> str:
    """A ``table`` with a ``tabular`` for each block, for a document with the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for block in table.blocks():
        heading, *rows = [
            " & ".join(text.translate(_LATEX) for text in row) + r" \\" for row in block_rows(table, block)
        ]
        align = "l" + "r" * (len(FIXED) - 1 + len(block.headings))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{block.title.translate(_LATEX)}}}"]
        lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"]
        parts.append("\n".join([*lines, r"\end{tabular}", r"\end{table}"]) + "\n")
    parts += [note.translate(_LATEX) + "\n" for note in table.notes]
    return "\n".join(parts)


def as_plain(table: Table) -> str:
    """Columns in line, for a pipe."""
    parts = []
    for block in table.blocks():
        rows = block_rows(table, block)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        align: Sequence[Callable[[str, int], str]] = [str.ljust, *(str.rjust for _ in widths[1:])]
        lines = ["  ".join(a(text, w) for a, text, w in zip(align, row, widths, strict=True)).rstrip() for row in rows]
        parts.append("\n".join([block.title, *lines]) + "\n")
    parts.append("".join(f"{note}\n" for note in table.notes))
    return "\n".join(parts)


def print_rich(table: Table, console: Console) -> None:
    """Ruled tables on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    for block in table.blocks():
        heading, *rows = [[escape(text) for text in row] for row in block_rows(table, block)]
        shown = RichTable(title=escape(block.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for i, text in enumerate(heading):
            shown.add_column(text, justify="right" if i else "left", no_wrap=i < len(FIXED), overflow="fold")
        for row in rows:
            shown.add_row(*(text if text != MISSING else f"[dim]{MISSING}[/dim]" for text in row))
        console.print(shown)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
