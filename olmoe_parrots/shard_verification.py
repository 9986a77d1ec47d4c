"""A dataset folder checked whole."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from olmoe_parrots.shards import DTYPES, SPLITS, TOKENIZER, Manifest, ShardFile, sha256_of

_BLOCK = 1 << 22


def verify(directory: str | os.PathLike[str]) -> list[str]:
    """Check a whole dataset folder: every byte, every token id, every document boundary, every count.

    Returns the problems found, each naming its file. Raises InputError where there is no readable manifest.
    """
    root = Path(directory)
    manifest = Manifest.load(root)
    problems: list[str] = []
    tokenizer, listed = root / TOKENIZER, {file.path for file in manifest.files}
    if not tokenizer.is_file():
        problems.append(f"{tokenizer}: the file is missing")
    elif sha256_of(tokenizer) != manifest.tokenizer.sha256:
        problems.append(f"{tokenizer}: it is not the tokenizer the manifest names ({manifest.tokenizer.name})")
    for split in SPLITS:
        present = {path.relative_to(root).as_posix() for path in (root / split).glob("*.npy")}
        problems += [f"{root / path}: it is not listed in the manifest" for path in sorted(present - listed)]
    for file in manifest.files:
        problems += [f"{root / file.path}: {what}" for what in _shard_problems(root, file, manifest)]
    return problems


def _shard_problems(root: Path, file: ShardFile, manifest: Manifest) -> list[str]:
    path = root / file.path
    if not path.is_file():
        return ["the file is missing"]
    size = path.stat().st_size
    if size != file.bytes:
        return [f"it has {size} bytes and the manifest says {file.bytes}"]
    if not size:
        return ["the file is empty"]
    problems = [] if sha256_of(path) == file.sha256 else ["its content has changed (sha256 differs)"]
    tokens = np.memmap(path, dtype=DTYPES[manifest.dtype], mode="r")
    largest = max(int(tokens[start : start + _BLOCK].max()) for start in range(0, len(tokens), _BLOCK))
    if largest >= manifest.tokenizer.vocabulary_size:
        problems.append(f"token id {largest} is outside the vocabulary of {manifest.tokenizer.vocabulary_size}")
    if tokens[-1] != manifest.tokenizer.eos_token_id:
        problems.append(f"it ends in token {tokens[-1]} and not in EOS, {manifest.tokenizer.eos_token_id}")
    return problems + _boundary_problems(path, tokens, file, manifest.tokenizer.eos_token_id)


def _boundary_problems(path: Path, tokens: np.ndarray, file: ShardFile, eos: int) -> list[str]:
    boundaries = path.with_suffix(".csv.gz")
    if not boundaries.is_file():
        return [f"{boundaries.name} is missing beside it"]
    end, documents = 0, 0
    try:
        with gzip.open(boundaries, "rt", encoding="utf-8", newline="") as stream:
            for documents, row in enumerate(csv.reader(stream), start=1):
                start, stop = int(row[0]), int(row[1])
                if start != end or not start < stop <= len(tokens) or tokens[stop - 1] != eos:
                    return [f"{boundaries.name} row {documents} does not bound a document ending in EOS"]
                end = stop
    except (OSError, EOFError, ValueError, IndexError, zlib.error, csv.Error) as error:
        return [f"{boundaries.name} cannot be read ({error})"]
    if (documents, end) == (file.documents, len(tokens)):
        return []
    return [f"{boundaries.name} holds {documents} documents up to token {end}, not {file.documents} to {len(tokens)}"]
