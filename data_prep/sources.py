"""A mixture's sources as units, one input file or hub shard each, and the documents of a unit.

Where a unit comes from:

- kind dataset, `--local DIR`: the files under DIR/SOURCE (see `data_prep.units.local_files`), in the hub's own schema;
- kind dataset, no `--local`: the hub, streamed by Hugging Face `datasets`, a unit for each file it streams; where the
  source names `files`, those files of the repository, read without the hub's loader (and never with its scripts);
- kind folder: a .jsonl file, or a group of .txt and .md files up to 64 MB;
- kind python_docs: a group of the text that this Python installation carries.

The order of units is a seeded permutation; documents keep their order within a unit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep import hub
from data_prep.documents import Document, Skipped
from data_prep.mixture import Source
from data_prep.rows import DATA_SUFFIXES, Row, read_rows
from data_prep.templates import TEMPLATES, TemplateError
from data_prep.units import Unit, describe_source, folder_units, listing, local_units, printable
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
        units = local_units(source, Path(local), output)
    else:
        units = _hub_units(source)
    return sorted(units, key=lambda unit: _key(seed, unit))


def _key(seed: int, unit: Unit) -> tuple[bytes, int]:
    text = f"{seed}\0{unit.source}\0{unit.index}\0{unit.name}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest(), unit.index


def _hub_units(source: Source) -> list[Unit]:
    folder = Path(source.dataset or "")
    if source.files and folder.is_dir():
        paths = listing(folder, source.files, DATA_SUFFIXES)
        if not paths:
            raise InputError(folder, f"it holds no file {', '.join(source.files)}", "bring them or mend the patterns")
        return [Unit(source.name, i, printable(p), "rows", str(folder), (p,)) for i, p in enumerate(paths)]
    units: list[Unit] = []
    if source.files:
        revision, paths = hub.list_files(source, describe_source(source))
        for path in paths:
            units.append(Unit(source.name, len(units), path, "hub_file", "", (path,), None, revision))
        return units
    for config in source.configs:
        revision, shards = hub.count_shards(source, config, describe_source(source))
        label = f"{source.dataset}{f'/{config}' if config else ''}"
        for shard in range(shards):
            name = f"{label} shard {shard + 1}/{shards}"
            units.append(Unit(source.name, len(units), name, "stream", "", (), config, revision, shard, shards))
    return units


def describe_units(
    units: Sequence[Unit], source: Source, known_sums: Path | None = None, new_sums: Path | None = None
) -> dict[str, Any]:
    """What identifies a source's input: for files their number, bytes and one SHA-256 over names and contents; for the
    hub id, config, split, commit and number of shards; for python_docs what is installed.

    Args:
        known_sums: a file that an earlier call wrote as `new_sums`; a file of the same size and time that it lists is
            not read again.
    """
    kinds = {unit.kind for unit in units}
    if kinds == {"python_docs"}:
        from data_prep.python_docs import describe_python_docs

        return {"kind": "python_docs", "group": source.path, **describe_python_docs()}
    if kinds & {"stream", "hub_file"}:
        revisions = sorted({str(unit.revision) for unit in units})
        told = {"dataset": source.dataset, "config": list(filter(None, source.configs)), "split": source.split}
        return {"kind": "hub", **told, "revision": revisions, "units": len(units), "sha256": _names_digest(units)}
    listed = sorted(units, key=lambda unit: unit.index)
    sums = _sums([(Path(unit.root), path) for unit in listed for path in unit.paths], known_sums)
    if new_sums is not None:
        write_atomically(new_sums, json.dumps(sums).encode())
    content = json.dumps(sorted((name, entry[2]) for name, entry in sums.items()))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"kind": "files", "files": len(sums), "bytes": sum(s[0] for s in sums.values()), "sha256": digest}


def _names_digest(units: Sequence[Unit]) -> str:
    return hashlib.sha256(json.dumps(sorted(unit.name for unit in units)).encode()).hexdigest()


def _sums(files: list[tuple[Path, str]], known_sums: Path | None) -> dict[str, list[Any]]:
    """{name: [bytes, modification time, sha256]}"""
    try:
        known = json.loads(known_sums.read_text(encoding="utf-8")) if known_sums else {}
    except (OSError, ValueError):
        known = {}
    sums: dict[str, list[Any]] = {}
    for root, path in files:
        status, name = (root / path).stat(), printable(path)
        same = known.get(name, [])[:2] == [status.st_size, status.st_mtime_ns]
        sums[name] = [status.st_size, status.st_mtime_ns, known[name][2] if same else sha256_of(root / path)]
    return sums


def read_unit(unit: Unit, source: Source, skipped: Skipped) -> Iterator[Document]:
    """The documents of a unit in order; what is none is counted in `skipped` by file and reason.

    An id is the row's own where the source names an `id_column` (a folder's rows: `id`), else SOURCE/FILE:ROW. Memory
    holds a few rows, or one row group of a parquet file. Raises InputError naming a file that cannot be read to its
    end or has not the columns that the template needs.
    """
    if unit.kind == "python_docs":
        from data_prep.python_docs import read_python_docs

        documents: Iterable[Document] = (replace(d, source=source.name) for d in read_python_docs(unit.name))
    elif unit.kind == "texts":
        documents = _text_documents(unit, skipped)
    else:
        documents = _row_documents(unit, source, skipped)
    for document in documents:
        reason = _fault(document)
        if reason:
            skipped.add(str(document.metadata.get("path", unit.name)), reason)
        else:
            yield document


def _fault(document: Document) -> str | None:
    if not document.text.strip():
        return "empty text"
    try:
        document.text.encode()
        document.id.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which UTF-8 cannot hold
        return "invalid Unicode"
    return None


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
    columns = source.columns if not source.id_column else (*source.columns, source.id_column) if source.columns else ()
    if unit.kind == "hub_file":
        with hub.open_file(source, unit.revision, unit.paths[0]) as stream:
            yield from read_rows(stream, unit.name, columns, needed, count)
        return
    path = os.path.join(unit.root, unit.paths[0])
    try:
        stream = cast(BinaryIO, open(path, "rb"))  # noqa: SIM115
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error})", "replace the file or take it away") from None
    with stream:
        yield from read_rows(stream, path, columns, needed, count)


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
        if own is None or own == "":
            raise TemplateError(f"no {source.id_column}")
        identifier = f"{unit.source}/{own}"
    extra = [c for c in source.columns if c not in template.columns and c != source.id_column]
    kept = {c: row[c] for c in extra if isinstance(row.get(c), (str, int, float, bool))}
    return Document(identifier, text, unit.source, {"path": unit.name, "line": number, **kept, **metadata})
