"""A mixture's sources as units, one input file or hub shard each, and the documents of a unit.

Where a unit comes from:

- kind dataset, `--local DIR`: the files under DIR/SOURCE, a folder or an `s3://` address, in the hub's own schema (see
  `data_prep.units.local_files`);
- kind dataset, no `--local`: the hub, streamed by Hugging Face `datasets`, a unit for each file it streams; where the
  source names `files`, those files of the repository, read without the hub's loader (and never with its scripts);
- kind folder: a .jsonl file, or a group of .txt and .md files up to 64 MB;
- kind python_docs: a group of the text that this Python installation carries.

The order of units is a seeded permutation; documents keep their order within a unit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep import hub
from data_prep.documents import Document, Skipped
from data_prep.mixture import Source
from data_prep.rows import DATA_SUFFIXES, Row, read_rows
from data_prep.templates import TEMPLATES, TemplateError
from data_prep.units import Unit, describe_source, folder_units, listing, local_units, printable
from olmoe_parrots import remote
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import sha256_of, write_atomically


def find_units(source: Source, local: str | None, seed: int, output: Path | None) -> list[Unit]:
    """The units of a source in reading order: a permutation of the listing, by seed, source and name alone.

    Args:
        local: a folder with a folder SOURCE for each source of kind dataset; None to stream from the hub.
        output: where the dataset is being made; a source that contains it is refused.

    Raises InputError for missing files or folders, and for a hub that cannot be reached, naming what to bring where.
    """
    if source.kind == "python_docs":
        units = [Unit(source.name, 0, source.path or "", "python_docs")]
    elif source.kind == "folder":
        units = folder_units(source, output)
    elif local is not None:
        units = local_units(source, local, output)
    else:
        units = _hub_units(source)
    return sorted(units, key=lambda unit: _key(seed, unit))


def _key(seed: int, unit: Unit) -> tuple[bytes, int]:
    text = f"{seed}\0{unit.source}\0{unit.index}\0{unit.name}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest(), unit.index


def _hub_units(source: Source) -> list[Unit]:
    told, dataset = describe_source(source), source.dataset or ""
    if source.files and Path(dataset).is_dir():
        paths = listing(Path(dataset), source.files, DATA_SUFFIXES)
        if not paths:
            raise InputError(dataset, f"it holds no file {', '.join(source.files)}", "bring them or mend the patterns")
        return [Unit(source.name, i, printable(p), "rows", dataset, (p,)) for i, p in enumerate(paths)]
    units: list[Unit] = []
    if source.files:
        revision, paths = hub.list_files(source, told)
        for i, path in enumerate(paths):
            units.append(Unit(source.name, i, path, "hub_file", "", (path,), dataset, revision=revision))
        return units
    for config in source.configs:
        revision, shards = hub.count_shards(source, config, told)
        label = f"{dataset}{f'/{config}' if config else ''}"
        for shard in range(shards):
            name = f"{label} shard {shard + 1}/{shards}"
            place = (dataset, config, source.split, revision, shard, shards)
            units.append(Unit(source.name, len(units), name, "stream", "", (), *place))
    return units


def describe_units(units: Sequence[Unit], sums: Path | None = None) -> dict[str, Any]:
    """What identifies a source's input: for files their number, bytes and one SHA-256 over names and contents; for the
    hub id, configs, split, commit and the names of the units; for python_docs what is installed.

    Args:
        sums: a JSON file where the sums of files are kept, so that a file of the same size and time is not read again.
    """
    kind = units[0].kind
    if kind == "python_docs":
        from data_prep.python_docs import describe_python_docs

        return {"kind": "python_docs", "group": units[0].name, **describe_python_docs()}
    dataset = units[0].dataset or ""
    if kind == "stream" and os.path.isdir(dataset):
        paths = tuple(listing(Path(dataset), ("**/*",), DATA_SUFFIXES))
        units = [Unit(units[0].source, 0, "", "rows", dataset, paths)]
    elif kind in ("stream", "hub_file"):
        names = json.dumps(sorted(unit.name for unit in units))
        return {
            "kind": "hub",
            "dataset": dataset,
            "configs": sorted({unit.config for unit in units if unit.config}),
            "split": units[0].split,
            "revision": units[0].revision,
            "units": len(units),
            "sha256": hashlib.sha256(names.encode()).hexdigest(),
        }
    found = _sums(units, sums)
    digest = hashlib.sha256(json.dumps(sorted((name, entry[2]) for name, entry in found.items())).encode()).hexdigest()
    return {"kind": "files", "files": len(found), "bytes": sum(s[0] for s in found.values()), "sha256": digest}


def sums_of(units: Sequence[Unit], known: Mapping[str, list[Any]] | None = None) -> dict[str, list[Any]]:
    """{file: [bytes, modification time, sha256]} of these units' files on disk and S3; those of the hub have none.

    Args:
        known: sums that hold for files of the same size and time.
    """
    files = [(unit.root, name) for unit in units if unit.kind in ("rows", "texts") for name in unit.paths]
    return {printable(name): _sum(root, name, (known or {}).get(printable(name))) for root, name in files}


def load_sums(path: Path | None) -> dict[str, dict[str, list[Any]]]:
    """The sums of files that an earlier run kept, by source; none where they cannot be read."""
    try:
        known: dict[str, dict[str, list[Any]]] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        known = {}
    return known


def _sums(units: Sequence[Unit], path: Path | None) -> dict[str, list[Any]]:
    """As `sums_of`; those of other sources stay in the file."""
    known = load_sums(path)
    found = sums_of(units, known.get(units[0].source))
    if path is not None:
        write_atomically(path, json.dumps({**known, units[0].source: found}, sort_keys=True).encode())
    return found


def _sum(root: str, name: str, known: list[Any] | None) -> list[Any]:
    """[bytes, modification time, sha256]. On S3 there is no time, and a file without a stored sum is read."""
    if remote.is_remote(root):
        address = remote.join(root, name)
        there = remote.stat(address)
        if there.sha256 is not None:
            return [there.bytes, None, there.sha256]
        digest = hashlib.sha256()
        for block in remote.read_blocks(address):
            digest.update(block)
        return [there.bytes, None, digest.hexdigest()]
    status = os.stat(os.path.join(root, name))
    if known is not None and known[:2] == [status.st_size, status.st_mtime_ns]:
        return known
    return [status.st_size, status.st_mtime_ns, sha256_of(Path(root, name))]


def read_unit(unit: Unit, source: Source, skipped: Skipped) -> Iterator[Document]:
    """The documents of a unit in order; rows that are none are counted in `skipped` by file and reason.

    An id is the row's own where the source names an `id_column` (a folder's rows: `id`), else SOURCE/FILE:ROW. Memory
    holds a few rows, or one row group of a parquet file. Texts may be empty or hold half of a surrogate pair, which
    `documents.to_line` refuses. Raises InputError naming a file that cannot be read to its end or lacks the columns
    that the template needs.
    """
    if unit.kind == "python_docs":
        from data_prep.python_docs import read_python_docs

        return (replace(document, source=source.name) for document in read_python_docs(unit.name))
    return _text_documents(unit, skipped) if unit.kind == "texts" else _row_documents(unit, source, skipped)


def _text_documents(unit: Unit, skipped: Skipped) -> Iterator[Document]:
    for path in unit.paths:
        name = printable(path)
        try:
            text = Path(unit.root, path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            skipped.add(name, "invalid UTF-8")
            continue
        except OSError as error:
            remedy = "replace the file or take it away"
            raise InputError(Path(unit.root, path), f"it cannot be read ({error})", remedy) from None
        yield Document(f"{unit.source}/{name}", text, unit.source, {"path": name})


def _row_documents(unit: Unit, source: Source, skipped: Skipped) -> Iterator[Document]:
    make = _folder_document if source.kind == "folder" else _dataset_document
    for number, row in _unit_rows(unit, source, skipped):
        try:
            document = make(unit, source, number, row)
        except TemplateError as error:
            skipped.add(unit.name, str(error))
            continue
        yield document


def _unit_rows(unit: Unit, source: Source, skipped: Skipped) -> Iterator[tuple[int, Row]]:
    def count(reason: str) -> None:
        skipped.add(unit.name, reason)

    if unit.kind == "stream":
        yield from hub.stream_rows(source, unit.config, unit.revision, unit.shard, unit.shards, unit.name)
        return
    needed = TEMPLATES[source.template].columns
    extra = (source.id_column,) if source.id_column and source.columns else ()
    columns = tuple(dict.fromkeys((*source.columns, *extra)))
    if unit.kind == "hub_file":
        with hub.open_file(source, unit.revision, unit.paths[0]) as stream:
            yield from read_rows(stream, unit.name, columns, needed, count)
        return
    with contextlib.ExitStack() as stack:
        path = os.path.join(unit.root, unit.paths[0])
        if remote.is_remote(unit.root):
            path = _fetched(remote.join(unit.root, unit.paths[0]), stack)
        try:
            stream = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise InputError(path, f"it cannot be read ({error})", "replace the file or take it away") from None
        told = remote.join(unit.root, unit.paths[0])
        yield from read_rows(cast(BinaryIO, stream), told, columns, needed, count)


def _fetched(address: str, stack: contextlib.ExitStack) -> str:
    """A copy of a file on S3, gone when the stack closes: parquet is read from its end."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data_prep-")))
    try:
        remote.download(address, folder / "file")
    except FileNotFoundError:
        raise InputError(address, "it is gone", "bring it back, or remove the output folder and run again") from None
    return str(folder / "file")


def _folder_document(unit: Unit, source: Source, number: int, row: Row) -> Document:
    text = row.get("text")
    if not isinstance(text, str):
        raise TemplateError("no text")
    own = row.get("id")
    identifier = f"{unit.source}/{unit.name}:{number}" if own is None else str(own)
    metadata: dict[str, Any] = {"path": unit.name, "line": number}
    if isinstance(row.get("source"), str):
        metadata["source"] = row["source"]
    return Document(identifier, text, unit.source, metadata)


def _dataset_document(unit: Unit, source: Source, number: int, row: Row) -> Document:
    template = TEMPLATES[source.template]
    text, metadata = template(row)
    identifier = f"{unit.source}/{unit.name}:{number}"
    if source.id_column is not None:
        own = row.get(source.id_column)
        if own is not None and not isinstance(own, str | int):
            raise TemplateError(f"{source.id_column} is neither text nor a whole number")
        if own is None or own == "":
            raise TemplateError(f"no {source.id_column}")
        identifier = f"{unit.source}/{own}"
    extra = [c for c in source.columns if c not in template.columns and c != source.id_column]
    kept = {c: row[c] for c in extra if _is_plain(row.get(c))}
    return Document(identifier, text, unit.source, {"path": unit.name, "line": number, **kept, **metadata})


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
