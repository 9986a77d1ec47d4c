"""Token files against their manifests and against a training config, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import MANIFEST, REBUILD, Manifest, ShardFile, sha256_of


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
