"""The tokens whose routing is counted: sequences of a dataset folder, and of each token its source and its part.

Shapes: R sequences of S tokens each, N counted tokens, U different token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from olmoe_parrots import remote
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_checks import check_training_shards
from olmoe_parrots.shards import DTYPES, Manifest, ShardFile
from olmoe_parrots.synthetic.build import load_task
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath
from olmoe_parrots.synthetic.task import EOS, PAD, Integers, Task

BANDS = 10
TEST = "test"


@dataclass(frozen=True)
class Sample:
    """Sequences, and what is known of their tokens.

    Args:
        tokens_RS: token ids (int32).
        counted_RS: False for padding, which the model reads and nothing counts.
        source_R: of each sequence, a place in `sources`.
        part_RS: of each token, a place in `parts`; None where the data is no synthetic task.
    """

    tokens_RS: Integers
    counted_RS: Integers
    source_R: Integers
    sources: tuple[str, ...]
    part_RS: Integers | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """One split of a dataset folder: the files of it, or the test queries of a synthetic task."""

    folder: str
    manifest: Manifest
    name: str
    files: tuple[ShardFile, ...]
    task: Task | None
    queries_RS: Integers | None

    def check_fit(self, config: Any) -> None:
        """Raise InputError where a model does not fit the data, or a file is missing or cut off.

        Args:
            config: the model's (:class:`~olmoe_parrots.config.ModelConfig`).
        """
        # of a synthetic task, the test is of the same vocabulary as the training files beside it
        files = self.files or [file for file in self.manifest.files if file.split == "train"]
        masked = [file for file in files if file.label_mask is not None]
        check_training_shards(
            [remote.join(self.folder, file.path) for file in files],
            vocab_size=config.vocab_size,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            dtype=self.manifest.dtype,
            sequence_length=config.max_sequence_length,
            label_mask_paths=[remote.join(self.folder, str(file.label_mask)) for file in masked],
            verification="sizes",
        )

    def sample(self, sequence_length: int, sequences: int | None, most: int) -> Sample:
        """Sequences spread evenly over the split, so that each source has its share of them.

        Args:
            sequence_length: S, in tokens; each file is divided by itself, as OLMo's MemMapDataset does.
            sequences: how many; None for all, but no more than `most`.

        Raises InputError where the split has fewer, or a token that its tokenizer does not have.
        """
        each = [file.tokens // sequence_length for file in self.files]
        there = sum(each) if self.queries_RS is None else len(self.queries_RS)
        if sequences is not None and sequences > there:
            what = f"{sequences:,} were asked for and {self.name} has {there:,} of {sequence_length} tokens"
            raise InputError("--sequences", what, f"ask for at most {there:,}")
        count = min(there, most) if sequences is None else sequences
        places = np.arange(count, dtype=np.int64) * there // count
        if self.queries_RS is not None:
            tokens, source = self.queries_RS[places], np.zeros(count, dtype=np.int64)
            sources: tuple[str, ...] = (str(self.manifest.mixture["task"]),)
        else:
            tokens, source, sources = self._read(places, each, sequence_length)
        size = self.manifest.tokenizer.vocabulary_size
        if (found := int(tokens.max())) >= size:
            what = f"it has the token {found} and its tokenizer only {size} tokens"
            raise InputError(self.folder, what, "build the dataset again")
        return _sample(tokens.astype(np.int32), source, sources, self.task)

    def _read(self, places: Integers, each: Sequence[int], length: int) -> tuple[Integers, Integers, tuple[str, ...]]:
        starts = np.cumsum([0, *each])
        tokens, found = [], []
        for file, (first, end) in zip(self.files, pairwise(starts.tolist()), strict=True):
            mine = places[(places >= first) & (places < end)] - first
            if len(mine):
                path = remote.join(self.folder, file.path)
                tokens.append(_read_rows(path, mine, length, DTYPES[self.manifest.dtype]))
                found += [file.source] * len(mine)
        sources, source = np.unique(np.array(found), return_inverse=True)
        return np.concatenate(tokens), source.astype(np.int64), tuple(str(name) for name in sources)


def open_split(folder: str, name: str | None) -> Split:
    """A split of a dataset folder: train or validation, of a synthetic task train or test.

    Args:
        folder: on disk or, where it is no synthetic task, under an `s3://` address.
        name: None for validation, or test.

    Raises InputError for a folder that is none, and a split that it does not have.
    """
    manifest = Manifest.load(folder)
    task, queries = load_task(folder) if "task" in manifest.mixture else (None, None)
    splits = sorted({file.split for file in manifest.files if file.tokens}) + ([TEST] if task is not None else [])
    name = name or (TEST if task is not None else "validation")
    if name not in splits:
        raise InputError(folder, f"it has no split {name}", f"give --split {' or '.join(splits)}")
    if name == TEST and queries is not None:
        rows = np.concatenate([queries.prompts_QT, queries.answers_QT], axis=1)
        return Split(folder, manifest, name, (), task, rows)
    files = tuple(file for file in manifest.files if file.split == name)
    return Split(folder, manifest, name, files, task, None)


def frequency_bands(counts_U: Integers) -> Integers:
    """The band of each token id, 0 the most frequent: (U,) int64.

    The ids are ranked by their counts, and the counted tokens divided into :data:`BANDS` equal parts in that order. An
    id is in the part that holds the middle of its own tokens, so that a band may be empty beside a very frequent id.
    """
    order = np.argsort(-counts_U, kind="stable")
    ranked = counts_U[order]
    twice_the_middle = 2 * np.cumsum(ranked) - ranked
    bands = np.empty(len(counts_U), dtype=np.int64)
    bands[order] = twice_the_middle * BANDS // (2 * int(counts_U.sum()))
    return bands


def _read_rows(path: str, rows: Integers, length: int, dtype: Any) -> Integers:
    if remote.is_remote(path):
        size = length * dtype.itemsize
        parts = [remote.read_bytes(path, row * size, (row + 1) * size) for row in rows.tolist()]
        return np.frombuffer(b"".join(parts), dtype=dtype).reshape(-1, length)
    tokens = np.memmap(Path(path), dtype=dtype, mode="r")
    return np.asarray(tokens[: len(tokens) // length * length].reshape(-1, length)[rows])


def _sample(tokens_RS: Integers, source_R: Integers, sources: tuple[str, ...], task: Task | None) -> Sample:
    if task is None:
        return Sample(tokens_RS, np.ones(tokens_RS.shape, dtype=np.bool_), source_R, sources)
    names = parts_of(task)
    parts = tuple(dict.fromkeys(names))
    by_place = np.array([parts.index(name) for name in names])[: tokens_RS.shape[1]]
    # rows longer than the task needs end in padding, whose part is never looked at
    by_place = np.pad(by_place, (0, tokens_RS.shape[1] - len(by_place)))
    part_RS = np.where(tokens_RS == EOS, parts.index("<eos>"), by_place).astype(np.int64)
    return Sample(tokens_RS, tokens_RS != PAD, source_R, sources, part_RS, parts)


def parts_of(task: Task) -> list[str]:
    """What stands in each place of a synthetic task's row. EOS, which ends a path early, is a part of its own."""
    if isinstance(task, PhoneBook):
        name = [f"name {place + 1}" for place in range(task.name_length)]
        return [*name, ":", *(f"number {place + 1}" for place in range(task.number_length)), "<eos>"]
    assert isinstance(task, ShortestPath), "there are two tasks"
    edge = ["edge, vertex 1", "edge, vertex 2", "edge ;"][: task.edge_length]
    path = [f"path {place + 1}" for place in range(task.answer_length - 1)]
    return [*(edge * task.path_law.graph.edges), "?", "source", "target", ":", *path, "<eos>"]
