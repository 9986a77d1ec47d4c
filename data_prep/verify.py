"""`python -m data_prep.verify DIR`: check a dataset folder whole and show what it holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from olmoe_parrots.errors import report_and_exit
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import SPLITS, Manifest


def show_table(manifest: Manifest, title: str) -> None:
    """Print tokens and documents by split and source, with a sum for each split, on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("split")
    table.add_column("source", overflow="fold")
    table.add_column("tokens", justify="right")
    table.add_column("documents", justify="right")
    for split in SPLITS:
        for source, counts in manifest.sources(split).items():
            table.add_row(split, source, f"{counts['tokens']:,}", f"{counts['documents']:,}")
        tokens, documents = manifest.totals(split)
        table.add_row(split, "all", f"{tokens:,}", f"{documents:,}", end_section=True, style="bold")
    Console(markup=False, highlight=False).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 for a sound dataset and 2 for one with problems, each told on standard error."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.verify", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a dataset folder, the one with manifest.json")
    directory = parser.parse_args(arguments).directory
    manifest = Manifest.load(directory)
    problems = verify(directory)
    tokenizer = manifest.tokenizer
    show_table(manifest, f"{directory}: {tokenizer.name} ({tokenizer.vocabulary_size:,}), {manifest.dtype}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{len(manifest.files)} files are sound")
    return 2 if problems else 0


if __name__ == "__main__":
    report_and_exit(main)
