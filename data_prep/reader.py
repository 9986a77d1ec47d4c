"""The one reader of a source: units in their order, documents without exact duplicates, cut into parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.documents import FOLDER, Entry, Skipped
from data_prep.duplicates import SeenTexts
from data_prep.mixture import Source
from data_prep.parts import Picked, digest_of, documents_are_whole, load_part
from data_prep.pieces import LeftOut, Piece
from data_prep.prepared import PreparedFile, PreparedFiles, raw_entries
from data_prep.sources import Unit
from olmoe_parrots.shards import write_atomically


@dataclass(frozen=True)
class Slice:
    """A run of consecutive documents of one unit, as read.

    Args:
        number: of the part it becomes; None for the end of a unit after its last document.
        lines: the file of its documents, uncompressed; None where an earlier run finished the part.
        digests: of its texts, so that they can be forgotten if it is read in vain.
        left_out: what was left out since the slice before.
        long_documents: documents that alone are longer than a shard is meant to be.
        ends: whether it is the last of its unit.
        picked: the documents, where they are taken from a prepared file; `lines_sha256` is then known to the worker.
    """

    unit: str
    number: int | None
    lines: Path | None = None
    lines_sha256: str = ""
    digests: list[bytes] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)
    long_documents: int = 0
    ends: bool = False
    picked: Picked | None = None


class SourceReader:
    """Reads a source in slices; see `slices`."""

    def __init__(
        self,
        source: Source,
        units: Sequence[Unit],
        seen: SeenTexts,
        prepared: PreparedFiles,
        output: Path,
        scratch: Path,
        slice_bytes: int,
    ) -> None:
        self._source, self._units, self._seen, self._prepared = source, units, seen, prepared
        self._output, self._scratch, self._slice_bytes = output, scratch, slice_bytes
        self._next = 0

    def slices(self) -> Iterator[Slice]:
        """The slices of all units in order, and the end of each unit.

        Units that an earlier run finished are told from their records and not read again.
        """
        for unit in self._units:
            finished = load_unit(self._output, unit_name(unit), self._next)
            if finished is None:
                self._seen.forget_unit(unit_name(unit))
                yield from self._read(unit)
                continue
            for slice_ in finished:
                self._next += slice_.number is not None
                yield slice_

    def _read(self, unit: Unit) -> Iterator[Slice]:
        name, skipped = unit_name(unit), Skipped()
        prepared = self._prepared.find(unit, self._source)
        entries: list[Entry] = []
        size = long = 0

        def finish(ends: bool) -> Slice:
            nonlocal entries, size, long
            made = self._slice(name, entries, prepared, skipped.take(), long, ends)
            entries, size, long = [], 0, 0
            return made

        found = raw_entries(unit, self._source, skipped) if prepared is None else prepared.entries(skipped)
        for entry in found:
            if not self._seen.add(entry.digest, name):
                skipped.add(entry.file, "duplicate")
                continue
            if entries and size + entry.size > self._slice_bytes:
                yield finish(ends=False)
            entries.append(entry)
            size += entry.size
            long += entry.size > self._slice_bytes
        yield finish(ends=True)

    def _slice(
        self,
        name: str,
        entries: list[Entry],
        prepared: PreparedFile | None,
        left_out: LeftOut,
        long_documents: int,
        ends: bool,
    ) -> Slice:
        if not entries:
            return Slice(name, None, None, digest_of([]), [], left_out, long_documents, ends)
        number, self._next = self._next, self._next + 1
        digests = [entry.digest for entry in entries]
        if prepared is not None:
            picked = _picked(prepared.folder, entries)
            return Slice(name, number, None, "", digests, left_out, long_documents, ends, picked)
        path = self._scratch / f"{self._source.name}-{number:05d}.jsonl"
        lines = [entry.line for entry in entries]
        path.write_bytes(b"".join(lines))
        return Slice(name, number, path, digest_of(lines), digests, left_out, long_documents, ends)


def _picked(folder: Path, entries: Sequence[Entry]) -> Picked:
    runs: list[tuple[Piece, int, int]] = []
    for entry in entries:
        assert entry.piece is not None
        if runs and runs[-1][0] is entry.piece and runs[-1][2] == entry.place:
            runs[-1] = entry.piece, runs[-1][1], entry.place + 1
        else:
            runs.append((entry.piece, entry.place, entry.place + 1))
    return Picked(folder, tuple(runs))


def unit_name(unit: Unit) -> str:
    """What the unit is called among the texts seen."""
    return f"{unit.source}/{unit.index}"


def _unit_path(output: Path, name: str) -> Path:
    source, index = name.split("/")
    return output / FOLDER / source / f"unit-{int(index):05d}.json"


def save_unit(output: Path, slices: Sequence[Slice]) -> None:
    """Record that all parts of a unit are finished; `slices` are all of its slices."""
    rows = [
        {
            "number": slice_.number,
            "lines_sha256": slice_.lines_sha256,
            "left_out": slice_.left_out,
            "long_documents": slice_.long_documents,
        }
        for slice_ in slices
    ]
    write_atomically(_unit_path(output, slices[0].unit), json.dumps(rows, indent=1).encode())


def load_unit(output: Path, unit: str, first: int) -> list[Slice] | None:
    """The slices of a unit that an earlier run finished, if their numbers count up from `first` and the documents of
    their parts are all there; else None."""
    try:
        rows: list[dict[str, Any]] = json.loads(_unit_path(output, unit).read_text(encoding="utf-8"))
        slices = [Slice(unit, **row, ends=row is rows[-1]) for row in rows]
    except (OSError, ValueError, TypeError):
        return None
    numbers = [slice_.number for slice_ in slices if slice_.number is not None]
    if not slices or numbers != list(range(first, first + len(numbers))):
        return None
    source = unit.split("/")[0]
    for number in numbers:
        part = load_part(output, source, number)
        if part is None or not documents_are_whole(output, part):
            return None
    return slices
