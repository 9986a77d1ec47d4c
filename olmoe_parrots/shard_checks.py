"""Token files against their manifests and against a training config, before anything is trained."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olmoe_parrots import remote
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import MANIFEST, REBUILD, TOKENIZER, Manifest, ShardFile, read_blocks

log = logging.getLogger("olmoe_parrots")
VERIFICATIONS = ("auto", "hashes", "sizes")
_THREADS = 16


@dataclass(frozen=True)
class _Folder:
    """A dataset folder that files of a config lie in, and the splits that they are of."""

    root: str
    manifest: Manifest
    files: dict[str, ShardFile]
    splits: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Expected:
    """A file as its manifest has it; `bytes` is None where the manifest names no size."""

    path: str
    bytes: int | None
    sha256: str


def find_manifest(path: str | os.PathLike[str]) -> tuple[str, Manifest] | None:
    """The dataset folder of a token file and its manifest, looked for in the file's folder and up to two above it.

    None where there is none. Raises InputError where there is one that cannot be read.
    """
    for folder in _folders_above(str(path)):
        place = remote.join(folder, MANIFEST)
        if remote.exists(place) if remote.is_remote(place) else Path(place).is_file():
            return folder, Manifest.load(folder)
    return None


def check_training_shards(
    paths: Iterable[str | os.PathLike[str]],
    *,
    vocab_size: int,
    eos_token_id: int,
    pad_token_id: int,
    dtype: str,
    sequence_length: int,
    label_mask_paths: Sequence[str | os.PathLike[str]] | None = None,
    verification: str = "auto",
) -> int:
    """Check token files against their manifests and against a training config, before anything is trained.

    Args:
        paths: token files, on disk or under `s3://`. Those of other schemes (`gs://...`) are passed through: neither
            checked nor counted.
        vocab_size, eos_token_id, pad_token_id: the model's; each must equal the tokenizer's.
        dtype: the config's data type of the files, such as "uint16".
        sequence_length: in tokens; of a synthetic task, the length of its rows.
        label_mask_paths: one for each of `paths`, or none. Training files that have masks must be given them.
        verification: "sizes" compares the sizes of files with their manifest; "hashes" also reads every byte and
            compares SHA-256 sums; "auto" does so on disk, and on S3 compares the sums that were stored on upload.

    Returns:
        The number of whole sequences over all files, each file divided by itself as OLMo's MemMapDataset does.

    Files listed in a manifest for a split in use must all be there. Files shorter than a sequence are told in a
    warning. Raises InputError, which names the file, the value found and the remedy.
    """
    wanted = {"vocabulary_size": vocab_size, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    named, masks = [str(path) for path in paths], [str(path) for path in label_mask_paths or []]
    if masks and len(masks) != len(named):
        what = f"there are {len(masks)} label masks for {len(named)} token files"
        raise InputError("data.label_mask_paths", what, "name one for each token file, in the same order")
    folders, shards, expected = _locate(named, masks, wanted, dtype)
    masked = [shard.path for shard in shards if shard.label_mask and shard.split == "train"]
    if masked and not masks:
        what = f"it names none and {masked[0]} has a label mask, without which every token would be learned"
        raise InputError("data.label_mask_paths", what, "name the masks in the order of the token files")
    for folder in folders:
        _check_rows(folder, sequence_length)
        _check_complete(folder)
        expected.append(_Expected(remote.join(folder.root, TOKENIZER), None, folder.manifest.tokenizer.sha256))
    _compare(expected, verification)
    return _count_sequences(named, shards, sequence_length)


def _locate(
    paths: list[str], masks: list[str], wanted: dict[str, int], dtype: str
) -> tuple[list[_Folder], list[ShardFile], list[_Expected]]:
    """The dataset folders of token files, what their manifests say of each, and the files to compare with it."""
    folders: dict[str, _Folder] = {}
    shards: list[ShardFile] = []
    expected: list[_Expected] = []
    for number, path in enumerate(paths):
        if "://" in path and not remote.is_remote(path):
            continue
        folder, shard = _listed_shard(path, folders)
        folder.splits.add(shard.split)
        _check_fit(path, folder.manifest, wanted, dtype)
        shards.append(shard)
        expected.append(_Expected(path, shard.bytes, shard.sha256))
        if masks:
            expected.append(_listed_mask(masks[number], path, folder, shard))
    return list(folders.values()), shards, expected


def _folders_above(path: str) -> list[str]:
    if remote.is_remote(path):
        bucket, *names = path.removeprefix(remote.SCHEME).split("/")[:-1]
        names = [name for name in names if name]
        return [
            "/".join([f"{remote.SCHEME}{bucket}", *names[: len(names) - up]]) for up in range(min(3, len(names) + 1))
        ]
    folder = Path(path).absolute().parent
    return [str(candidate) for candidate in (folder, *list(folder.parents)[:2])]


def _listed_shard(path: str, folders: dict[str, _Folder]) -> tuple[_Folder, ShardFile]:
    parent = _folders_above(path)[0]
    if not remote.is_remote(path) and not Path(path).is_file():
        raise InputError(path, "the file does not exist", f"correct the path in the config, or {REBUILD}")
    if parent not in folders:
        if (found := find_manifest(path)) is None:
            raise InputError(path, f"there is no {MANIFEST} in its folder or the two above", REBUILD)
        folders[parent] = _Folder(*found, {file.path: file for file in found[1].files})
    folder = folders[parent]
    shard = folder.files.get(_below(folder.root, path) or "")
    if shard is None:
        place = remote.join(folder.root, MANIFEST)
        raise InputError(path, f"it is not listed in {place}", f"use a listed file, or {REBUILD}")
    return folder, shard


def _below(root: str, path: str) -> str | None:
    """The path of a file relative to the dataset folder; None where it lies elsewhere."""
    if remote.is_remote(path):
        names = [name for name in path.removeprefix(remote.SCHEME).split("/") if name]
        above = [name for name in root.removeprefix(remote.SCHEME).split("/") if name]
        return "/".join(names[len(above) :]) if names[: len(above)] == above else None
    absolute = Path(path).absolute()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else None


def _listed_mask(mask: str, path: str, folder: _Folder, shard: ShardFile) -> _Expected:
    if shard.label_mask is None or shard.label_mask_sha256 is None:
        raise InputError(
            mask, f"the manifest of {path} lists no label mask for it", f"leave the masks out, or {REBUILD}"
        )
    if _below(folder.root, mask) != shard.label_mask:
        remedy = "name the masks in the order of the token files"
        raise InputError(mask, f"it is not the label mask of {path}, which is {shard.label_mask}", remedy)
    return _Expected(mask, shard.tokens, shard.label_mask_sha256)


def _check_fit(path: str, manifest: Manifest, wanted: dict[str, int], dtype: str) -> None:
    if manifest.dtype != dtype:
        what = f"its tokens are {manifest.dtype} and the config says {dtype}"
        raise InputError(path, what, f"set the config's memmap dtype to {manifest.dtype}")
    for name, value in wanted.items():
        found = getattr(manifest.tokenizer, name)
        if found != value:
            what = f"the {name} of its tokenizer {manifest.tokenizer.name} is {found} and the model's is {value}"
            raise InputError(path, what, f"set the model's to {found}, or prepare the data with its tokenizer")


def _check_rows(folder: _Folder, sequence_length: int) -> None:
    """A synthetic task's rows are of one length, and each is a sequence."""
    mixture = folder.manifest.mixture
    length = mixture.get("sequence_length") if "task" in mixture else None
    if length not in (None, sequence_length):
        what = f"its rows are of {length} tokens and the model's sequences of {sequence_length}"
        raise InputError(remote.join(folder.root, MANIFEST), what, f"set model.max_sequence_length to {length}")


def _check_complete(folder: _Folder) -> None:
    """A pattern such as `train/*.npy` would silently pass over a file that is gone."""
    listed = [file.path for file in folder.manifest.files if file.split in folder.splits]
    if remote.is_remote(folder.root):
        present = {_below(folder.root, path) for path in remote.list_files(folder.root)}
        gone = [path for path in listed if path not in present]
    else:
        gone = [path for path in listed if not Path(folder.root, path).is_file()]
    if gone:
        what = f"the file does not exist, and {remote.join(folder.root, MANIFEST)} lists it"
        raise InputError(remote.join(folder.root, gone[0]), what, f"copy it anew, or {REBUILD}")


def _compare(expected: list[_Expected], verification: str) -> None:
    """Sizes first, which takes no time, then sums, each in the order of the files."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for file, (size, stored) in zip(expected, pool.map(lambda file: _stat(file.path), expected), strict=True):
            if file.bytes not in (None, size):
                what = f"it has {size} bytes and its manifest says {file.bytes}"
                raise InputError(file.path, what, f"copy it anew, or {REBUILD}")
            if verification != "sizes" and stored is not None:
                _check_sum(file, stored)
    read = [file for file in expected if _is_read(file, verification)]
    threads = min(_THREADS, os.cpu_count() or 1)
    with _bar(sum(file.bytes or 0 for file in read)) as bar, ThreadPoolExecutor(threads) as pool:
        try:
            for file, found in zip(read, pool.map(lambda file: _digest(file.path, bar.update), read), strict=True):
                _check_sum(file, found)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_read(file: _Expected, verification: str) -> bool:
    """A file without a listed size is small and has nothing else to be told by."""
    on_disk = not remote.is_remote(file.path)
    return verification == "hashes" or file.bytes is None or (verification == "auto" and on_disk)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    # Shown only where reading takes long.
    return tqdm(total=total, desc="checking the data", unit="B", unit_scale=True, delay=3, leave=False)


def _check_sum(file: _Expected, found: str) -> None:
    if found != file.sha256:
        what = f"its content has changed (sha256 {found[:12]}..., manifest {file.sha256[:12]}...)"
        raise InputError(file.path, what, f"copy it anew, or {REBUILD}")


def _stat(path: str) -> tuple[int, str | None]:
    """The size of a file, and the sum stored with it on S3."""
    try:
        if remote.is_remote(path):
            found = remote.stat(path)
            return found.bytes, found.sha256
        return os.stat(path).st_size, None
    except OSError as error:
        what = "the file does not exist" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise InputError(path, what, f"copy it anew, or {REBUILD}") from None


def _digest(path: str, progress: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    try:
        for block in remote.read_blocks(path) if remote.is_remote(path) else read_blocks(path):
            digest.update(block)
            progress(len(block))
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error})", f"copy it anew, or {REBUILD}") from None
    return digest.hexdigest()


def _count_sequences(paths: list[str], shards: list[ShardFile], sequence_length: int) -> int:
    sequences = sum(shard.tokens // sequence_length for shard in shards)
    short = [shard for shard in shards if shard.tokens < sequence_length]
    if shards and not sequences:
        what = f"none of its {len(shards)} token files holds a sequence of {sequence_length} tokens"
        raise InputError(paths[0], what, "use shorter sequences or prepare more text")
    if short:
        told = f"{len(short)} of {len(shards)} token files are shorter than a sequence of {sequence_length} tokens"
        unused = sum(shard.tokens for shard in short)
        log.warning("%s, and their %s tokens are not used (first: %s)", told, f"{unused:,}", short[0].path)
    return sequences
