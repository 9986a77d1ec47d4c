"""The shard contract: what a dataset folder holds and how its manifest describes it.

A dataset folder, on disk or under an `s3://` address, its shards as `dolma tokens` writes and OLMo's MemMapDataset
reads them, is

    manifest.json                  what this module reads and writes
    tokenizer.json                 the tokenizer that made the tokens
    train/SOURCE-00000.npy         token ids: raw little-endian uint16 or uint32, no header, EOS after each document
    train/SOURCE-00000.csv.gz      beside it: one row per document (first token, end token, id, source file, line)
    validation/*.npy, *.csv.gz     the same for held-out documents

:mod:`olmoe_parrots.shard_checks` checks one against a training config, :mod:`olmoe_parrots.shard_verification` whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from olmoe_parrots import remote
from olmoe_parrots.errors import InputError

FORMAT = "olmoe_parrots.shards/2"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation")
REBUILD = "build the dataset again with `python -m data_prep`"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_BLOCK = 1 << 22
_SHA256 = re.compile("[0-9a-f]{64}")
_Record = TypeVar("_Record")


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
    """One token file of one source.

    Args:
        path: relative to the dataset folder, with `/`.
        split: "train" or "validation".
        source: the name of the source that its documents come from.
        bytes, sha256: of the file.
        tokens, documents: in it; each document's EOS counts as a token.
        boundaries_sha256: of the `.csv.gz` beside it; None where there is none, as for examples of a fixed length.
        label_mask: the path of a file of one byte a token, 1 where the token is learned (OLMo's label_mask_paths).
        label_mask_sha256: of that file.
    """

    path: str
    split: str
    source: str
    bytes: int
    sha256: str
    tokens: int
    documents: int
    boundaries_sha256: str | None
    label_mask: str | None = None
    label_mask_sha256: str | None = None

    @property
    def boundaries(self) -> str | None:
        """The path of its document boundaries, relative to the dataset folder; None where there are none."""
        return boundaries_path(self.path) if self.boundaries_sha256 else None


@dataclass(frozen=True)
class ReportFile:
    """A further file of the dataset folder, such as the report on contamination: `path` relative to the folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says of a dataset folder.

    Args:
        mixture: the inputs and every setting that decides the bytes.
        versions: of Python and of the packages that shape the tokens.
        asked: by source, what the mixture asked for: {"tokens": int or None, "share": float or None, "epochs": int}.
        reports: further files of the folder.
    """

    tokenizer: TokenizerInfo
    dtype: str
    files: list[ShardFile]
    mixture: dict[str, Any]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: list[ReportFile] = field(default_factory=list)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read manifest.json of a dataset folder, on disk or under an `s3://` address.

        Raises InputError if it is missing, no manifest or contradicts itself.
        """
        path = remote.join(directory, MANIFEST)
        try:
            content = remote.read_bytes(path) if remote.is_remote(path) else Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(path, "there is no manifest", f"name a finished dataset folder, or {REBUILD}") from None
        except OSError as error:
            raise InputError(path, f"it cannot be read ({error.strerror})", "correct its permissions") from None
        return parse_manifest(content, path)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `directory`/manifest.json atomically."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_atomically(Path(directory) / MANIFEST, f"{text}\n".encode())

    def totals(self, split: str, source: str | None = None) -> tuple[int, int]:
        """(tokens, documents) of a split, or of one source in it."""
        files = [file for file in self.files if file.split == split and source in (None, file.source)]
        return sum(file.tokens for file in files), sum(file.documents for file in files)

    def sources(self, split: str) -> dict[str, dict[str, int]]:
        """{"tokens", "documents"} of a split by source, sorted by name."""
        found = {}
        for source in sorted({file.source for file in self.files if file.split == split}):
            tokens, documents = self.totals(split, source)
            found[source] = {"tokens": tokens, "documents": documents}
        return found


def parse_manifest(content: bytes, where: object) -> Manifest:
    """The manifest in `content`, the bytes of a manifest.json; `where` names it in the InputError it raises."""
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"it cannot be read as JSON ({error})", REBUILD) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = repr(raw.get("format")) if isinstance(raw, dict) else "missing"
        raise InputError(where, f"its format is {found} and not {FORMAT!r}", REBUILD)
    try:
        entries = {key: value for key, value in raw.items() if key != "format"}
        entries["tokenizer"] = _record(TokenizerInfo, entries["tokenizer"])
        entries["files"] = [_record(ShardFile, file) for file in entries["files"]]
        entries["reports"] = [_record(ReportFile, file) for file in entries["reports"]]
        manifest: Manifest = _record(Manifest, entries)
    except (TypeError, KeyError) as error:
        raise InputError(where, f"it lacks a field or holds a wrong one ({error})", REBUILD) from None
    if problem := _contradiction(manifest):
        raise InputError(where, problem, REBUILD)
    return manifest


def _record(kind: type[_Record], raw: dict[str, Any]) -> _Record:
    """A dataclass of the values in `raw`, each of the type that its field names; TypeError otherwise."""
    record = kind(**raw)
    for name, hint in typing.get_type_hints(kind).items():
        origin = typing.get_origin(hint)
        if not isinstance(value := getattr(record, name), origin if origin in (list, dict) else hint):
            raise TypeError(f"{name} is {value!r:.60}")
    return record


def _contradiction(manifest: Manifest) -> str | None:
    """What cannot be so in a manifest whose fields are of the right types. It may come from elsewhere."""
    if manifest.dtype not in DTYPES:
        return f"its dtype is {manifest.dtype!r}, not uint16 or uint32"
    if manifest.tokenizer.vocabulary_size > np.iinfo(DTYPES[manifest.dtype]).max + 1:
        return f"{manifest.dtype} does not hold a vocabulary of {manifest.tokenizer.vocabulary_size}"
    for file in manifest.files:
        if file.split not in SPLITS:
            return f"{file.path} is of the split {file.split!r}, not train or validation"
        if not file.source.strip() or not file.source.isprintable():
            return f"{file.path} is of the source {file.source!r}, which is no name"
        if min(file.bytes, file.tokens, file.documents) < 0:
            return f"{file.path} has a count below 0"
        if file.tokens * DTYPES[manifest.dtype].itemsize != file.bytes:
            return f"{file.path}: {file.bytes} bytes are not {file.tokens} tokens of {manifest.dtype}"
        if (file.label_mask is None) != (file.label_mask_sha256 is None):
            return f"{file.path} has only one of label_mask and label_mask_sha256"
    return _bad_path(manifest) or _bad_sum(manifest) or _bad_request(manifest)


def _bad_path(manifest: Manifest) -> str | None:
    seen: set[str] = set()
    masks = [file.label_mask for file in manifest.files if file.label_mask is not None]
    listed = [*(file.path for file in manifest.files), *(report.path for report in manifest.reports)]
    for path in [*listed, *masks]:
        parts = PurePosixPath(path).parts
        if not path.isprintable() or "\\" in path or not parts or parts[0] == "/" or ".." in parts or "://" in path:
            return f"it names {path!r}, which is not a path inside the folder"
        if path in seen:
            return f"it lists {path!r} twice"
        seen.add(path)
    return None


def _bad_sum(manifest: Manifest) -> str | None:
    entries: list[tuple[str, str | None]] = [(TOKENIZER, manifest.tokenizer.sha256)]
    for file in manifest.files:
        entries += [(file.path, s) for s in (file.sha256, file.boundaries_sha256, file.label_mask_sha256)]
    entries += [(report.path, report.sha256) for report in manifest.reports]
    wrong = [(path, digest) for path, digest in entries if digest is not None and not _SHA256.fullmatch(digest)]
    return f"{wrong[0][0]}: {wrong[0][1]!r:.70} is not a SHA-256" if wrong else None


def _bad_request(manifest: Manifest) -> str | None:
    kinds: dict[str, Any] = {"tokens": int | None, "share": int | float | None, "epochs": int}
    for source, asked in manifest.asked.items():
        for key, kind in kinds.items():
            if not isinstance(asked, dict) or not isinstance(asked.get(key, 1), kind):
                return f"what it says was asked of {source!r} is wrong ({key})"
    return None


def boundaries_path(shard: str) -> str:
    """The path of a token file's document boundaries: `.csv.gz` in place of its ending."""
    return PurePosixPath(shard).with_suffix(".csv.gz").as_posix()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: beside it first, flushed, then renamed; a failure leaves nothing beside it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The hexadecimal SHA-256 of a local file's bytes."""
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_blocks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The bytes of a local file, in blocks of 4 MiB."""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def smallest_dtype(vocabulary_size: int) -> str:
    """'uint16' where every token id fits in two bytes, else 'uint32'."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


def describe_shard(
    directory: Path, path: str, split: str, source: str, dtype: str, documents: int, label_mask: str | None = None
) -> ShardFile:
    """The ShardFile of `directory`/`path`, its `.csv.gz` if there is one and its label mask, read from disk.

    Raises ValueError for a file that is no whole number of tokens, or a label mask of another length.
    """
    size, itemsize = (directory / path).stat().st_size, DTYPES[dtype].itemsize
    if size % itemsize:
        raise ValueError(f"{path}: {size} bytes are no whole number of {dtype} tokens")
    if label_mask is not None and (directory / label_mask).stat().st_size != size // itemsize:
        raise ValueError(f"{label_mask}: it is not one byte for each of the {size // itemsize} tokens of {path}")
    boundaries = directory / boundaries_path(path)
    return ShardFile(
        path=path,
        split=split,
        source=source,
        bytes=size,
        sha256=sha256_of(directory / path),
        tokens=size // itemsize,
        documents=documents,
        boundaries_sha256=sha256_of(boundaries) if boundaries.is_file() else None,
        label_mask=label_mask,
        label_mask_sha256=None if label_mask is None else sha256_of(directory / label_mask),
    )


def describe_report(directory: Path, path: str) -> ReportFile:
    """The ReportFile of `directory`/`path`, read from disk."""
    return ReportFile(path, (directory / path).stat().st_size, sha256_of(directory / path))
