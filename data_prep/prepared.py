"""Prepared source files: made one by one in any order, found again where the dataset is put together."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.documents import RECIPE, Entry, Skipped, Unusable, content_digest, to_line
from data_prep.mixture import Source
from data_prep.output_folder import PREPARED
from data_prep.pieces import LeftOut, Piece, PieceJob, made_from, make_piece, read_piece
from data_prep.sources import Unit, read_unit, sums_of
from data_prep.tokenization import versions
from data_prep.workers import Workers
from olmoe_parrots.processes import held_folder
from olmoe_parrots.shards import TokenizerInfo, write_atomically

RECORD = "record.json"
Sums = Mapping[str, Sequence[Any]]
_READ_BY = ("kind", "dataset", "config", "split", "revision", "columns", "template", "id_column")


def folder_of(output: Path, unit: Unit) -> Path:
    """Where what was made of a source file lies."""
    return output / PREPARED / unit.source / f"{unit.index:05d}"


def key_of(unit: Unit, source: Source, tokenizer: TokenizerInfo, test_items_sha256: str | None) -> dict[str, Any]:
    """All that decides what is made of a source file, but for its content and where it lies."""
    described = {name: value for name, value in asdict(unit).items() if name not in ("root", "paths")}
    about: dict[str, Any] = {
        "recipe": RECIPE,
        "unit": described,
        "paths": [os.fsencode(path).decode("utf-8", "backslashreplace") for path in unit.paths],
        "read_by": {name: getattr(source, name) for name in _READ_BY},
        "tokenizer": asdict(tokenizer),
        "test_items_sha256": test_items_sha256,
        "versions": versions(),
    }
    if unit.kind == "python_docs":
        from data_prep.python_docs import describe_python_docs

        about["installed"] = describe_python_docs()
    if unit.kind == "stream" and os.path.isdir(unit.dataset or ""):
        found = sorted(path for path in Path(unit.dataset or "").rglob("*") if path.is_file())
        about["files"] = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


@dataclass(frozen=True)
class PreparedFile:
    """What was made of one source file: its pieces, what was left out after the last document of them, and the sums of
    the files that it was read from, as :func:`data_prep.sources.sums_of` has them."""

    folder: Path
    key: dict[str, Any]
    pieces: list[Piece]
    left_out: LeftOut
    sums: dict[str, list[Any]]

    @property
    def tokens(self) -> int:
        """All tokens, those of duplicates among them."""
        return sum(piece.tokens.tokens for piece in self.pieces)

    def is_whole(self) -> bool:
        """Whether its files have the content that they were written with; read by threads."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return all(threads.map(lambda piece: piece.is_whole(self.folder), self.pieces))

    def entries(self, skipped: Skipped) -> Iterator[Entry]:
        """Its documents in order, as `reader.raw_entries` would give them; what was left out goes into `skipped`."""
        for piece in self.pieces:
            events = iter([*piece.left_out, (piece.documents, {})])
            place, counts = next(events)
            for number, row in enumerate(piece.index(self.folder)):
                while place <= number:
                    skipped.update(counts)
                    place, counts = next(events, (piece.documents, {}))
                digest, size, file = row
                yield Entry(digest.tobytes(), int(size), piece.files[int(file)], piece=piece, place=number)
        skipped.update(self.left_out)


def load_prepared(folder: Path) -> PreparedFile | None:
    """What lies in a folder of `folder_of`; None where nothing finished does."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        pieces = [read_piece(piece) for piece in record["pieces"]]
        return PreparedFile(folder, record["key"], pieces, record["left_out"], record["sums"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class PreparedFiles:
    """The prepared files that the dataset in `output` can be put together from.

    Args:
        sums: of all input files, by source and name.
    """

    def __init__(
        self, output: Path, tokenizer: TokenizerInfo, test_items_sha256: str | None, sums: Mapping[str, Sums]
    ) -> None:
        self._output, self._tokenizer, self._test_items = output, tokenizer, test_items_sha256
        self._sums = sums

    def find(self, unit: Unit, source: Source) -> PreparedFile | None:
        """What was made of a source file, if it is whole and of the same input, settings and packages."""
        found = load_prepared(folder_of(self._output, unit))
        if found is None:
            return None
        known = self._sums.get(unit.source, {})
        same = found.key == key_of(unit, source, self._tokenizer, self._test_items)
        if same and all(known.get(name, [None])[-1] == sums[-1] for name, sums in found.sums.items()):
            if found.is_whole():
                return found
            why = "damaged"
        else:
            why = "of other input, settings or packages"
        print(f"{unit.source}: what was prepared of {unit.name} is {why}: the file is read again", file=sys.stderr)
        return None

    def remove(self, unit: Unit) -> None:
        """Remove what was made of a source file, once the dataset holds it."""
        shutil.rmtree(folder_of(self._output, unit), ignore_errors=True)


def known_sums(output: Path, units: Sequence[Unit]) -> dict[str, list[Any]]:
    """The sums of files that were taken when they were prepared; they hold as long as size and time do."""
    found: dict[str, list[Any]] = {}
    for unit in units:
        prepared = load_prepared(folder_of(output, unit))
        found |= prepared.sums if prepared is not None else {}
    return found


def prepare_file(
    unit: Unit,
    source: Source,
    output: Path,
    key: dict[str, Any],
    tokenizer: TokenizerInfo,
    contamination_index: Path | None,
    slice_bytes: int,
    workers: Workers,
) -> PreparedFile:
    """Make what `folder_of` tells of one source file; pieces that an interrupted run finished are kept.

    Raises InputError for a file that cannot be read, or that another process is at work on.
    """
    final = folder_of(output, unit)
    work = final.with_name(f".{final.name}")
    with held_folder(work, work):
        reader = _PieceReader(unit, source, output / PREPARED, work, key, tokenizer, contamination_index, slice_bytes)
        pieces = [piece for _, piece in workers.map(make_piece, ((None, job) for job in reader.jobs()))]
        record = {"key": key, "pieces": [asdict(p) for p in pieces], "left_out": reader.left_out, "sums": reader.sums}
        write_atomically(work / RECORD, json.dumps(record).encode())
        _remove_others(work, len(pieces))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
        _flush(final.parent)
    return PreparedFile(final, key, pieces, reader.left_out, reader.sums)


def _remove_others(folder: Path, pieces: int) -> None:
    """Remove what an interrupted run left, which is no piece of this one."""
    for path in folder.iterdir():
        number = path.name.split(".")[0]
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != RECORD and (not number.isdigit() or int(number) >= pieces):
            path.unlink()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _PieceReader:
    """Reads a source file as the pieces to be made of it; `left_out` and `sums` are known after the last."""

    def __init__(
        self,
        unit: Unit,
        source: Source,
        root: Path,
        folder: Path,
        key: dict[str, Any],
        tokenizer: TokenizerInfo,
        contamination_index: Path | None,
        slice_bytes: int,
    ) -> None:
        self._unit, self._source, self._root, self._folder = unit, source, root, folder
        self._key = json.dumps(key, sort_keys=True)
        self._tokenizer, self._contamination_index = tokenizer, contamination_index
        self._slice_bytes = slice_bytes
        self._number = 0
        self.left_out: LeftOut = {}
        self.sums = sums_of([unit])

    def jobs(self) -> Iterator[PieceJob]:
        """The pieces in order."""
        skipped = Skipped()
        entries: list[Entry] = []
        left_out: list[tuple[int, LeftOut]] = []
        size = 0
        for entry in raw_entries(self._unit, self._source, skipped):
            if entries and size + entry.size > self._slice_bytes:
                yield self._job(entries, left_out)
                entries, left_out, size = [], [], 0
            if taken := skipped.take():
                left_out.append((len(entries), taken))
            entries.append(entry)
            size += entry.size
        self.left_out = skipped.take()
        if entries:
            yield self._job(entries, left_out)

    def _job(self, entries: list[Entry], left_out: list[tuple[int, LeftOut]]) -> PieceJob:
        number, self._number = self._number, self._number + 1
        files = list(dict.fromkeys(entry.file for entry in entries))
        places = {name: place for place, name in enumerate(files)}
        lines = self._folder / f"lines-{number:05d}.jsonl"
        lines.write_bytes(b"".join(entry.line for entry in entries))
        return PieceJob(
            self._root,
            self._folder,
            number,
            made_from(self._key, [entry.line for entry in entries]),
            lines,
            [entry.digest for entry in entries],
            [entry.size for entry in entries],
            [places[entry.file] for entry in entries],
            files,
            left_out,
            self._tokenizer,
            self._contamination_index,
        )


def raw_entries(unit: Unit, source: Source, skipped: Skipped) -> Iterator[Entry]:
    """The documents of a source file in order, read from it; what is none is counted in `skipped`."""
    for document in read_unit(unit, source, skipped):
        file = str(document.metadata.get("path", unit.name))
        try:
            line = to_line(document)
        except Unusable as reason:
            skipped.add(file, str(reason))
            continue
        yield Entry(content_digest(document.text), len(line), file, line)
