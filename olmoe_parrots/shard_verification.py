"""A dataset folder checked whole: every byte, token id, document boundary and label mask against its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from olmoe_parrots import remote
from olmoe_parrots.shards import DTYPES, MANIFEST, SPLITS, TOKENIZER, Manifest, ShardFile, read_blocks, sha256_of

Boundaries = tuple[np.ndarray, np.ndarray]
_Progress = Callable[[int], Any]


def verify(directory: str | os.PathLike[str], *, sizes_only: bool = False) -> list[str]:
    """Check a dataset folder, on disk or under `s3://`, with a bar on standard error where it takes long.

    Args:
        sizes_only: read no token file: sizes, the tokenizer, and on S3 the sums that were stored on upload.

    Returns the problems found, each led by the file it is in. Raises InputError where there is no readable manifest.
    Files on S3 are copied to a temporary folder one after another, as many at a time as there are cores.
    """
    from tqdm import tqdm

    root = str(directory)
    manifest = Manifest.load(root)
    total = 0 if sizes_only else sum(file.bytes for file in manifest.files)
    check = _size_problems if sizes_only else _shard_problems
    problems = _tokenizer_problems(root, manifest) + _unlisted(root, manifest)
    with (
        tqdm(total=total, desc="verification", unit="B", unit_scale=True, delay=3, leave=False) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        try:
            for found in pool.map(lambda file: check(root, file, manifest, bar.update), manifest.files):
                problems += found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for report in manifest.reports:
        problems += _sum_problems(remote.join(root, report.path), report.bytes, report.sha256)
    return problems


def read_boundaries(path: str | os.PathLike[str]) -> Iterator[Boundaries]:
    """The first token and the end token of each document, from a `.csv.gz` on disk, in blocks of rows.

    Raises ValueError or OSError for a file that is damaged or holds other rows than dolma's.
    """
    for batch in read_rows(path, ["start", "end"]):
        # to_numpy would import pandas, which takes longer than the rest
        yield np.from_dlpack(batch.column("start")), np.from_dlpack(batch.column("end"))


def read_rows(path: str | os.PathLike[str], columns: list[str]) -> Iterator[Any]:
    """Columns of a `.csv.gz` on disk, of start, end, id, source and line, as Arrow record batches; raises as above."""
    import pyarrow
    from pyarrow import csv

    names = ["start", "end", "id", "source", "line"]
    types = {name: pyarrow.int64() if name in ("start", "end") else pyarrow.string() for name in names}
    if os.stat(path).st_size == 0:
        raise ValueError("the file is empty")
    yield from csv.open_csv(
        str(path),
        read_options=csv.ReadOptions(column_names=names, block_size=1 << 22, use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(include_columns=columns, column_types=types, null_values=[]),
    )


def _tokenizer_problems(root: str, manifest: Manifest) -> list[str]:
    path = remote.join(root, TOKENIZER)
    try:
        content = remote.read_bytes(path) if remote.is_remote(path) else Path(path).read_bytes()
    except OSError as error:
        return [f"{path}: {_reason(error)}"]
    if hashlib.sha256(content).hexdigest() != manifest.tokenizer.sha256:
        return [f"{path}: it is not the tokenizer the manifest names ({manifest.tokenizer.name})"]
    return []


def _unlisted(root: str, manifest: Manifest) -> list[str]:
    """Files in the folders of the shards that the manifest does not know: a pattern would train on them."""
    known = {report.path for report in manifest.reports} | {MANIFEST, TOKENIZER}
    for file in manifest.files:
        known |= {file.path, file.boundaries or "", file.label_mask or ""}
    folders = {str(PurePosixPath(file.path).parent) for file in manifest.files} | set(SPLITS)
    if remote.is_remote(root):
        start = len(root.rstrip("/")) + 1
        present = {path[start:] for path in remote.list_files(root)}
    else:
        found = (path for folder in folders for path in Path(root, folder).glob("*") if not path.is_dir())
        present = {path.relative_to(root).as_posix() for path in found}
    strange = sorted(path for path in present - known if str(PurePosixPath(path).parent) in folders)
    return [f"{remote.join(root, path)}: it is not listed in the manifest" for path in strange]


def _size_problems(root: str, file: ShardFile, manifest: Manifest, progress: _Progress) -> list[str]:
    problems = _stat_problems(remote.join(root, file.path), file.bytes, file.sha256)
    if file.boundaries is not None:
        problems += _stat_problems(remote.join(root, file.boundaries), None, file.boundaries_sha256)
    if file.label_mask is not None:
        problems += _stat_problems(remote.join(root, file.label_mask), file.tokens, file.label_mask_sha256)
    return problems


def _stat_problems(path: str, size: int | None, sha256: str | None) -> list[str]:
    try:
        found = remote.stat(path) if remote.is_remote(path) else remote.RemoteFile(os.stat(path).st_size, None)
    except OSError as error:
        return [f"{path}: {_reason(error)}"]
    if size not in (None, found.bytes):
        return [f"{path}: it has {found.bytes} bytes and the manifest says {size}"]
    return [] if found.sha256 in (None, sha256) else [f"{path}: its content has changed (sha256 differs)"]


def _sum_problems(path: str, size: int, sha256: str) -> list[str]:
    try:
        with remote.local_copy(path) as local:
            found, digest = os.stat(local).st_size, sha256_of(local)
    except OSError as error:
        return [f"{path}: {_reason(error)}"]
    if found != size:
        return [f"{path}: it has {found} bytes and the manifest says {size}"]
    return [] if digest == sha256 else [f"{path}: its content has changed (sha256 differs)"]


def _shard_problems(root: str, file: ShardFile, manifest: Manifest, progress: _Progress) -> list[str]:
    path = remote.join(root, file.path)
    try:
        with remote.local_copy(path) as local:
            problems = [f"{path}: {what}" for what in _token_problems(local, file, manifest, progress)]
            readable = os.stat(local).st_size == file.bytes > 0
            tokens = np.memmap(local, dtype=DTYPES[manifest.dtype], mode="r") if readable else None
            if file.boundaries is not None:
                csv = remote.join(root, file.boundaries)
                found = _boundary_problems(csv, file, tokens, manifest.tokenizer.eos_token_id)
                problems += [f"{csv}: {what}" for what in found]
    except OSError as error:
        problems = [f"{path}: {_reason(error)}"]
    if file.label_mask is not None:
        mask = remote.join(root, file.label_mask)
        problems += [f"{mask}: {what}" for what in _mask_problems(mask, file)]
    return problems


def _token_problems(local: str, file: ShardFile, manifest: Manifest, progress: _Progress) -> list[str]:
    size = os.stat(local).st_size
    if size != file.bytes:
        return [f"it has {size} bytes and the manifest says {file.bytes}"]
    if not size:
        return ["the file is empty"]
    digest, largest, last = hashlib.sha256(), 0, 0
    for block in read_blocks(local):
        digest.update(block)
        tokens = np.frombuffer(block, dtype=DTYPES[manifest.dtype])
        largest, last = max(largest, int(tokens.max())), int(tokens[-1])
        progress(len(block))
    problems = [] if digest.hexdigest() == file.sha256 else ["its content has changed (sha256 differs)"]
    if largest >= manifest.tokenizer.vocabulary_size:
        problems.append(f"token id {largest} is outside the vocabulary of {manifest.tokenizer.vocabulary_size}")
    if file.boundaries is not None and last != manifest.tokenizer.eos_token_id:
        problems.append(f"it ends in token {last} and not in EOS, {manifest.tokenizer.eos_token_id}")
    return problems


def _boundary_problems(path: str, file: ShardFile, tokens: np.ndarray | None, eos: int) -> list[str]:
    """`tokens` is None where they cannot be read."""
    problems: list[str] = []
    try:
        with remote.local_copy(path) as local:
            if sha256_of(local) != file.boundaries_sha256:
                problems.append("its content has changed (sha256 differs)")
            if tokens is not None:
                problems += _row_problems(read_boundaries(local), file, tokens, eos)
    except FileNotFoundError:
        problems.append("the file is missing")
    except (OSError, ValueError) as error:
        problems.append(f"it cannot be read ({error})")
    return problems


def _row_problems(blocks: Iterator[Boundaries], file: ShardFile, tokens: np.ndarray, eos: int) -> list[str]:
    end, documents = 0, 0
    for starts, ends in blocks:
        last_tokens = tokens[np.clip(ends - 1, 0, len(tokens) - 1)]
        follows = starts == np.concatenate([[end], ends[:-1]])
        sound = follows & (starts < ends) & (ends <= len(tokens)) & (last_tokens == eos)
        if not sound.all():
            return [f"row {documents + int(np.argmin(sound)) + 1} does not bound a document ending in EOS"]
        end, documents = int(ends[-1]), documents + len(ends)
    if (documents, end) == (file.documents, len(tokens)):
        return []
    return [f"it holds {documents} documents up to token {end}, not {file.documents} up to {len(tokens)}"]


def _mask_problems(path: str, file: ShardFile) -> list[str]:
    try:
        with remote.local_copy(path) as local:
            size, digest, largest = os.stat(local).st_size, hashlib.sha256(), 0
            for block in read_blocks(local):
                digest.update(block)
                largest = max(largest, int(np.frombuffer(block, dtype=np.uint8).max()))
    except OSError as error:
        return [_reason(error)]
    problems = [] if size == file.tokens else [f"it has {size} bytes for {file.tokens} tokens"]
    if digest.hexdigest() != file.label_mask_sha256:
        problems.append("its content has changed (sha256 differs)")
    return problems if largest <= 1 else [*problems, f"it holds the byte {largest}, neither 0 nor 1"]


def _reason(error: OSError) -> str:
    return "the file is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
