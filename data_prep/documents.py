"""Documents: one text each, as a line of JSON in dolma's format (id, text, source, added, metadata)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.pieces import Piece

FOLDER = "documents"
# dolma's format asks for the time a document was added; the time of the run would change the bytes.
ADDED = "1970-01-01T00:00:00.000Z"
# To be raised when a change of these modules makes other bytes of the same input and settings.
RECIPE = 2


@dataclass(frozen=True)
class Document:
    """One document of the corpus; `id` is unique within its source."""

    id: str
    text: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A document on its way into a part: the digest of its text, the bytes of its line, the file it stands in, and
    either the line itself or its place in a piece of a prepared file."""

    digest: bytes
    size: int
    file: str
    line: bytes = b""
    piece: Piece | None = None
    place: int = 0


class Unusable(Exception):
    """A document that cannot be one; the message is the reason it is counted under."""


def to_line(document: Document) -> bytes:
    """The document as a line of JSON. Raises Unusable for an empty text and for text that UTF-8 cannot hold."""
    if not document.text.strip():
        raise Unusable("empty text")
    row = {"id": document.id, "text": document.text, "source": document.source}
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise Unusable("invalid Unicode") from None
    return json.dumps({**row, "added": ADDED, "metadata": document.metadata}).encode() + b"\n"


def content_digest(text: str) -> bytes:
    """16 bytes that tell texts apart, white space at both ends left out as in tokenization."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def place_of(document_id: str, source: str, seed: int) -> int:
    """A document's place in the order that hold-out goes by, uniform in [0, 2**64)."""
    digest = hashlib.sha256(f"{seed}\0{source}\0{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


class Skipped:
    """Counts what was left out, by file and reason."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.update(counts or {})

    def add(self, file: str, reason: str) -> None:
        """Count one document or row of `file` left out for `reason`."""
        self.counts[file][reason] += 1

    def update(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add counts of the form that `as_dict` gives."""
        for file, reasons in counts.items():
            self.counts[file].update(reasons)

    def take(self) -> dict[str, dict[str, int]]:
        """What `as_dict` gives, and start again from nothing."""
        taken = self.as_dict()
        self.counts.clear()
        return taken

    def as_dict(self) -> dict[str, dict[str, int]]:
        """{file: {reason: count}}, in sorted order."""
        return {file: dict(sorted(reasons.items())) for file, reasons in sorted(self.counts.items())}

    def lines(self) -> list[str]:
        """One line per file: its name and how many were left out for which reason."""
        told = {f: ", ".join(f"{n} x {reason}" for reason, n in r.items()) for f, r in self.as_dict().items()}
        return [f"{file}: left out {reasons}" for file, reasons in told.items()]
