"""Units of input, and the listing of folders of files as units."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.mixture import Source
from data_prep.rows import DATA_SUFFIXES
from olmoe_parrots import remote
from olmoe_parrots.errors import InputError

TEXT_SUFFIXES = (".txt", ".md")
FOLDER_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".jsonl.gz")
_GROUP_BYTES = 64_000_000
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing"},
}


@dataclass(frozen=True)
class Unit:
    """One piece of a source's input, small enough to be read by one process and large enough to be worth it.

    Args:
        source: the source's name.
        index: place in the unpermuted listing.
        name: for messages and ids: the relative file name, or the hub's name of the shard.
        kind: how it is read.
        root: the folder or `s3://` address that `paths` are relative to; "" for the hub.
        paths: the files it consists of; a single one but for kind "texts".
        dataset, config, split, revision: of the hub; the revision is the commit that was found.
        shard, shards: of kind "stream": the shard's number and how many there are.
    """

    source: str
    index: int
    name: str
    kind: Literal["rows", "texts", "hub_file", "stream", "python_docs"]
    root: str = ""
    paths: tuple[str, ...] = ()
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    shard: int = 0
    shards: int = 1


def _refuse_inside(folder: Path, output: Path | None) -> None:
    if output is not None and output.resolve().is_relative_to(folder.resolve()):
        what = "lies inside the source folder, so its files would be read as documents"
        raise InputError(output, what, "choose an --output outside it")


def listing(folder: Path, patterns: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    """Files below `folder`, relative, sorted, without hidden ones."""
    found = {name for pattern in patterns for name in glob.iglob(pattern, root_dir=folder, recursive=True)}
    names = (name for name in found if name.lower().endswith(suffixes) and (folder / name).is_file())
    return sorted(Path(name).as_posix() for name in names)


def document_files(folder: Path, patterns: Iterable[str] = ("**/*",)) -> list[str]:
    """The .txt, .md, .jsonl and .jsonl.gz files of `folder` that a pattern names, relative and sorted.

    Hidden files and folders are not looked at. Raises InputError if the folder does not exist.
    """
    if not folder.is_dir():
        remedy = f"name a folder of {', '.join(FOLDER_SUFFIXES)} files, or a mixture"
        raise InputError(folder, "there is no such folder", remedy)
    return listing(folder, patterns, FOLDER_SUFFIXES)


def folder_units(source: Source, output: Path | None) -> list[Unit]:
    folder = Path(source.path or "")
    paths = document_files(folder, source.files or ("**/*",))
    _refuse_inside(folder, output)
    if not paths:
        raise InputError(folder, "it holds no documents", f"put {', '.join(FOLDER_SUFFIXES)} files into it")
    units: list[Unit] = []
    group: list[str] = []
    size = 0
    for path in paths:
        if not path.lower().endswith(TEXT_SUFFIXES):
            units.append(Unit(source.name, len(units), printable(path), "rows", str(folder), (path,)))
            continue
        size += (folder / path).stat().st_size
        if group and size > _GROUP_BYTES:
            units.append(_texts(source, folder, group, len(units)))
            group, size = [], (folder / path).stat().st_size
        group.append(path)
    return [*units, _texts(source, folder, group, len(units))] if group else units


def _texts(source: Source, folder: Path, paths: list[str], index: int) -> Unit:
    name = printable(paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}")
    return Unit(source.name, index, name, "texts", str(folder), tuple(paths))


def printable(name: str) -> str:
    # A file name need not be valid Unicode; an id must be.
    return name.encode("utf-8", "backslashreplace").decode()


def local_units(source: Source, local: str, output: Path | None) -> list[Unit]:
    """The files of a source of kind dataset below `local`/SOURCE. Raises InputError where there are none."""
    folder = remote.join(local, source.name)
    remedy = f"put the files of {describe_source(source)} into it"
    if remote.is_remote(folder):
        names = [address.removeprefix(f"{folder}/") for address in remote.list_files(folder)]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    elif os.path.isdir(folder):
        _refuse_inside(Path(folder), output)
        names = listing(Path(folder), ("**/*",), DATA_SUFFIXES)
    else:
        raise InputError(folder, "there is no such folder", remedy)
    paths = local_files(names, source)
    if not paths:
        what = f"it holds no {', '.join(DATA_SUFFIXES)} file of the split {source.split}"
        raise InputError(folder, what, remedy)
    return [Unit(source.name, i, printable(p), "rows", folder, (p,)) for i, p in enumerate(paths)]


def local_files(names: Iterable[str], source: Source) -> list[str]:
    """Those of a folder's files that are the source's; the folder is laid out as on the hub or holds nothing else.

    Where files match the source's `files`, only those are read; else, where there is a folder for each config of the
    source, only what is in these. A file whose path names another split (as in test-00000-of-00001.parquet or test/…)
    and not the source's is not read.
    """
    found = [name for name in names if name.lower().endswith(DATA_SUFFIXES)]
    listed = [name for name in found if any(_matches(name, pattern) for pattern in source.files)]
    if listed:
        return sorted(listed)
    tops = {name.split("/")[0] for name in found if "/" in name}
    configs = {config for config in source.configs if config}
    if configs and configs <= tops:
        found = [name for name in found if name.split("/")[0] in configs]
    return sorted(name for name in found if _is_of_split(name, source.split))


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _is_of_split(path: str, split: str) -> bool:
    words = set(re.split(r"[^a-z0-9]+", path.lower()))
    own = _SPLITS.get(split, {split.lower()})
    others = set().union(*(names for name, names in _SPLITS.items() if name != split)) - own
    return bool(words & own) or not words & others


def describe_source(source: Source) -> str:
    config = ", ".join(config for config in source.configs if config)
    files = f", files {', '.join(source.files)}" if source.files else ""
    revision = f", revision {source.revision}" if source.revision else ""
    return f"{source.dataset}{f', config {config}' if config else ''}, split {source.split}{revision}{files}"
