"""A part put together from prepared files: the same bytes as of one that was read and tokenized where it is made."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.parts import (
    Part,
    PartJob,
    Recipe,
    candidates_path,
    digest_of,
    documents_path,
    finished_part,
    shard_path,
    write_documents,
)
from data_prep.pieces import Piece
from data_prep.tokenization import TokenFile, place_tokens
from olmoe_parrots.shards import sha256_of, smallest_dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Taken:
    """A document of a prepared file: its line, its tokens with EOS (None where it has none), the test items in it."""

    line: bytes
    tokens: NDArray[np.unsignedinteger[Any]] | None
    id: str
    items: list[list[str]] | None


def assemble_part(job: PartJob) -> Part:
    """Write the documents and tokens of a part that prepared files hold, then its record; runs in a worker process."""
    recipe, output = job.recipe, job.recipe.output
    assert job.picked is not None
    dtype = smallest_dtype(recipe.tokenizer.vocabulary_size)
    taken = [one for piece, places in job.picked.places() for one in _take(job.picked.folder, piece, places, dtype)]
    digest = digest_of([one.line for one in taken])
    if (found := finished_part(output, recipe.source, job.number, digest)) is not None:
        return found
    rows = [_row(recipe, one) for one in taken if one.items]
    kept = [one for one in taken if not (one.items and recipe.drop_contaminated)]
    path = documents_path(recipe.source, job.number)
    write_documents(output / path, [one.line for one in kept])
    train, candidates = _write_tokens(recipe, job.number, path, kept)
    size = sum(len(one.line) for one in kept)
    documents_sha256 = sha256_of(output / path)
    part = Part(job.number, digest, path, documents_sha256, len(kept), size, train, candidates, rows, len(taken))
    part.save(output)
    return part


def _take(folder: Path, piece: Piece, places: Sequence[int], dtype: str) -> Iterator[Taken]:
    import numpy as np

    lines = gzip.decompress((folder / piece.documents_path).read_bytes()).splitlines(keepends=True)
    spans: dict[int, tuple[int, int, str]] = {}
    tokens = np.zeros(0, dtype)
    if piece.tokens.documents:
        tokens = np.memmap(folder / piece.tokens.path, dtype=dtype, mode="r")
        with gzip.open(folder / piece.tokens.boundaries, "rt", encoding="utf-8", newline="") as stream:
            spans = {int(row[4]) - 1: (int(row[0]), int(row[1]), row[2]) for row in csv.reader(stream)}
    for place in places:
        start, end, identifier = spans.get(place, (0, 0, ""))
        items = piece.found.get(str(place))
        yield Taken(lines[place], tokens[start:end] if end else None, identifier, items)


def _row(recipe: Recipe, taken: Taken) -> dict[str, Any]:
    """As `decontamination.match_row`."""
    return {"id": json.loads(taken.line)["id"], "source": recipe.source, "items": taken.items}


def _write_tokens(recipe: Recipe, number: int, path: str, taken: Sequence[Taken]) -> tuple[TokenFile, TokenFile]:
    """(tokens for training, those of candidates for hold-out), as `tokenization.tokenize` writes them."""
    chosen: tuple[list[tuple[int, Taken]], list[tuple[int, Taken]]] = ([], [])
    for line, one in enumerate(taken, start=1):
        if one.tokens is not None:
            chosen[recipe.is_candidate(one.id)].append((line, one))
    names = shard_path(recipe.source, "train", number), candidates_path(recipe.source, number)
    return _write(recipe, names[0], path, chosen[0]), _write(recipe, names[1], path, chosen[1])


def _write(recipe: Recipe, name: str, documents: str, taken: Sequence[tuple[int, Taken]]) -> TokenFile:
    if not taken:
        return TokenFile(name, 0, 0, 0, "", "")
    unfinished = recipe.scratch / Path(name).name
    rows, position = io.StringIO(newline=""), 0
    writer = csv.writer(rows)
    with unfinished.open("wb") as stream:
        for line, one in taken:
            assert one.tokens is not None
            stream.write(one.tokens.tobytes())
            writer.writerow([position, position + len(one.tokens), one.id, documents, line])
            position += len(one.tokens)
    return place_tokens(recipe.output, name, unfinished, rows.getvalue().encode(), len(taken))
