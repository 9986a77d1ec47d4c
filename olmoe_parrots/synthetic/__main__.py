"""`python -m olmoe_parrots.synthetic TASK --size N --seed S --output DIR`: a synthetic task as a dataset folder.

TASK is phone_book or shortest_path; each has options of its own: TASK --help.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from olmoe_parrots.errors import ArgumentParser, InputError, report_and_exit
from olmoe_parrots.shards import Manifest
from olmoe_parrots.synthetic.build import REPORT, build
from olmoe_parrots.synthetic.graphs import LAWS
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath
from olmoe_parrots.synthetic.task import QUERIES, Task


def build_parser() -> ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(
        prog="python -m olmoe_parrots.synthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _add_phone_book(tasks.add_parser("phone_book", help="closed-book recall of numbers by name"))
    _add_shortest_path(tasks.add_parser("shortest_path", help="a shortest path in a random graph"))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", type=int, required=True, metavar="N", help="training examples")
    add("--seed", type=int, default=0, metavar="S", help="(%(default)s)")
    add("--output", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
    add("--test-size", type=int, default=1000, metavar="N", help="test queries (%(default)s)")
    add("--sequence-length", type=int, metavar="T", help="tokens of a row (just what the longest needs)")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="(%(default)s); any N: same bytes")


def _add_phone_book(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add, usual = parser.add_argument, PhoneBook()
    add("--name-length", type=int, default=usual.name_length, metavar="N", help="characters (%(default)s)")
    add("--name-alphabet", default=usual.name_alphabet, metavar="CHARACTERS", help="(%(default)s)")
    add("--number-length", type=int, default=usual.number_length, metavar="N", help="characters (%(default)s)")
    add("--number-alphabet", default=usual.number_alphabet, metavar="CHARACTERS", help="(%(default)s)")


def _add_shortest_path(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add, usual = parser.add_argument, ShortestPath()
    add("--vertices", type=int, default=usual.vertices, metavar="N", help="of each graph (%(default)s)")
    add("--law", choices=LAWS, default=usual.law, help="of the graphs (%(default)s)")
    add("--mean-degree", type=float, metavar="X", help=f"edges at a vertex; directed: leaving it ({usual.mean_degree})")
    add("--density", type=float, metavar="P", help="share of possible edges, in place of --mean-degree")
    add("--directed", action="store_true", help="edges go one way")
    add("--lengths", metavar="MIN-MAX", help="of paths, in edges (any)")
    add("--balance", action="store_true", help="every length of --lengths equally often")
    add("--labels", type=int, metavar="N", help="vertex numbers to draw a graph's own from (--vertices)")
    help_text = "a token after each edge"
    add("--edge-separator", action=argparse.BooleanOptionalAction, default=usual.edge_separator, help=help_text)


def task_of(options: argparse.Namespace) -> Task:
    """The task that the arguments describe. Raises InputError where they contradict one another."""
    if options.sequence_length is not None and options.sequence_length < 1:
        raise InputError("--sequence-length", f"{options.sequence_length} is not positive", "give a number above 0")
    if options.processes < 1:
        raise InputError("--processes", f"{options.processes} is not positive", "give a number above 0")
    if options.task == "phone_book":
        names = ("name_length", "name_alphabet", "number_length", "number_alphabet", "sequence_length")
        return PhoneBook(**{name: getattr(options, name) for name in names})
    shortest, longest = _lengths(options.lengths)
    others = ("vertices", "law", "directed", "balance", "labels", "edge_separator", "sequence_length")
    return ShortestPath(
        mean_degree=_mean_degree(options),
        min_length=shortest,
        max_length=longest,
        **{name: getattr(options, name) for name in others},
    )


def _lengths(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 1, None
    parts = text.split("-")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError("--lengths", f"{text!r} is not MIN-MAX", "give two numbers, such as 2-6")
    return int(parts[0]), int(parts[-1])


def _mean_degree(options: argparse.Namespace) -> float:
    if options.density is None:
        return ShortestPath.mean_degree if options.mean_degree is None else options.mean_degree
    if options.mean_degree is not None:
        raise InputError("--density", "--mean-degree says the same", "give one of them")
    if not 0 < options.density <= 1:
        raise InputError("--density", f"{options.density} is not a share", "give more than 0 and at most 1")
    return options.density * (options.vertices - 1)


def _told(manifest: Manifest, output: Path) -> str:
    tokens, rows = manifest.totals("train")
    length = manifest.mixture["sequence_length"]
    lines = [
        f"{manifest.mixture['task']} in {output}: {rows:,} examples of {length} tokens, {tokens:,} in all, "
        f"vocabulary {manifest.tokenizer.vocabulary_size}; {manifest.mixture['test_size']:,} test queries in {QUERIES}"
    ]
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    if lengths := report["train"].get("path_lengths"):
        lines.append("path length" + "".join(f"{length:>9}" for length in lengths))
        for split in ("train", "test"):
            counts = report[split]["path_lengths"]
            lines.append(f"{split:<11}" + "".join(f"{counts.get(length, 0):>9,}" for length in lengths))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises InputError for bad input."""
    options = build_parser().parse_args(arguments)
    start = time.perf_counter()
    task = task_of(options)
    manifest, made = build(task, options.size, options.test_size, options.seed, options.output, options.processes)
    if not made:
        print("nothing to do: the dataset is finished", file=sys.stderr)
    print(_told(manifest, options.output))
    if made:
        print(f"made in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    report_and_exit(main)
