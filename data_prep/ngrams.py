"""Word n-grams as 64-bit hashes: the arithmetic of decontamination, in numpy.

Words: a text is brought to Unicode NFKC and lower case; apostrophes and invisible format characters are dropped, every
other punctuation mark and symbol separates words as white space does. So `"Don't stop-it,"` and `dont STOP it` are the
same three words.

Hashes: a word's is blake2b of its UTF-8 bytes, so it is the same in every process and run. The n-gram of the words
w[0..n) has the hash `sum(w[i] * BASE**i) + n * LENGTH`, modulo 2**64. Two different n-grams share a hash with
probability of about 2**-64 (at most 2**-58 if one is a reordering of the other's words), so 1e11 words looked up among
2e6 n-grams give about 0.01 false matches.

Shapes: W words of all texts one after the other, T texts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Odd, so that it has an inverse modulo 2**64.
BASE = 0x9E3779B97F4A7C15
LENGTH = 0xD1B54A32D192ED03
_INVERSE = pow(BASE, -1, 2**64)
_DROPPED = "'\u2018\u2019\u02bc\uff07"
_KEPT_WORDS = 500_000
_PLAIN = re.compile(r"[^\W\d_]{2}")


class _CharacterTable(dict[int, "int | str | None"]):
    """For str.translate: what becomes of each character, worked out when it is first met."""

    def __missing__(self, code: int) -> int | str | None:
        character, category = chr(code), unicodedata.category(chr(code))
        if character in _DROPPED or category == "Cf":
            self[code] = None
        else:
            self[code] = " " if category[0] in "PS" else code
        return self[code]


class _WordTable(dict[str, int]):
    """A word's hash, worked out when it is first met."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_CHARACTERS = _CharacterTable()
_WORDS = _WordTable()


def split_words(text: str) -> list[str]:
    """The words of a text, normalized as the module says."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.lower().translate(_CHARACTERS).split()


def hash_words(texts: Sequence[Sequence[str]]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the words of T texts, shape (W,), and where each text ends in them, shape (T,)."""
    if len(_WORDS) > _KEPT_WORDS:  # bounds the memory of a long run; what a table holds never changes a hash
        _WORDS.clear()
    ends = np.cumsum([len(words) for words in texts], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.fromiter(map(_WORDS.__getitem__, chain.from_iterable(texts)), np.uint64, total), ends


class Windows:
    """Hashes of all n-grams of a row of words, for any n.

    With prefix sums P[k] = sum(w[i] * BASE**i for i < k), the n-gram at j is (P[j + n] - P[j]) * BASE**-j.

    Args:
        words: word hashes, shape (W,).
    """

    def __init__(self, words: Hashes) -> None:
        self._sums = np.zeros(len(words) + 1, np.uint64)
        np.cumsum(words * _powers(BASE, len(words)), out=self._sums[1:])
        self._inverses = _powers(_INVERSE, len(words))

    def of_length(self, n: int) -> Hashes:
        """Hashes of the windows of `n` words at each start, shape (max(W - n + 1, 0),)."""
        count = max(len(self._sums) - n, 0)
        if not count:
            return np.zeros(0, np.uint64)
        values = self._sums[n:] - self._sums[:count]
        values *= self._inverses[:count]
        values += np.uint64(n * LENGTH % 2**64)
        return values


class PlainWords:
    """Counts the different words of two letters or more in windows of words.

    Args:
        texts: the words of T texts, W in all.
        words: their hashes, shape (W,).
    """

    def __init__(self, texts: Sequence[Sequence[str]], words: Hashes) -> None:
        plain = {word: _PLAIN.search(word) is not None for word in set(chain.from_iterable(texts))}
        self._plain = np.fromiter(map(plain.__getitem__, chain.from_iterable(texts)), bool, len(words))
        order = np.argsort(words, kind="stable")
        again = words[order[1:]] == words[order[:-1]]
        # Where the same word stood before: outside a window, or else it is counted there.
        self._previous = np.full(len(words), -1)
        self._previous[order[1:][again]] = order[:-1][again]

    def of_length(self, n: int) -> NDArray[np.int64]:
        """The count in the window of `n` words at each start, shape (max(W - n + 1, 0),)."""
        starts = np.arange(max(len(self._plain) - n + 1, 0))
        counts = np.zeros(len(starts), np.int64)
        for shift in range(n):
            window = slice(shift, shift + len(starts))
            counts += self._plain[window] & (self._previous[window] < starts)
        return counts


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)
