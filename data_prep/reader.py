"""The one reader of a source: units in their order, documents without exact duplicates, cut into parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.documents import FOLDER, Document, Skipped, Unusable, content_digest, to_line
from data_prep.duplicates import SeenTexts
from data_prep.mixture import Source
from data_prep.parts import digest_of, documents_are_whole, load_part
from data_prep.sources import Unit, read_unit
from olmoe_parrots.shards import write_atomically

LeftOut = dict[str, dict[str, int]]


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
    """

    unit: str
    number: int | None
    lines: Path | None = None
    lines_sha256: str = ""
    digests: list[bytes] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)
    long_documents: int = 0
    ends: bool = False


class SourceReader:
    """Reads a source in slices; see `slices`."""

    def __init__(
        self, source: Source, units: Sequence[Unit], seen: SeenTexts, output: Path, scratch: Path, slice_bytes: int
    ) -> None:
        self._source, self._units, self._seen = source, units, seen
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
        lines: list[bytes] = []
        digests: list[bytes] = []
        size = long = 0

        def finish(ends: bool) -> Slice:
            nonlocal lines, digests, size, long
            number = self._next if lines else None
            path = self._scratch / f"{self._source.name}-{self._next:05d}.jsonl" if lines else None
            if path is not None:
                path.write_bytes(b"".join(lines))
                self._next += 1
            made = Slice(name, number, path, digest_of(lines), digests, skipped.take(), long, ends)
            lines, digests, size, long = [], [], 0, 0
            return made

        for document in read_unit(unit, self._source, skipped):
            found = self._line(document, unit, skipped)
            if found is None:
                continue
            line, digest = found
            if lines and size + len(line) > self._slice_bytes:
                yield finish(ends=False)
            lines.append(line)
            digests.append(digest)
            size += len(line)
            long += len(line) > self._slice_bytes
        yield finish(ends=True)

    def _line(self, document: Document, unit: Unit, skipped: Skipped) -> tuple[bytes, bytes] | None:
        """A document's line and the digest of its text; None, and counted, if it is left out."""
        file = str(document.metadata.get("path", unit.name))
        try:
            line = to_line(document)
        except Unusable as reason:
            skipped.add(file, str(reason))
            return None
        digest = content_digest(document.text)
        if not self._seen.add(digest, unit_name(unit)):
            skipped.add(file, "duplicate")
            return None
        return line, digest


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
