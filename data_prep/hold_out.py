"""From the parts of a source to its shards: hold-out by whole documents, the cut at the budget, repeated epochs.

Everything here works on tokens and document boundaries; no text is touched again.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.documents import place_of
from data_prep.parts import Part, shard_path
from data_prep.tokenization import TokenFile, place_tokens
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import TokenizerInfo, smallest_dtype

# Candidates beyond what is needed return to training, so a generous threshold costs only their place in the order.
_CANDIDATES_PER_HELD_OUT = 8


@dataclass(frozen=True)
class Budget:
    """What is asked of a source: `train` tokens (None: all of it, once) in at most `epochs` passes, and `held_out`
    tokens (None: all candidates, whose share is `held_out_share`)."""

    train: int | None
    epochs: int
    held_out: int | None
    held_out_share: float = 0.0

    def threshold(self) -> int:
        """A document whose place lies below this is a candidate for being held out."""
        if self.held_out is None:
            share = self.held_out_share
        elif not self.held_out:
            return 0
        elif self.train is None:
            share = 0.5
        else:
            # With several epochs there may be only so much text to hold out from.
            text = self.train / self.epochs + self.held_out
            share = min(0.5, _CANDIDATES_PER_HELD_OUT * self.held_out / text)
        return int(share * 2**64)

    def is_met(self, train: int, candidates: int) -> bool:
        """Whether this many tokens are enough, so that no more need be read."""
        if self.train is None:
            return False
        held_out = candidates if self.held_out is None else self.held_out
        return candidates >= held_out and train + candidates - held_out >= self.train


@dataclass(frozen=True)
class _Span:
    """One document: where it lies in which token file, and its row of the boundaries."""

    file: TokenFile
    start: int
    end: int
    row: list[str]


@dataclass(frozen=True)
class SourceFiles:
    """The shards of a source. `passes` counts the passes over it where there is more than one, the last one
    as a fraction."""

    train: list[TokenFile]
    validation: list[TokenFile]
    passes: float | None


class SourceFinisher:
    """Makes the shards of `source` from its parts; see `finish`."""

    def __init__(self, output: Path, scratch: Path, source: str, seed: int, tokenizer: TokenizerInfo) -> None:
        self._output, self._scratch, self._source, self._seed = output, scratch, source, seed
        self._dtype = smallest_dtype(tokenizer.vocabulary_size)
        self._eos = tokenizer.eos_token_id

    def finish(self, parts: Sequence[Part], budget: Budget) -> SourceFiles:
        """Write what the parts alone don't hold: the held-out shard, the candidates that return to training, the last
        shard cut at a document boundary and the copies for further passes. Shards of the source left over from before
        are removed.

        Raises InputError where the source has fewer tokens than were asked for.
        """
        self._refuse_shortage(sum(part.train.tokens + part.candidates.tokens for part in parts), budget)
        held_out, returned = self._split_candidates(parts, budget.held_out)
        validation = self._write("validation", 0, held_out, cut_at=budget.held_out)
        train = [part.train for part in parts if part.train.documents]
        number = max((part.number for part in parts), default=-1) + 1
        train += self._write("train", number, returned)
        once = sum(file.tokens for file in train)
        if not once:
            remedy = "add documents, lower the share that is held out, or take the source out of the mixture"
            raise InputError(self._source, "no document is left for training", remedy)
        passes = None if budget.train is None or budget.train <= once else budget.train / once
        self._refuse_shortage(once, budget)
        if budget.train is not None:
            train = self._fill(train, budget.train, number + 1)
        self._remove_others(train + validation)
        return SourceFiles(train, validation, passes)

    def has_enough(self, parts: Sequence[Part], budget: Budget) -> bool:
        """Whether the parts fill the budget when whole documents are held out of them, the last of which is cut."""
        if budget.train is None or not budget.held_out:
            return True
        held_out, _ = self._split_candidates(parts, budget.held_out)
        used = sum(span.end - span.start for span in held_out)
        return sum(part.train.tokens + part.candidates.tokens for part in parts) - used >= budget.train

    def _refuse_shortage(self, once: int, budget: Budget) -> None:
        if budget.train is not None and budget.train > budget.epochs * once:
            needed = -(-budget.train // max(once, 1))
            what = f"{budget.epochs} epochs of its {once:,} tokens are fewer than the {budget.train:,} asked for"
            remedy = f"bring more files, lower its share or --tokens, or allow it epochs: {needed}"
            raise InputError(self._source, what.replace("1 epochs of its", "its"), remedy)

    def _split_candidates(self, parts: Sequence[Part], needed: int | None) -> tuple[Iterable[_Span], list[_Span]]:
        candidates = (span for part in parts if part.candidates.documents for span in self._spans(part.candidates))
        if needed is None:
            return candidates, []
        spans = sorted(candidates, key=lambda span: (place_of(span.row[2], self._source, self._seed), span.row[2]))
        total = 0
        for count, span in enumerate(spans):
            if total >= needed:
                return spans[:count], spans[count:]
            total += span.end - span.start
        if total < needed:
            what = f"its documents that may be held out have {total:,} tokens of the {needed:,} asked for"
            remedy = "ask for fewer validation sequences, or another seed"
            raise InputError(self._source, what, remedy)
        return spans, []

    def _spans(self, file: TokenFile) -> Iterator[_Span]:
        for row in read_boundaries(self._output / file.boundaries):
            yield _Span(file, int(row[0]), int(row[1]), row)

    def _write(self, split: str, number: int, spans: Iterable[_Span], cut_at: int | None = None) -> list[TokenFile]:
        """Write documents as one shard; with `cut_at`, the last one is cut to that many tokens in all, EOS last."""
        import numpy as np

        sources: dict[str, Any] = {}
        rows, position, documents = io.StringIO(newline=""), 0, 0
        writer = csv.writer(rows)
        unfinished = self._scratch / f"{self._source}-{split}.npy"
        with unfinished.open("wb") as stream:
            for span in spans:
                if span.file.path not in sources:
                    sources[span.file.path] = np.memmap(self._output / span.file.path, dtype=self._dtype, mode="r")
                tokens = np.array(sources[span.file.path][span.start : span.end])
                if cut_at is not None and position + len(tokens) > cut_at:
                    tokens = tokens[: cut_at - position]
                    tokens[-1] = self._eos
                stream.write(tokens.tobytes())
                writer.writerow([position, position + len(tokens), *span.row[2:]])
                position += len(tokens)
                documents += 1
        if not documents:
            unfinished.unlink()
            return []
        path = shard_path(self._source, split, number)
        return [place_tokens(self._output, path, unfinished, rows.getvalue().encode(), documents)]

    def _fill(self, train: Sequence[TokenFile], budget: int, number: int) -> list[TokenFile]:
        """The shards up to the budget: the first ones as they are, then copies for further passes, the last one cut."""
        filled: list[TokenFile] = []
        total, taken = 0, 0
        while total < budget:
            file = train[taken % len(train)]
            repeated = taken >= len(train)
            place = number + taken - len(train) if repeated else _number_of(file)
            if total + file.tokens > budget:
                return filled + self._cut(file, place, budget - total)
            filled.append(self._copy(file, place) if repeated else file)
            total += file.tokens
            taken += 1
        return filled

    def _copy(self, file: TokenFile, number: int) -> TokenFile:
        copy = replace(file, path=shard_path(self._source, "train", number))
        for name in ("path", "boundaries"):
            unfinished = self._scratch / Path(getattr(copy, name)).name
            shutil.copyfile(self._output / getattr(file, name), unfinished)
            unfinished.replace(self._output / getattr(copy, name))
        return copy

    def _cut(self, file: TokenFile, number: int, tokens: int) -> list[TokenFile]:
        """The documents of a shard that fit into `tokens`, in their order, as shard `number`.

        A document that is too long is passed over and shorter ones after it are taken, so that a budget is missed by
        less than the shortest one left out, however long documents are.
        """
        kept: list[_Span] = []
        for span in self._spans(file):
            if span.end - span.start <= tokens:
                kept.append(span)
                tokens -= span.end - span.start
        return self._write("train", number, kept)

    def _remove_others(self, files: Sequence[TokenFile]) -> None:
        kept = {name for file in files for name in (file.path, file.boundaries)}
        for split in ("train", "validation"):
            for path in (self._output / split).glob(f"{self._source}-[0-9]*"):
                if f"{split}/{path.name}" not in kept and path.name[len(self._source) + 1 :][:5].isdigit():
                    path.unlink()


def _number_of(file: TokenFile) -> int:
    return int(file.path.removesuffix(".npy").rsplit("-", 1)[1])


def read_boundaries(path: Path) -> Iterator[list[str]]:
    """The rows of a `.csv.gz`: first token, end token, id, file of documents, line in it."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        yield from csv.reader(stream)
