"""Tables of evaluation results: ``python -m olmoe_parrots.results table RESULTS.jsonl``, or ``gap`` for ``table``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentParser, InputError

if TYPE_CHECKING:
    from .gaps import GapTable
    from .tables import Table

KINDS = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
"""What a file is written as, by its suffix."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m olmoe_parrots.results", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser)
    table = commands.add_parser(
        "table", help="models by tasks, with the average of each category", description="Models by tasks."
    )
    table.add_argument(
        "--tasks", default="", metavar="NAMES", help="tasks or categories, also NAME:METRIC, with commas"
    )
    table.add_argument("--category", default="", metavar="NAMES", help="world_knowledge, commonsense, math")
    text = "accuracy on training problems minus test accuracy, a block a benchmark"
    gap = commands.add_parser("gap", help=text, description=f"The generalization gap: {text}.")
    for command in (table, gap):
        command.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
        command.add_argument("--step", type=int, metavar="N", help="show this step of every run in place of its last")
        for kind in KINDS.values():
            command.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write it as {kind} too")
        text = f"write it too, as its suffix says: {', '.join(KINDS)}; may be given again"
        command.add_argument("--output", type=Path, metavar="FILE", action="append", default=[], help=text)
        command.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def check_output(path: Path, results: Sequence[Path], *, overwrite: bool, option: str) -> None:
    """Raise InputError unless `path` can be written: it is new or may be replaced, and is none of the `results`."""
    where = f"{option} {path}"
    if any(path.resolve() == result.resolve() for result in results):
        raise InputError(where, "it is a results file that is read", "name another file")
    if path.is_dir():
        raise InputError(where, "it is a folder", "name a file")
    if path.exists() and not overwrite:
        raise InputError(where, "it is there already", "name another file, or give --overwrite")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(where, f"{there} is no folder that can be written to", "name another file")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and its folder where there is none. Raises InputError where that fails."""
    from .shards import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise InputError(path, f"it cannot be written ({error.strerror})", "name another file") from None


def _outputs(options: Any) -> list[tuple[str, Path]]:
    """The files to write, each with its kind."""
    asked = [(f"--{kind}", kind, path) for kind in KINDS.values() if (path := getattr(options, kind))]
    for path in options.output:
        if path.suffix not in KINDS:
            raise InputError(f"--output {path}", "its suffix is of no kind of table", f"use {', '.join(KINDS)}")
        asked.append(("--output", KINDS[path.suffix], path))
    for option, _, path in asked:
        check_output(path, options.results, overwrite=options.overwrite, option=option)
    if len({path.resolve() for _, _, path in asked}) < len(asked):
        where = ", ".join(dict.fromkeys(option for option, _, _ in asked))
        raise InputError(where, "they name one file twice", "name a file for each")
    return [(kind, path) for _, kind, path in asked]


def _built(options: Any) -> Table | GapTable:
    from .columns import Catalogue
    from .results import read_rows

    rows = [row for path in options.results for row in read_rows(path)]
    if options.command == "gap":
        from .gaps import build_gap_table

        return build_gap_table(rows, Catalogue.load(), options.step)
    from .tables import build_table

    tasks, categories = (list(filter(None, text.split(","))) for text in (options.tasks, options.category))
    return build_table(rows, Catalogue.load(), tasks, categories, options.step)


def _show(options: Any) -> int:
    outputs = _outputs(options)
    table = _built(options)
    from . import table_formats

    writers = {"csv": table_formats.as_csv, "markdown": table_formats.as_markdown, "latex": table_formats.as_latex}
    for kind, path in outputs:
        write_text(path, writers[kind](table))
    if sys.stdout.isatty():
        from rich.console import Console

        table_formats.print_rich(table, Console())
    else:
        print(table_formats.as_plain(table), end="")
    for _, path in outputs:
        print(f"written: {path}", file=sys.stderr)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table and write the files asked for; returns 0.

    Raises InputError for files that cannot be read or would be overwritten, unknown tasks, and where nothing is left.
    """
    return _show(_parser().parse_args(arguments))
