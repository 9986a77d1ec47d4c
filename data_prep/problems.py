"""The training problems of the generalization gap: drawn from the documents that were written, and listed.

Which problems are drawn depends on the seed and the problems alone, never on the order of the documents.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from olmoe_parrots.errors import InputError

if TYPE_CHECKING:
    from data_prep.mixture import Draw


class _Smallest:
    """Of all problems offered, the `count` distinct ones of the smallest hashes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: dict[int, dict[str, Any]] = {}
        self._largest: list[int] = []  # a heap of the negated keys

    def offer(self, key: int, row: dict[str, Any]) -> None:
        known = self.rows.get(key)
        if known is not None:
            if row["document"] < known["document"]:
                self.rows[key] = row
            return
        if len(self.rows) < self.count:
            heapq.heappush(self._largest, -key)
        elif self.count and key < -self._largest[0]:
            del self.rows[-heapq.heapreplace(self._largest, -key)]
        else:
            return
        self.rows[key] = row


def draw_problems(documents: Iterable[Mapping[str, Any]], draw: Draw, seed: int) -> list[dict[str, Any]]:
    """Distinct problems of each group of `draw`, as many as it asks for or all there are; see `shortfalls`.

    A group's problems are those of the smallest hashes of (seed, question), in the hashes' order. Rows hold group,
    question, expected_answer and document: the smallest id of a document that solves the problem. Memory holds the
    drawn problems alone.

    Args:
        documents: JSON rows of documents whose metadata holds `draw.column`, question and expected_answer.
        draw: the column that tells the groups, and how many problems of each.
        seed: of the draw.
    """
    groups = {group: _Smallest(count) for group, count in draw.counts.items()}
    for document in documents:
        metadata = document.get("metadata") or {}
        missing = [name for name in (draw.column, "question", "expected_answer") if name not in metadata]
        if missing:
            what = f"document {document['id']} has no {', '.join(missing)} in its metadata, so no problem can be drawn"
            raise InputError(f"source {document['source']}", what, "draw from a source whose template keeps them")
        group, question = metadata[draw.column], metadata["question"]
        if group not in groups:
            continue
        digest = hashlib.blake2b(f"{seed}\0{question}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        row = {
            "group": group,
            "question": question,
            "expected_answer": metadata["expected_answer"],
            "document": document["id"],
        }
        groups[group].offer(int.from_bytes(digest, "big"), row)
    return [smallest.rows[key] for smallest in groups.values() for key in sorted(smallest.rows)]


def shortfalls(problems: Sequence[Mapping[str, Any]], draw: Draw) -> dict[str, tuple[int, int]]:
    """The groups of which fewer problems were drawn than asked: {group: (drawn, asked)}."""
    drawn = {group: sum(row["group"] == group for row in problems) for group in draw.counts}
    return {group: (drawn[group], asked) for group, asked in draw.counts.items() if drawn[group] < asked}
