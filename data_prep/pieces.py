"""What a task of an array job makes of one source file, before anything is decided across files.

    prepared/SOURCE/00012/          the file's place in the source's listing
        00000.jsonl.gz              documents as they were read, duplicates among them
        00000.npy, 00000.csv.gz     their tokens, and where each one's lie
        00000.index.npy             of each document the digest of its text, the bytes of its line, its file
        00000.json                  the record of the piece
        record.json                 written last, before the folder gets its name

Test items are looked for here and nothing is dropped: which documents count is decided where all files come together.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.tokenization import TokenFile, tokenize
from olmoe_parrots.shards import TokenizerInfo, sha256_of, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LeftOut = dict[str, dict[str, int]]
INDEX_TYPE = [("digest", "V16"), ("bytes", "<u8"), ("file", "<u4")]
_COMPRESSION = 1  # these files are read once and removed


@dataclass(frozen=True)
class Piece:
    """A run of consecutive documents of one source file.

    Args:
        made_from: a SHA-256 of the documents and of all that decides what is made of them.
        tokens: `path` is relative to the folder of the source file.
        files: the names that the index numbers.
        left_out: [place, what was left out before the document of that place], in order.
        found: the test items found in a document, by its place as a string.
    """

    number: int
    made_from: str
    documents: int
    tokens: TokenFile
    documents_sha256: str
    index_sha256: str
    files: list[str] = field(default_factory=list)
    left_out: list[tuple[int, LeftOut]] = field(default_factory=list)
    found: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def documents_path(self) -> str:
        """The file of documents, relative to the folder of the source file."""
        return f"{self.number:05d}.jsonl.gz"

    @property
    def index_path(self) -> str:
        """The index, relative to the folder of the source file."""
        return f"{self.number:05d}.index.npy"

    def is_whole(self, folder: Path) -> bool:
        """Whether its files have the content that they were written with."""
        try:
            same = sha256_of(folder / self.documents_path) == self.documents_sha256
            same = same and sha256_of(folder / self.index_path) == self.index_sha256
        except OSError:
            return False
        return same and self.tokens.is_whole(folder)

    def index(self, folder: Path) -> NDArray[np.void]:
        """A row of INDEX_TYPE for each document."""
        import numpy as np

        rows: NDArray[np.void] = np.load(folder / self.index_path, allow_pickle=False)
        return rows


def read_piece(record: Any) -> Piece:
    """The piece of a record. Raises KeyError, TypeError or ValueError for one that is none."""
    left_out = [(int(place), counts) for place, counts in record["left_out"]]
    return Piece(**{**record, "tokens": TokenFile(**record["tokens"]), "left_out": left_out})


def load_piece(folder: Path, number: int) -> Piece | None:
    """The record of a piece that an earlier run finished; None where there is none or it cannot be read."""
    try:
        return read_piece(json.loads((folder / f"{number:05d}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass(frozen=True)
class PieceJob:
    """What a worker has to know to make a piece.

    Args:
        root: the folder of prepared files, with the tokenizer in it.
        folder: of this source file, below `root`.
        lines: the file of the documents, as uncompressed lines of JSON; removed when they are written.
        digests, sizes, places: of each document, as in the index.
        contamination_index: of test items; None where they are not looked for.
    """

    root: Path
    folder: Path
    number: int
    made_from: str
    lines: Path
    digests: Sequence[bytes]
    sizes: Sequence[int]
    places: Sequence[int]
    files: list[str]
    left_out: list[tuple[int, LeftOut]]
    tokenizer: TokenizerInfo
    contamination_index: Path | None


def make_piece(job: PieceJob) -> Piece:
    """Write a piece's documents, index and tokens, then its record; runs in a worker process."""
    found = load_piece(job.folder, job.number)
    if found is not None and found.made_from == job.made_from and found.is_whole(job.folder):
        job.lines.unlink()
        return found
    content = job.lines.read_bytes()
    path = job.folder / f"{job.number:05d}.jsonl.gz"
    write_atomically(path, gzip.compress(content, compresslevel=_COMPRESSION, mtime=0))
    job.lines.unlink()
    index = path.with_name(f"{job.number:05d}.index.npy")
    write_atomically(index, _index(job))
    matches = _test_items(job, content.splitlines())
    piece = Piece(
        job.number,
        job.made_from,
        len(job.digests),
        _tokens(job, path, len(content)),
        sha256_of(path),
        sha256_of(index),
        job.files,
        job.left_out,
        matches,
    )
    write_atomically(job.folder / f"{job.number:05d}.json", json.dumps(asdict(piece)).encode())
    return piece


def _index(job: PieceJob) -> bytes:
    import numpy as np

    rows = np.zeros(len(job.digests), INDEX_TYPE)
    rows["digest"] = np.frombuffer(b"".join(job.digests), "V16")
    rows["bytes"], rows["file"] = job.sizes, job.places
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


def _test_items(job: PieceJob, lines: list[bytes]) -> dict[str, list[list[str]]]:
    if job.contamination_index is None:
        return {}
    from data_prep.decontamination import Index

    matches = Index.open(job.contamination_index).find([json.loads(line)["text"] for line in lines])
    return {str(place): [list(match) for match in found] for place, found in enumerate(matches) if found}


def _tokens(job: PieceJob, documents: Path, size: int) -> TokenFile:
    work = job.folder / f"work-{job.number:05d}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    below = job.folder.relative_to(job.root)
    names = tuple(str(below / f"{job.number:05d}{suffix}") for suffix in (".npy", ".none.npy"))
    source = str(documents.relative_to(job.root))
    try:
        made, _ = tokenize(
            job.root, source, len(job.digests), size, job.tokenizer, (names[0], names[1]), lambda _: False, work
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return replace(made, path=Path(made.path).name)


def made_from(key: str, lines: Sequence[bytes]) -> str:
    """What tells whether a piece is the one that an earlier run finished."""
    digest = hashlib.sha256(key.encode())
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
