"""What a dataset folder holds: the mixture as it came out beside what was asked, and how documents are packed.

Everything is computed from the manifest and the document boundaries (`.csv.gz`), block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from olmoe_parrots import remote
from olmoe_parrots.shard_verification import Boundaries, read_boundaries
from olmoe_parrots.shards import SPLITS, Manifest, ShardFile

QUANTILES = (0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class SourceRow:
    """One source of one split.

    Args:
        tokens, documents: as they came out, EOS counted.
        share: of the split's tokens.
        asked_tokens, asked_share: what the mixture asked for, tokens of training only; None where it did not.
        epochs: how often the source was gone through for training; None where it is not known.
    """

    split: str
    source: str
    tokens: int
    documents: int
    share: float
    asked_tokens: int | None
    asked_share: float | None
    epochs: float | None

    @property
    def mean_length(self) -> float:
        """Tokens per document."""
        return self.tokens / max(self.documents, 1)

    def difference(self, split_tokens: int) -> float | None:
        """Tokens too many (or too few, below 0) for the tokens that were asked, or else for the share."""
        if self.asked_tokens is not None:
            return float(self.tokens - self.asked_tokens)
        return None if self.asked_share is None else self.tokens - self.asked_share * split_tokens


def mixture_rows(manifest: Manifest, split: str) -> list[SourceRow]:
    """The sources of a split, those that were asked for and have nothing in it too, sorted by name."""
    total = manifest.totals(split)[0]
    found = manifest.sources(split)
    rows = []
    for source in sorted({*found, *manifest.asked} if total else found):
        counts, asked = found.get(source, {"tokens": 0, "documents": 0}), manifest.asked.get(source, {})
        train = split == "train"
        rows.append(
            SourceRow(
                split,
                source,
                counts["tokens"],
                counts["documents"],
                counts["tokens"] / total if total else 0.0,
                asked.get("tokens") if train else None,
                asked.get("share"),
                asked.get("passes", asked.get("epochs")) if train else None,
            )
        )
    return rows


def mixture_warnings(manifest: Manifest) -> list[str]:
    """A line for each source that is off by more than 1% of what was asked and by more than a mean document; held-out
    tokens, which are whole sequences, by more than a sequence."""
    lines = []
    for split in SPLITS:
        total = manifest.totals(split)[0]
        sequence = sequence_length_of(manifest) if split == "validation" else 0
        for row in mixture_rows(manifest, split):
            difference = row.difference(total)
            asked = row.asked_tokens if row.asked_tokens is not None else (row.asked_share or 0.0) * total
            if difference is None or asked is None or abs(difference) <= max(0.01 * asked, row.mean_length, sequence):
                continue
            what = f"{row.tokens:,} tokens, a share of {row.share:.2%}"
            wanted = f"{row.asked_tokens:,} tokens" if row.asked_share is None else f"a share of {row.asked_share:.2%}"
            verb = "were" if row.asked_share is None else "was"
            lines.append(f"{split}, {row.source}: {what}, where {wanted} {verb} asked for")
    return lines


@dataclass
class Packing:
    """How the documents of some token files lie in sequences of `sequence_length` tokens, cut from each file.

    Attributes:
        tokens, documents, sequences: over all files.
        lost: tokens behind the last whole sequence of each file.
        pieces: documents, or parts of them, summed over sequences.
        cut: documents that a sequence boundary, or the end of the last sequence, cuts.
        lengths, counts: the distinct lengths of documents, in tokens, and how many have each.
    """

    sequence_length: int
    tokens: int = 0
    documents: int = 0
    sequences: int = 0
    lost: int = 0
    pieces: int = 0
    cut: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add_file(self, tokens: int, boundaries: Iterator[Boundaries]) -> None:
        """Add one token file of `tokens` tokens and its document boundaries."""
        length = self.sequence_length
        used = tokens - tokens % length
        self.tokens += tokens
        self.sequences += tokens // length
        self.lost += tokens - used
        for starts, ends in boundaries:
            self.documents += len(ends)
            seen = starts < used
            first, last = starts[seen] // length, (np.minimum(ends[seen], used) - 1) // length
            self.pieces += int((last - first + 1).sum())
            self.cut += int(((first != last) | (ends[seen] > used)).sum())
            self._count(ends - starts)

    def _count(self, lengths: np.ndarray) -> None:
        values, inverse = np.unique(np.concatenate([self.lengths, lengths]), return_inverse=True)
        weights = np.concatenate([self.counts, np.ones(len(lengths), np.int64)])
        self.lengths, self.counts = values, np.bincount(inverse, weights).astype(np.int64)

    @property
    def documents_per_sequence(self) -> float:
        """Documents, or parts of them, in a sequence on average."""
        return self.pieces / max(self.sequences, 1)

    @property
    def cut_share(self) -> float:
        """The share of documents that are cut."""
        return self.cut / max(self.documents, 1)

    def quantile(self, share: float) -> int:
        """The smallest length, in tokens, that at least this share of the documents does not exceed; 0 without any."""
        if not self.documents:
            return 0
        return int(self.lengths[np.searchsorted(np.cumsum(self.counts), share * self.documents)])


def file_boundaries(root: str, file: ShardFile) -> Iterator[Boundaries]:
    """The document boundaries of a token file; where it has no `.csv.gz`, its documents are of one length.

    Raises ValueError or OSError for a file that is damaged.
    """
    if file.boundaries is not None:
        with remote.local_copy(remote.join(root, file.boundaries)) as path:
            yield from read_boundaries(path)
    elif file.documents and file.tokens % file.documents == 0:
        ends = np.arange(1, file.documents + 1) * (file.tokens // file.documents)
        yield ends - file.tokens // file.documents, ends


def sequence_length_of(manifest: Manifest) -> int:
    """The length of a sequence, in tokens: the mixture's, or that of examples of one length, or 2048."""
    found: Any = manifest.mixture
    for key in ("mixture", "validation", "sequence_length"):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, int) and found > 0:
        return found
    lengths = {file.tokens // file.documents for file in manifest.files if file.documents and not file.boundaries}
    return lengths.pop() if len(lengths) == 1 else 2048
