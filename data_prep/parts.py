"""A part: a run of consecutive documents of one source that becomes one file of documents and one token shard."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.documents import FOLDER, place_of
from data_prep.tokenization import TokenFile, tokenize
from olmoe_parrots.shards import TokenizerInfo, sha256_of, write_atomically

if TYPE_CHECKING:
    from data_prep.pieces import Piece

_COMPRESSION = 4


@dataclass(frozen=True)
class Recipe:
    """What a worker has to know besides the part itself.

    Args:
        output: the dataset folder.
        scratch: an existing folder for unfinished files, on the same file system.
        threshold: a document whose `place_of` lies below it is a candidate for being held out.
        contamination_index: the index of test items; None where they are not looked for.
        drop_contaminated: whether documents that share an n-gram with a test item are left out or only told.
    """

    output: Path
    scratch: Path
    source: str
    seed: int
    tokenizer: TokenizerInfo
    threshold: int
    contamination_index: Path | None = None
    drop_contaminated: bool = False

    def is_candidate(self, document_id: str) -> bool:
        """Whether a document may be held out."""
        return place_of(document_id, self.source, self.seed) < self.threshold


@dataclass(frozen=True)
class Picked:
    """Documents of a prepared source file: its folder, and runs of (piece, first place, place after the last)."""

    folder: Path
    runs: tuple[tuple[Piece, int, int], ...]

    def places(self) -> Iterator[tuple[Piece, list[int]]]:
        """Each piece with the places of the documents in it."""
        for _, runs in groupby(self.runs, key=lambda run: run[0].number):
            found = list(runs)
            yield found[0][0], [place for _, start, end in found for place in range(start, end)]


@dataclass(frozen=True)
class PartJob:
    """Part `number` of its source: `lines` is a file of its documents as uncompressed lines of JSON, with their SHA-256
    and count; None where the file of documents is to be taken as it is, or `picked` names the documents."""

    recipe: Recipe
    number: int
    lines: Path | None
    lines_sha256: str
    picked: Picked | None = None


@dataclass(frozen=True)
class Part:
    """A finished part. `contaminated` holds a row for each of the `looked_at` documents that has a test item in it."""

    number: int
    lines_sha256: str
    documents_path: str
    documents_sha256: str
    documents: int
    json_bytes: int
    train: TokenFile
    candidates: TokenFile
    contaminated: list[dict[str, Any]]
    looked_at: int

    def save(self, output: Path) -> None:
        """Write the record of this part beside its documents."""
        path = output / _record_path(self.documents_path)
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())


def _record_path(documents_path: str) -> str:
    return f"{documents_path.removesuffix('.jsonl.gz')}.json"


def documents_path(source: str, number: int) -> str:
    """The file of documents of a part, relative to the dataset folder."""
    return f"{FOLDER}/{source}/{number:05d}.jsonl.gz"


def load_part(output: Path, source: str, number: int) -> Part | None:
    """The record of a part that an earlier run finished; None where there is none or it cannot be read."""
    try:
        record = json.loads((output / _record_path(documents_path(source, number))).read_text(encoding="utf-8"))
        train, candidates = (TokenFile(**record.pop(name)) for name in ("train", "candidates"))
        return Part(**record, train=train, candidates=candidates)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def documents_are_whole(output: Path, part: Part) -> bool:
    """Whether the part's file of documents has the content it was written with."""
    try:
        return sha256_of(output / part.documents_path) == part.documents_sha256
    except OSError:
        return False


def finished_part(output: Path, source: str, number: int, lines_sha256: str) -> Part | None:
    """A part that an earlier run finished of the same documents, if all of its files are whole."""
    found = load_part(output, source, number)
    if found is None or found.lines_sha256 != lines_sha256 or not documents_are_whole(output, found):
        return None
    return found if found.train.is_whole(output) and found.candidates.is_whole(output) else None


def write_documents(path: Path, lines: list[bytes]) -> None:
    """Write a part's file of documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(b"".join(lines), compresslevel=_COMPRESSION, mtime=0))


def read_documents(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of documents."""
    with gzip.open(path, "rb") as stream:
        for line in stream:
            yield json.loads(line)


def make_part(job: PartJob) -> Part:
    """Write a part's documents and tokens, or what is missing of them, then its record; runs in a worker process."""
    recipe, output = job.recipe, job.recipe.output
    path = documents_path(recipe.source, job.number)
    found = load_part(output, recipe.source, job.number)
    if found is not None and found.lines_sha256 == job.lines_sha256 and documents_are_whole(output, found):
        if found.train.is_whole(output) and found.candidates.is_whole(output):
            _remove(job.lines)
            return found
        documents, json_bytes = found.documents, found.json_bytes
        contaminated, looked_at = found.contaminated, found.looked_at
    else:
        assert job.lines is not None, f"{path}: its documents are missing"
        lines = job.lines.read_bytes().splitlines(keepends=True)
        looked_at = len(lines)
        lines, contaminated = _without_contaminated(recipe, lines)
        documents, json_bytes = len(lines), sum(map(len, lines))
        write_documents(output / path, lines)
    _remove(job.lines)
    train, candidates = _tokenize(recipe, job.number, path, documents, json_bytes)
    digest = sha256_of(output / path)
    part = Part(
        job.number, job.lines_sha256, path, digest, documents, json_bytes, train, candidates, contaminated, looked_at
    )
    part.save(output)
    return part


def _remove(lines: Path | None) -> None:
    if lines is not None:
        lines.unlink(missing_ok=True)


def _tokenize(recipe: Recipe, number: int, path: str, documents: int, json_bytes: int) -> tuple[TokenFile, TokenFile]:
    work = recipe.scratch / f"{recipe.source}-{number:05d}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    names = shard_path(recipe.source, "train", number), candidates_path(recipe.source, number)
    try:
        return tokenize(recipe.output, path, documents, json_bytes, recipe.tokenizer, names, recipe.is_candidate, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def shard_path(source: str, split: str, number: int) -> str:
    """A token shard, relative to the dataset folder."""
    return f"{split}/{source}-{number:05d}.npy"


def candidates_path(source: str, number: int) -> str:
    """The tokens of a part's candidates for hold-out, relative to the dataset folder."""
    return f"{FOLDER}/{source}/{number:05d}.candidates.npy"


def _without_contaminated(recipe: Recipe, lines: list[bytes]) -> tuple[list[bytes], list[dict[str, Any]]]:
    """(the lines that stay, a row for each document that shares an n-gram with a test item)."""
    if recipe.contamination_index is None:
        return lines, []
    from data_prep.decontamination import Index, match_row

    documents = [json.loads(line) for line in lines]
    matches = Index.open(recipe.contamination_index).find([document["text"] for document in documents])
    found = [
        match_row(document["id"], recipe.source, matched)
        for document, matched in zip(documents, matches, strict=True)
        if matched
    ]
    if recipe.drop_contaminated:
        lines = [line for line, matched in zip(lines, matches, strict=True) if not matched]
    return lines, found


def digest_of(lines: list[bytes]) -> str:
    """What tells whether a part is the one that an earlier run finished."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
