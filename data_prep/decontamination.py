"""Decontamination: which documents share an n-gram of words with a test item of the evaluation tasks.

    test items ─▶ build_index ─▶ one file, memory-mapped by every worker ─▶ Index.find(texts) ─▶ rows ─▶ write_report

A document is contaminated by an item if `ngram` (13) words of the item stand in it in a row, words being what
data_prep.ngrams makes of a text. An item of fewer words is looked for as a whole if it has at least WHOLE_ITEM of them;
a shorter one is not looked for, and the report counts it. Rows of numbers and symbols are no sign of anything, so an
n-gram must hold PLAIN_WORDS different words of two letters or more. None runs from one document into the next.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.ngrams import Hashes, PlainWords, Windows, hash_words, split_words
from data_prep.test_items import TestItem, load_test_items
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import write_atomically

__all__ = ["Index", "Match", "TestItem", "build_index", "load_test_items", "match_row", "write_report"]

REPORT = "contamination.json"
REPORT_ROWS = "contamination.jsonl"
# A shorter item is not looked for: ordinary phrases, which innocent documents hold too.
WHOLE_ITEM = 8
# Different words of at least two letters that an n-gram must hold: "1 2 3 4 5 6 7 8 9 10 11 12 13" tells nothing.
PLAIN_WORDS = 3
# The index: one uint64 array of this header, the sorted n-grams, where each one's items begin, the items, and JSON.
_FORMAT = int.from_bytes(b"ngrams/1", "little")
_HEADER = 4
_BATCH_WORDS = 1 << 20
_BATCH_TEXTS = 1 << 12


class Match(NamedTuple):
    """A test item found in a document."""

    task: str
    item: str


def build_index(items: Iterable[TestItem], ngram: int, path: Path) -> None:
    """Write the index of the test items' n-grams; the same items in any order give the same bytes.

    TestItems of one task and item are texts of one item. Raises InputError if there are none.
    """
    texts: dict[Match, set[str]] = {}
    for item in items:
        texts.setdefault(Match(item.task, item.item), set()).add(item.text)
    if not texts:
        raise InputError("decontamination", "there are no test items", "name at least one task that has some")
    names = sorted(texts)
    hashes, owners, lengths = _item_ngrams([sorted(texts[name]) for name in names], ngram)
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    fresh = np.ones(len(hashes), bool)  # a row whose (n-gram, item) is not that of the row before
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    grams, starts = np.unique(hashes[fresh], return_index=True)
    owners = owners[fresh]
    about = {"lengths": lengths, "tasks": _describe(names, texts, set(owners.tolist())), "items": names}
    encoded = json.dumps(about, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    header = np.array([_FORMAT, ngram, len(grams), len(owners)], np.uint64)
    bounds = np.append(starts, len(owners)).astype(np.uint64)
    parts = [header, grams, bounds, owners.astype(np.uint64), np.frombuffer(encoded, "<u8")]
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(parts).astype("<u8"))
    write_atomically(path, buffer.getvalue())


def _item_ngrams(items: Sequence[Sequence[str]], ngram: int) -> tuple[Hashes, NDArray[np.int64], list[int]]:
    """Hashes of what is looked for, the numbers of the items they belong to, and the lengths in words that occur."""
    texts = [(number, text) for number, item in enumerate(items) for text in item]
    found = [(0, np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    for start in range(0, len(texts), _BATCH_TEXTS):
        batch = texts[start : start + _BATCH_TEXTS]
        found += _text_ngrams([split_words(text) for _, text in batch], np.array([owner for owner, _ in batch]), ngram)
    lengths, hashes, owners = zip(*found, strict=True)
    return np.concatenate(hashes), np.concatenate(owners), sorted({*lengths} - {0})


def _text_ngrams(
    texts: list[list[str]], owners: NDArray[np.int64], ngram: int
) -> Iterator[tuple[int, Hashes, NDArray[np.int64]]]:
    """(length in words, hashes, their owners) of what is looked for of some texts, length by length."""
    counts = np.array([len(words) for words in texts])
    lengths = np.where(counts >= ngram, ngram, np.where(counts >= WHOLE_ITEM, counts, 0))
    hashes, ends = hash_words(texts)
    windows, plain = Windows(hashes), PlainWords(texts, hashes)
    text_of_word = np.repeat(np.arange(len(texts)), counts)
    for length in sorted({*lengths.tolist()} - {0}):
        values = windows.of_length(length)
        text = text_of_word[: len(values)]
        wanted = (lengths[text] == length) & (np.arange(len(values)) + length <= ends[text])
        wanted &= plain.of_length(length) >= min(PLAIN_WORDS, ngram)
        yield length, values[wanted], owners[text[wanted]]


def _describe(names: list[Match], texts: dict[Match, set[str]], searchable: set[int]) -> dict[str, dict[str, Any]]:
    """By task: how many items, how many of them are looked for, and what identifies them all."""
    tasks: dict[str, dict[str, Any]] = {}
    digests: dict[str, Any] = {}
    for number, name in enumerate(names):
        task = tasks.setdefault(name.task, {"items": 0, "searchable": 0})
        task["items"] += 1
        task["searchable"] += number in searchable
        digest = digests.setdefault(name.task, hashlib.sha256())
        digest.update(json.dumps([name.item, sorted(texts[name])]).encode())
    return {task: about | {"sha256": digests[task].hexdigest()} for task, about in tasks.items()}


class Index:
    """An index opened for reading; workers that open the same file share its memory.

    Args:
        path: a file of build_index. Raises InputError if it is none.
    """

    def __init__(self, path: Path) -> None:
        array = self._load(path)
        self.ngram, grams, owners = (int(number) for number in array[1:_HEADER])
        cuts = np.cumsum([_HEADER, grams, grams + 1, owners])
        self._grams, self._bounds, self._owners = (array[a:b] for a, b in itertools.pairwise(cuts))
        about = json.loads(array[cuts[-1] :].tobytes())
        self.tasks: dict[str, dict[str, Any]] = about["tasks"]
        self._lengths: list[int] = about["lengths"]
        self._items = [Match(*item) for item in about["items"]]
        # One byte for each value of the hashes' upper bits: most windows are known to be clean by one look at it.
        bits = min(max(grams.bit_length() + 4, 10), 25)
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, bool)
        self._present[self._grams >> self._shift] = True

    @classmethod
    def open(cls, path: Path) -> Index:
        """The index in the file `path`."""
        return cls(path)

    @staticmethod
    def _load(path: Path) -> NDArray[np.uint64]:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            whole = array.dtype == np.uint64 and array.ndim == 1 and len(array) > _HEADER and array[0] == _FORMAT
        except (OSError, ValueError, EOFError):
            whole = False
        if not whole:
            raise InputError(path, "it is no index of test items", "remove it and run again")
        return array

    def find(self, texts: Sequence[str]) -> list[list[Match]]:
        """The test items found in each text, sorted; an empty list for a clean one."""
        found: list[list[Match]] = []
        batch: list[list[str]] = []
        words = 0
        for text in texts:
            batch.append(split_words(text))
            words += len(batch[-1])
            if words >= _BATCH_WORDS:
                found += self._find(batch)
                batch, words = [], 0
        return found + self._find(batch)

    def _find(self, texts: list[list[str]]) -> list[list[Match]]:
        hashes, ends = hash_words(texts)
        windows = Windows(hashes)
        pairs: set[tuple[int, int]] = set()  # of text and item
        for length in self._lengths:
            values = windows.of_length(length)
            starts = np.flatnonzero(self._present[values >> self._shift])
            values = values[starts]
            places = np.searchsorted(self._grams, values)
            places[places == len(self._grams)] = 0
            within = np.searchsorted(ends, starts, side="right")
            hit = (self._grams[places] == values) & (starts + length <= ends[within])
            for place, text in set(zip(places[hit].tolist(), within[hit].tolist(), strict=True)):
                begin, end = self._bounds[place : place + 2].tolist()
                pairs.update((text, item) for item in self._owners[begin:end].tolist())
        matches: list[list[Match]] = [[] for _ in texts]
        for text, item in sorted(pairs):
            matches[text].append(self._items[item])
        return matches


def match_row(document_id: str, source: str, matches: Sequence[Match]) -> dict[str, Any]:
    """A contaminated document's row of contamination.jsonl."""
    return {"id": document_id, "source": source, "items": [list(match) for match in matches]}


def write_report(
    folder: Path, rows: Iterable[Mapping[str, Any]], documents: Mapping[str, int], index: Index, mode: str
) -> dict[str, Any]:
    """Write contamination.jsonl, the rows in the order given, and contamination.json; returns the latter's content.

    Args:
        folder: where both are written, each at once.
        rows: of match_row, one a contaminated document; read once, not held.
        documents: how many documents of each source were looked at.
        index: what they were looked up in.
        mode: "report" or "drop".
    """
    folder.mkdir(parents=True, exist_ok=True)
    task_documents: Counter[str] = Counter()
    source_documents: Counter[str] = Counter()
    items: set[tuple[str, str]] = set()
    partial = folder / f"{REPORT_ROWS}.partial"
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            found = {(task, item) for task, item in row["items"]}
            items |= found
            task_documents.update({task for task, _ in found})
            source_documents[row["source"]] += 1
    partial.replace(folder / REPORT_ROWS)
    items_found = Counter(task for task, _ in items)
    summary = {
        "mode": mode,
        "ngram": index.ngram,
        "whole_item": WHOLE_ITEM,
        "plain_words": PLAIN_WORDS,
        "tasks": {
            task: about | {"items_found": items_found[task], "documents": task_documents[task]}
            for task, about in index.tasks.items()
        },
        "sources": {
            source: {
                "documents": count,
                "found": source_documents[source],
                "dropped": source_documents[source] if mode == "drop" else 0,
            }
            for source, count in sorted(documents.items())
        },
    }
    write_atomically(folder / REPORT, (json.dumps(summary, indent=1) + "\n").encode())
    return summary
