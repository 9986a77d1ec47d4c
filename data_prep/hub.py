"""Hugging Face's hub: rows streamed by `datasets`, and single files of a repository. No script of a repository runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from data_prep.mixture import Source
from data_prep.rows import DATA_SUFFIXES, Row
from data_prep.templates import TEMPLATES
from olmoe_parrots.errors import InputError


def count_shards(source: Source, config: str | None, told: str) -> tuple[str | None, int]:
    """(commit, number of files) of a dataset as `datasets` would stream it.

    Args:
        told: the dataset in words, for the message.

    Raises InputError when the hub cannot be reached or has no such dataset.
    """
    try:
        revision = _commit(source)
        dataset = _load(source.dataset or "", config, source.split, revision)
        columns, shards = dataset.column_names, max(1, int(dataset.num_shards))
    except Exception as error:  # datasets, huggingface_hub, fsspec and requests each raise their own
        _refuse(source, told, error)
    missing = [column for column in TEMPLATES[source.template].columns if columns and column not in columns]
    if missing:
        what = f"it has no column {', '.join(missing)}, only {', '.join(columns)}"
        raise InputError(told, what, f"name another config than {config}, or another template")
    return revision, shards


def stream_rows(
    source: Source, config: str | None, revision: str | None, shard: int, shards: int, name: str
) -> Iterator[tuple[int, Row]]:
    """(number, row) of one file of a streamed dataset, numbered from 1. Raises InputError naming it when it fails."""
    try:
        dataset = _load(source.dataset or "", config, source.split, revision)
        found = max(1, int(dataset.num_shards))
        if found != shards:
            raise InputError(name, f"the dataset has {found} files now", "remove the output folder and run again")
        part = dataset.shard(num_shards=shards, index=shard)
        yield from enumerate(part, start=1)
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        what = f"it cannot be read to its end ({_told(error)})"
        raise InputError(name, what, "run again, or bring the files and use --local") from None


def list_files(source: Source, told: str) -> tuple[str | None, list[str]]:
    """(commit, sorted paths) of the repository's files that a pattern of `source.files` names.

    Raises InputError when the hub cannot be reached or has no such file.
    """
    try:
        revision = _commit(source)
        root = f"datasets/{source.dataset}@{revision}"
        found = {path.removeprefix(f"{root}/") for pattern in source.files for path in _glob(f"{root}/{pattern}")}
    except Exception as error:
        _refuse(source, told, error)
    paths = sorted(path for path in found if path.lower().endswith(DATA_SUFFIXES))
    if not paths:
        raise InputError(told, "the repository has no such file", "mend the source's `files`")
    return revision, paths


def open_file(source: Source, revision: str | None, path: str) -> BinaryIO:
    """A file of the repository, read as it comes. Raises InputError when it cannot be opened."""
    try:
        stream: BinaryIO = _system().open(f"datasets/{source.dataset}@{revision}/{path}", "rb")
        return stream
    except Exception as error:
        what = f"it cannot be opened ({_told(error)})"
        raise InputError(f"{source.dataset}/{path}", what, "run again, or bring the file and use --local") from None


def _commit(source: Source) -> str | None:
    """The commit that the revision names now, so that every process reads the same; None for a local folder."""
    if Path(source.dataset or "").is_dir():
        return None
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(source.dataset or "", revision=source.revision, timeout=60).sha
    return commit


def _glob(pattern: str) -> list[str]:
    try:
        found: list[str] = _system().glob(pattern)
        return found
    except FileNotFoundError:  # of the folder that the pattern begins with
        return []


def _system() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


@functools.lru_cache(maxsize=8)
def _load(dataset: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    # Without trust_remote_code=False a terminal is asked whether a repository's script may run.
    options = {"split": split, "revision": revision, "streaming": True, "trust_remote_code": False}
    return datasets.load_dataset(dataset, config, **options)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _refuse(source: Source, told: str, error: Exception) -> NoReturn:
    import requests

    unreachable = (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout)
    what = "the hub does not answer" if isinstance(error, unreachable) else f"the hub has it not ({_told(error)})"
    remedy = f"check network and id, or put its files into DIR/{source.name} and use --local DIR"
    raise InputError(told, what, remedy) from None
