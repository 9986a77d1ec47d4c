"""`python -m data_prep.show DIR`: how documents are packed into sequences, and a few sequences as text.

Where one document ends and the next begins, a line names the next; on a terminal the documents take turns in colour.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from olmoe_parrots import remote
from olmoe_parrots.errors import ArgumentParser, InputError, report_and_exit
from olmoe_parrots.shards import DTYPES, REBUILD, SPLITS, TOKENIZER, Manifest, ShardFile, sha256_of

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("cyan", "yellow")
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass(frozen=True)
class Piece:
    """A document, or the part of it, in one sequence: its tokens, and where they lie in the document and in the file.

    Args:
        start, end: of the whole document in its file, in tokens.
        first: the place in the file of the first of `tokens`.
    """

    id: str
    start: int
    end: int
    first: int
    tokens: np.ndarray


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(
        prog="python -m data_prep.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="a dataset folder, the one with manifest.json, or s3://...")
    add("--source", metavar="S", help="only this source")
    add("--split", choices=SPLITS, default="train", help="(%(default)s)")
    add("--sequences", type=int, default=2, metavar="N", help="sequences to show as text (%(default)s)")
    add("--length", type=int, metavar="L", help="tokens in a sequence (the mixture's, or 2048)")
    add("--seed", type=int, default=0, help="of the choice of sequences (%(default)s)")
    return parser


def choose_files(manifest: Manifest, split: str, source: str | None) -> list[ShardFile]:
    """The token files of a split, or of one source in it. Raises InputError where there are none."""
    files = [file for file in manifest.files if file.split == split and source in (None, file.source)]
    if not files:
        known = ", ".join(manifest.sources(split)) or "none"
        what = f"the dataset has no such source in its {split} split" if source else f"the {split} split is empty"
        raise InputError(f"--source {source}" if source else "--split", what, f"its sources are: {known}")
    return files


def show_statistics(root: str, files: list[ShardFile], length: int) -> None:
    """Print how the documents of each source lie in sequences of `length` tokens, on standard output."""
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

    from data_prep.statistics import QUANTILES, Packing, file_boundaries

    packings: dict[str, Packing] = {}
    for file in tqdm(files, desc="statistics", unit=" files", delay=3, leave=False):
        packing = packings.setdefault(file.source, Packing(length))
        try:
            packing.add_file(file.tokens, file_boundaries(root, file))
        except (OSError, ValueError) as error:
            where = remote.join(root, file.boundaries or file.path)
            raise InputError(where, f"it cannot be read ({error})", f"copy it anew, or {REBUILD}") from None
    table = Table()
    table.add_column("source", overflow="fold")
    quantiles = ["median" if q == 0.5 else "longest" if q == 1 else f"{q:.0%}" for q in QUANTILES]
    headings = ["sequences", "documents", "per sequence", "cut", "tokens lost", *quantiles]
    for heading in headings:
        table.add_column(heading, justify="right")
    for source, packing in sorted(packings.items()):
        cells = [f"{packing.sequences:,}", f"{packing.documents:,}", f"{packing.documents_per_sequence:.2f}"]
        cells += [f"{packing.cut_share:.1%}", f"{packing.lost:,}"]
        table.add_row(source, *cells, *(f"{packing.quantile(q):,}" for q in QUANTILES))
    table.caption = "cut: documents that a sequence ends within; lost: tokens behind a file's last whole sequence"
    width = None if sys.stdout.isatty() else 160
    print(f"{root}: {files[0].split}, sequences of {length:,} tokens")
    Console(markup=False, highlight=False, width=width).print(table)


def pieces_of(root: str, file: ShardFile, dtype: str, index: int, length: int) -> Iterator[Piece]:
    """The documents in sequence `index` of a token file, in order. Raises InputError for a damaged file."""
    first = index * length
    tokens = _read_tokens(root, file, dtype, first, length)
    try:
        for start, end, name in _rows_between(root, file, first, first + length):
            begin = max(start, first)
            yield Piece(name, start, end, begin, tokens[begin - first : end - first])
    except (OSError, ValueError) as error:
        where = remote.join(root, file.boundaries or file.path)
        raise InputError(where, f"it cannot be read ({error})", f"copy it anew, or {REBUILD}") from None


def _read_tokens(root: str, file: ShardFile, dtype: str, first: int, length: int) -> np.ndarray:
    import numpy as np

    path, kind = remote.join(root, file.path), DTYPES[dtype]
    try:
        if remote.is_remote(path):
            content = remote.read_bytes(path, first * kind.itemsize, (first + length) * kind.itemsize)
        else:
            with open(path, "rb") as stream:
                stream.seek(first * kind.itemsize)
                content = stream.read(length * kind.itemsize)
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error})", f"copy it anew, or {REBUILD}") from None
    if len(content) != length * kind.itemsize:
        raise InputError(path, "it is shorter than its manifest says", f"copy it anew, or {REBUILD}")
    return np.frombuffer(content, dtype=kind)


def _rows_between(root: str, file: ShardFile, first: int, end: int) -> Iterator[tuple[int, int, str]]:
    """(start, end, id) of the documents that have a token in [first, end)."""
    from data_prep.statistics import file_boundaries
    from olmoe_parrots.shard_verification import read_rows

    if file.boundaries is None:
        for starts, ends in file_boundaries(root, file):
            inside = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b > first and a < end]
            yield from ((a, b, f"example {a // (b - a)}") for a, b in inside)
        return
    import pyarrow.compute

    with remote.local_copy(remote.join(root, file.boundaries)) as path:
        for batch in read_rows(path, ["start", "end", "id"]):
            column = pyarrow.compute
            inside = column.and_(column.greater(batch["end"], first), column.less(batch["start"], end))
            for row in batch.filter(inside).to_pylist():
                yield row["start"], row["end"], row["id"]


def show_sequences(root: str, manifest: Manifest, files: list[ShardFile], length: int, count: int, seed: int) -> None:
    """Print `count` sequences drawn from those of `files`, as text, on standard output."""
    from rich.console import Console
    from rich.rule import Rule

    tokenizer = _tokenizer(root, manifest)
    ends = list(itertools.accumulate(file.tokens // length for file in files))
    drawn = sorted(random.Random(seed).sample(range(ends[-1]), min(count, ends[-1])))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for number in drawn:
        chosen = bisect.bisect_right(ends, number)
        file, held = files[chosen], files[chosen].tokens // length
        place = number - (ends[chosen] - held)
        pieces = list(pieces_of(root, file, manifest.dtype, place, length))
        what = f"sequence {place + 1:,} of {held:,} in {file.path}, {len(pieces)} document{'s' * (len(pieces) > 1)}"
        console.print(Rule(what, align="left", characters="=") if console.is_terminal else f"\n=== {what} ===")
        for turn, piece in enumerate(pieces):
            _print_piece(console, tokenizer, manifest.tokenizer.eos_token_id, piece, COLOURS[turn % len(COLOURS)])


def _print_piece(console: Any, tokenizer: Any, eos: int, piece: Piece, colour: str) -> None:
    from rich.text import Text

    begin = piece.first - piece.start
    stop, whole = begin + len(piece.tokens), piece.end - piece.start
    part = "whole" if (begin, stop) == (0, whole) else f"tokens {begin + 1:,} to {stop:,} of"
    console.print(Text(f"--- {_printable(piece.id)} ({part}, {whole:,} tokens)".replace("of,", "of"), style="dim"))
    ids = piece.tokens.tolist()
    ends = bool(ids) and ids[-1] == eos
    text = Text(_printable(tokenizer.decode(ids[:-1] if ends else ids, skip_special_tokens=False)), style=colour)
    if ends:
        text.append(tokenizer.id_to_token(eos) or f"<{eos}>", style="reverse")
    console.print(text)


def _printable(text: str) -> str:
    """Text without control characters and without those that turn the direction of writing."""
    steering = lambda c: unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS  # noqa: E731
    return "".join("\ufffd" if steering(c) and c not in "\n\t" else c for c in text)


def _tokenizer(root: str, manifest: Manifest) -> Any:
    from tokenizers import Tokenizer

    where = remote.join(root, TOKENIZER)
    try:
        with remote.local_copy(where) as path:
            if sha256_of(path) != manifest.tokenizer.sha256:
                what = f"it is not the tokenizer the manifest names ({manifest.tokenizer.name})"
                raise InputError(where, what, f"copy it anew, or {REBUILD}")
            return Tokenizer.from_file(path)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(where, f"it cannot be read ({error})", f"copy it anew, or {REBUILD}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises InputError for bad input."""
    options = build_parser().parse_args(arguments)
    for name in ("sequences", "length"):
        value = getattr(options, name)
        if value is not None and value < (1 if name == "length" else 0):
            raise InputError(f"--{name}", f"{value} is too small", "give a larger number")
    root = options.directory
    manifest = Manifest.load(root)
    files = choose_files(manifest, options.split, options.source)
    from data_prep.statistics import sequence_length_of

    length = options.length or sequence_length_of(manifest)
    show_statistics(root, files, length)
    if options.sequences:
        show_sequences(root, manifest, files, length, options.sequences, options.seed)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
