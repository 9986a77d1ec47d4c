"""The shard contract: what a dataset folder holds, how it is described, and how it is checked.

A dataset folder, its shards as `dolma tokens` writes and OLMo's MemMapDataset reads them, is

    manifest.json              what this module reads and writes
    tokenizer.json             the tokenizer that made the tokens
    train/*.npy                token ids: raw little-endian uint16 or uint32, no header, EOS after each document
    train/*.csv.gz             beside each: one row per document (first token, end token, id, source file, line)
    validation/*.npy, *.csv.gz the same for held-out documents
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from olmoe_parrots.errors import InputError

FORMAT = "olmoe_parrots.shards/1"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation")
REBUILD = "build the dataset again with `python -m data_prep`"
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_BLOCK = 1 << 22


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer of a dataset: `sha256` is that of its tokenizer.json, `vocabulary_size` its largest id + 1."""

    name: str
    sha256: str
    vocabulary_size: int
    eos_token_id: int
    pad_token_id: int


@dataclass(frozen=True)
class ShardFile:
    """One token file: `path` is relative to the dataset folder, `bytes` its size, `sha256` that of its bytes."""

    path: str
    split: str
    bytes: int
    sha256: str
    tokens: int
    documents: int


@dataclass(frozen=True)
class Manifest:
    """A dataset folder: `sources` maps split to source to {"tokens", "documents"}; `mixture` describes the inputs."""

    tokenizer: TokenizerInfo
    dtype: str
    files: list[ShardFile]
    sources: dict[str, dict[str, dict[str, int]]]
    mixture: dict[str, Any]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read `directory`/manifest.json. Raises InputError if it is missing or not a manifest."""
        path = Path(directory) / MANIFEST
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(path, "there is no manifest", f"name a finished dataset folder, or {REBUILD}") from None
        except (OSError, ValueError) as error:
            raise InputError(path, f"cannot be read as JSON ({error})", REBUILD) from None
        return _parse_manifest(raw, path)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `directory`/manifest.json atomically."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_atomically(Path(directory) / MANIFEST, f"{text}\n".encode())

    def totals(self, split: str) -> tuple[int, int]:
        """(tokens, documents) of a split."""
        files = [file for file in self.files if file.split == split]
        return sum(file.tokens for file in files), sum(file.documents for file in files)


def _parse_manifest(raw: Any, path: Path) -> Manifest:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(path, f"its format is not {FORMAT!r}", REBUILD)
    try:
        fields = {key: value for key, value in raw.items() if key != "format"}
        fields["tokenizer"] = TokenizerInfo(**fields["tokenizer"])
        fields["files"] = [ShardFile(**file) for file in fields["files"]]
        manifest = Manifest(**fields)
    except (TypeError, KeyError) as error:
        raise InputError(path, f"it lacks a field or has one too many ({error})", REBUILD) from None
    if manifest.dtype not in _DTYPES:
        raise InputError(path, f"its dtype is {manifest.dtype!r}, not uint16 or uint32", REBUILD)
    for file in manifest.files:
        # A manifest may come from elsewhere: it must not name files outside its folder.
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise InputError(path, f"it names {file.path!r}, which is outside the folder", REBUILD)
        if file.tokens * _DTYPES[manifest.dtype].itemsize != file.bytes:
            raise InputError(path, f"{file.path}: {file.bytes} bytes are not {file.tokens} tokens", REBUILD)
    return manifest


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: beside it first, flushed to disk, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def smallest_dtype(vocabulary_size: int) -> str:
    """'uint16' where every token id fits in two bytes, else 'uint32'."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


def describe_shard(directory: Path, path: str, split: str, dtype: str, documents: int) -> ShardFile:
    """The ShardFile of the token file `directory`/`path`, read from disk."""
    size = (directory / path).stat().st_size
    tokens = size // _DTYPES[dtype].itemsize
    return ShardFile(path, split, size, sha256_of(directory / path), tokens, documents)


def find_manifest(path: str | os.PathLike[str]) -> tuple[Path, Manifest] | None:
    """The dataset folder of a token file and its manifest, looked for in the file's folder and up to two above it.

    None where there is none. Raises InputError where there is one that cannot be read.
    """
    folder = Path(path).absolute().parent
    for candidate in (folder, *list(folder.parents)[:2]):
        if (candidate / MANIFEST).is_file():
            return candidate, Manifest.load(candidate)
    return None


def check_training_shards(
    paths: Iterable[str | os.PathLike[str]],
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
    dtype: str,
    sequence_length: int,
    verify_hashes: bool = False,
) -> int:
    """Check token files against their manifests and against a training config, before anything is trained.

    Args:
        paths: token files. Those with a scheme (`s3://...`) are passed through: neither checked nor counted.
        vocab_size, eos_token_id, pad_token_id: the model's; each must equal the tokenizer's.
        dtype: the config's data type of the files, such as "uint16".
        sequence_length: in tokens.
        verify_hashes: also read every byte and compare SHA-256 sums. Sizes are compared always.

    Returns:
        The number of whole sequences over all files, each file divided by itself as OLMo's MemMapDataset does.

    Raises InputError, which names the file, the value found and the remedy.
    """
    wanted = {"vocabulary_size": vocab_size, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    known: dict[Path, tuple[Path, Manifest, dict[str, ShardFile]]] = {}
    sequences = 0
    for path in (Path(p) for p in paths if "://" not in str(p)):
        manifest, shard = _listed_shard(path, known)
        _check_fit(path, manifest, wanted, dtype)
        _check_content(path, shard, verify_hashes)
        if shard.tokens < sequence_length:
            what = f"its {shard.tokens} tokens are fewer than one sequence of {sequence_length}"
            raise InputError(path, what, "leave this file out, use shorter sequences or prepare more text")
        sequences += shard.tokens // sequence_length
    return sequences


def _listed_shard(
    path: Path, known: dict[Path, tuple[Path, Manifest, dict[str, ShardFile]]]
) -> tuple[Manifest, ShardFile]:
    folder = path.absolute().parent
    if not path.is_file():
        raise InputError(path, "the file does not exist", f"correct the path in the config, or {REBUILD}")
    if folder not in known:
        if (found := find_manifest(path)) is None:
            raise InputError(path, f"there is no {MANIFEST} in its folder or the two above", REBUILD)
        known[folder] = *found, {file.path: file for file in found[1].files}
    root, manifest, files = known[folder]
    shard = files.get(path.absolute().relative_to(root).as_posix())
    if shard is None:
        raise InputError(path, f"it is not listed in {root / MANIFEST}", f"use a listed file, or {REBUILD}")
    return manifest, shard


def _check_fit(path: Path, manifest: Manifest, wanted: dict[str, int], dtype: str) -> None:
    if manifest.dtype != dtype:
        what = f"its tokens are {manifest.dtype} and the config says {dtype}"
        raise InputError(path, what, f"set the config's memmap dtype to {manifest.dtype}")
    for name, value in wanted.items():
        found = getattr(manifest.tokenizer, name)
        if found != value:
            what = f"the {name} of its tokenizer {manifest.tokenizer.name} is {found} and the model's is {value}"
            raise InputError(path, what, f"set the model's to {found}, or prepare the data with its tokenizer")


def _check_content(path: Path, shard: ShardFile, verify_hashes: bool) -> None:
    size = path.stat().st_size
    if size != shard.bytes:
        raise InputError(
            path, f"it has {size} bytes and its manifest says {shard.bytes}", f"copy it anew, or {REBUILD}"
        )
    if verify_hashes and (digest := sha256_of(path)) != shard.sha256:
        what = f"its content has changed (sha256 {digest[:12]}..., manifest {shard.sha256[:12]}...)"
        raise InputError(path, what, f"copy it anew, or {REBUILD}")


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
        counts = list(manifest.sources.get(split, {}).values())
        summed = sum(c.get("tokens", 0) for c in counts), sum(c.get("documents", 0) for c in counts)
        if summed != manifest.totals(split):
            what = f"the {split} sources sum to {summed} tokens and documents, the files to {manifest.totals(split)}"
            problems.append(f"{root / MANIFEST}: {what}")
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
    tokens = np.memmap(path, dtype=_DTYPES[manifest.dtype], mode="r")
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
