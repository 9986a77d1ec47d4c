"""`python -m data_prep.verify DIR`: check a dataset folder whole and show the mixture as it came out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from olmoe_parrots.errors import ArgumentParser, report_and_exit
from olmoe_parrots.shards import SPLITS, Manifest

COLUMNS = ("tokens", "documents", "share", "mean length", "asked tokens", "asked share", "difference", "epochs")


def show_table(manifest: Manifest, title: str) -> None:
    """Print the sources of each split beside what was asked, with a sum for each split, on standard output."""
    from rich.console import Console
    from rich.table import Table

    from data_prep.statistics import SourceRow, mixture_rows

    rows = {split: mixture_rows(manifest, split) for split in SPLITS}
    cells = [_cells(row, manifest.totals(split)[0]) for split in SPLITS for row in rows[split]]
    used = [any(row[number] for row in cells) or number < 4 for number in range(len(COLUMNS))]
    table = Table(title=title, title_justify="left")
    table.add_column("split")
    table.add_column("source", overflow="fold")
    for name, shown in zip(COLUMNS, used, strict=True):
        if shown:
            table.add_column(name, justify="right")

    def add(split: str, name: str, values: list[str], **style: object) -> None:
        table.add_row(split, name, *(v for v, shown in zip(values, used, strict=True) if shown), **style)  # type: ignore

    for split in SPLITS:
        tokens, documents = manifest.totals(split)
        for row in rows[split]:
            add(split, row.source, _cells(row, tokens))
        asked = [row.asked_tokens for row in rows[split]]
        total = sum(value or 0 for value in asked) if asked and None not in asked else None
        whole = SourceRow(split, "all", tokens, documents, 1.0 if tokens else 0.0, total, None, None)
        add(split, "all", _cells(whole, tokens), end_section=True, style="bold")
    # Piped, it has no width to keep to.
    width = None if sys.stdout.isatty() else 160
    Console(markup=False, highlight=False, width=width).print(table)


def _cells(row: object, split_tokens: int) -> list[str]:
    from data_prep.statistics import SourceRow

    assert isinstance(row, SourceRow)
    difference = row.difference(split_tokens)
    return [
        f"{row.tokens:,}",
        f"{row.documents:,}",
        f"{row.share:.2%}",
        f"{row.mean_length:,.0f}",
        "" if row.asked_tokens is None else f"{row.asked_tokens:,}",
        "" if row.asked_share is None else f"{row.asked_share:.2%}",
        "" if difference is None else f"{difference:+,.0f}",
        "" if row.epochs is None else f"{row.epochs:.3g}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 for a sound dataset and 2 for one with problems, each told on standard error."""
    parser = ArgumentParser(prog="python -m data_prep.verify", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="a dataset folder, the one with manifest.json, or s3://...")
    parser.add_argument("--sizes", action="store_true", help="read no token file: compare sizes only")
    options = parser.parse_args(arguments)
    manifest = Manifest.load(options.directory)
    from data_prep.statistics import mixture_warnings
    from olmoe_parrots.shard_verification import verify

    problems = verify(options.directory, sizes_only=options.sizes)
    tokenizer = manifest.tokenizer
    title = f"{options.directory}: {tokenizer.name} ({tokenizer.vocabulary_size:,}), {manifest.dtype}"
    show_table(manifest, title)
    for line in mixture_warnings(manifest):
        print(f"warning: {line}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{len(manifest.files)} token files are {'of the right size' if options.sizes else 'sound'}")
    return 2 if problems else 0


if __name__ == "__main__":
    report_and_exit(main)
