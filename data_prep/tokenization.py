"""Documents to token shards, by dolma's own tokenizer and writer.

One file of documents becomes one shard in the order of its lines, and a second one of the documents that are
candidates for being held out. dolma's command shuffles unseeded and its output depends on the number of processes; its
pieces do not.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.tokenizers import INSTALL
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import TokenizerInfo, sha256_of, smallest_dtype, write_atomically

_PACKAGES = ("dolma", "tokenizers", "transformers", "mistral-common", "ai2-olmo", "numpy", "datasets", "pyarrow")


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """While dolma is imported: let it find the sentence model that it would fetch and that is not used here."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizers", "punkt").mkdir(parents=True)
        before = os.environ.get("NLTK_DATA")
        os.environ["NLTK_DATA"] = folder if before is None else f"{before}{os.pathsep}{folder}"
        if "nltk" in sys.modules:
            sys.modules["nltk"].data.path.append(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["NLTK_DATA"]
            else:
                os.environ["NLTK_DATA"] = before


def import_dolma() -> tuple[Any, Any]:
    """dolma's `tokenize_file` and `MemmapWriter`; takes about ten seconds the first time.

    Raises InputError where dolma is not installed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with _no_download():
            from dolma.tokenizer import tokenize_file
            from dolma.tokenizer.memmap_writer import MemmapWriter
    except ImportError as error:
        raise InputError("dolma", f"it cannot be imported ({error})", INSTALL) from None
    return tokenize_file, MemmapWriter


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that shape the shards."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens with `.csv.gz` beside it: `path` is relative to the dataset folder; empty ones are not written,
    and then the sums are empty too."""

    path: str
    tokens: int
    documents: int
    bytes: int
    sha256: str
    boundaries_sha256: str

    @property
    def boundaries(self) -> str:
        """The path of the document boundaries, relative to the dataset folder."""
        return f"{self.path.removesuffix('.npy')}.csv.gz"

    def is_whole(self, output: Path) -> bool:
        """Whether both files are there with the content they were written with."""
        if not self.documents:
            return True
        try:
            same = sha256_of(output / self.path) == self.sha256
            return same and sha256_of(output / self.boundaries) == self.boundaries_sha256
        except OSError:
            return False


def tokenize(
    output: Path,
    documents_path: str,
    documents: int,
    json_bytes: int,
    tokenizer: TokenizerInfo,
    paths: tuple[str, str],
    is_candidate: Callable[[str], bool],
    scratch: Path,
) -> tuple[TokenFile, TokenFile]:
    """Tokenize one file of documents into `paths`: (those for training, the candidates for hold-out).

    Args:
        output: the dataset folder; `documents_path` and `paths` are relative to it.
        documents: how many documents the file holds.
        json_bytes: its size before compression.
        is_candidate: tells from a document's id to which of the two it goes.
        scratch: a folder of this file's own.

    Files are written in `scratch` and renamed. Raises InputError if not all of the documents could be tokenized.
    """
    import numpy as np

    tokenize_file, memmap_writer = import_dolma()
    source = output / documents_path
    options = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rows = tokenize_file(str(output / "tokenizer.json"), str(source), encode_special_tokens=True, **options)
    dtype = np.dtype(smallest_dtype(tokenizer.vocabulary_size)).newbyteorder("<")
    # The writer lays out room beforehand and cuts it off in the end: no tokenizer makes this many tokens.
    room = 4 * (json_bytes + documents) + 16
    _require_space(scratch, dtype.itemsize * (json_bytes + documents))
    counts, read = [0, 0], 0
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(memmap_writer(str(scratch / n), dtype, max_tokens=room)) for n in ("0", "1")]
        for row in rows:
            read += 1
            if not row.tokens:  # a tokenizer may drop every character of a text
                continue
            which = int(is_candidate(row.id))
            if not writers[which].write(row._replace(src=documents_path)):
                raise RuntimeError(f"{source}: more than {room} tokens")
            counts[which] += 1
    if read != documents:
        # dolma logs a document or a file that fails and goes on.
        what = f"{read} of its {documents} documents were tokenized"
        raise InputError(source, what, "see the messages above; if none explains it, remove the folder and run again")
    made = [_place(output, scratch / str(i), path, counts[i]) for i, path in enumerate(paths)]
    return made[0], made[1]


def _require_space(folder: Path, size: int) -> None:
    """dolma writes through a memory map, and a full disk then ends the process without a word."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _place(output: Path, stem: Path, path: str, documents: int) -> TokenFile:
    tokens, boundaries = stem.with_suffix(".npy"), stem.with_suffix(".csv.gz")
    if not documents:
        return TokenFile(path, 0, 0, 0, "", "")
    return place_tokens(output, path, tokens, gzip.decompress(boundaries.read_bytes()), documents)


def place_tokens(output: Path, path: str, tokens: Path, boundaries: bytes, documents: int) -> TokenFile:
    """Move a finished file of tokens to `output`/`path` and write its document boundaries beside it.

    dolma's gzip carries a time and a name; this one neither, so that the same rows are the same bytes.
    """
    target = output / path
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = target.with_suffix(".csv.gz")
    write_atomically(rows, gzip.compress(boundaries, compresslevel=6, mtime=0))
    size = tokens.stat().st_size
    with tokens.open("rb") as file:
        os.fsync(file.fileno())
    digest = sha256_of(tokens)
    os.replace(tokens, target)
    last = boundaries.rsplit(b"\n", 2)[-2] if boundaries.endswith(b"\n") else boundaries
    count = int(last.split(b",")[1])
    return TokenFile(path, count, documents, size, digest, sha256_of(rows))


def as_record(file: TokenFile) -> dict[str, Any]:
    """The fields of a token file, for JSON."""
    return asdict(file)
