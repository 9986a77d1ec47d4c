"""Phone-book: closed-book recall of numbers by name. Tests memory.

One row, for names of 3 letters and numbers of 4 digits (the defaults are 5 and 8):

    inputs    k  q  a  :  4  0  9  1  <eos>
    learned   .  .  .  .  4  0  9  1  .

The test's queries are drawn from the training set: prompt `k q a :`, answer `4 0 9 1`. EOS is not learned, since it
always stands in the same place; padding, where the sequence length asks for it, follows it.

Names and numbers are both unique. Entry i has the i-th name and the i-th number of two random permutations of all names
and all numbers, which depend on seed and options but not on the size: a smaller book is the beginning of a larger one.
"""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from olmoe_parrots.errors import InputError
from olmoe_parrots.synthetic.randomness import LARGEST_DOMAIN, Integers, Permutation
from olmoe_parrots.synthetic.task import EOS, PAD, SPECIAL, Measurement, Queries, Rows, Vocabulary, check_length, padded

SEPARATOR = 2
_NAMES, _NUMBERS, _TEST = 0, 1, 2


@dataclass(frozen=True)
class PhoneBook:
    """The task's options. Lengths are assumed: the paper's summary names none.

    Args:
        name_length, number_length: in characters.
        name_alphabet, number_alphabet: letters and digits, each once; a character in both is one token.
        sequence_length: of a row, in tokens; None for just what is needed.
    """

    name_length: int = 5
    name_alphabet: str = string.ascii_lowercase
    number_length: int = 8
    number_alphabet: str = string.digits
    sequence_length: int | None = None

    name = "phone_book"
    rows_per_shard = 1 << 18

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary((*SPECIAL, ":", *dict.fromkeys(self.name_alphabet + self.number_alphabet)))

    @property
    def prompt_length(self) -> int:
        return self.name_length + 1

    @property
    def answer_length(self) -> int:
        return self.number_length

    @property
    def needed_length(self) -> int:
        return self.prompt_length + self.number_length + 1

    @property
    def row_length(self) -> int:
        return self.sequence_length or self.needed_length

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, size: int, test_size: int, seed: int) -> None:
        for what, length, alphabet in (
            ("name", self.name_length, self.name_alphabet),
            ("number", self.number_length, self.number_alphabet),
        ):
            _check_alphabet(f"--{what}-alphabet", alphabet)
            if length < 1:
                raise InputError(f"--{what}-length", f"{length} is not positive", "give at least 1")
            # Compared by bits first: the power of a huge length would take forever.
            if length * np.log2(len(alphabet)) > 64 or (there := len(alphabet) ** length) > LARGEST_DOMAIN:
                raise InputError(f"--{what}-length", f"more than 2^62 {what}s exist", "give fewer characters")
            if size > there:
                told = f"{size:,} entries need as many {what}s and {there:,} of {length} characters exist"
                raise InputError("--size", told, f"ask for fewer entries or raise --{what}-length")
        if test_size > size:
            told = f"{test_size:,} test queries cannot be drawn from a book of {size:,} entries"
            raise InputError("--test-size", told, "ask for fewer, or for a larger book")
        check_length(self, self.sequence_length)

    def entries(self, places: Integers, seed: int) -> tuple[Integers, Integers]:
        """The names and numbers of the entries at `places`, as token ids: (R, name_length), (R, number_length)."""
        ids = {word: number for number, word in enumerate(self.vocabulary.words)}
        found = []
        for which, length, alphabet in (
            (_NAMES, self.name_length, self.name_alphabet),
            (_NUMBERS, self.number_length, self.number_alphabet),
        ):
            values = Permutation(len(alphabet) ** length, seed, which)(places)
            tokens = np.array([ids[character] for character in alphabet], dtype=np.uint16)
            found.append(tokens[_digits(values, len(alphabet), length)])
        return found[0], found[1]

    def rows(self, first: int, count: int, seed: int, test: Queries) -> Rows:
        names, numbers = self.entries(np.arange(first, first + count), seed)
        start, end = self.prompt_length, self.needed_length - 1
        tokens = np.full((count, self.row_length), PAD, dtype=np.uint16)
        tokens[:, : start - 1], tokens[:, start - 1] = names, SEPARATOR
        tokens[:, start:end], tokens[:, end] = numbers, EOS
        learned = np.zeros(tokens.shape, dtype=np.bool_)
        learned[:, start:end] = True
        return Rows(tokens, learned)

    def test_queries(self, size: int, test_size: int, seed: int) -> tuple[Queries, Counter[str]]:
        # A permutation of the book's places gives distinct entries without holding the book.
        places = Permutation(size, seed, _TEST)(np.arange(test_size))
        names, numbers = self.entries(places, seed)
        separators = np.full((test_size, 1), SEPARATOR, dtype=np.uint16)
        return Queries(np.concatenate([names, separators], axis=1), numbers), Counter()

    def score(self, queries: Queries, decoded_QT: Integers) -> list[Measurement]:
        """Exact match of the whole number ("accuracy") and the share of right digits ("digit_accuracy").

        A digit that was not decoded is wrong; what follows the number is not looked at.
        """
        right_QT = padded(decoded_QT, self.answer_length) == queries.answers_QT
        return [
            Measurement.of("accuracy", right_QT.all(axis=1)),
            Measurement.of("digit_accuracy", right_QT.mean(axis=1)),
        ]


def _check_alphabet(option: str, alphabet: str) -> None:
    if len(alphabet) < 2 or len(set(alphabet)) != len(alphabet):
        raise InputError(option, f"{alphabet!r} is not two or more different characters", "give each character once")
    if not alphabet.isalnum() or len(alphabet) > 10_000:
        raise InputError(option, f"{alphabet!r:.60} is not only letters and digits", "leave the others out")


def _digits(values: Integers, base: int, length: int) -> Integers:
    """The digits of `values` in `base`, most significant first: (R, length)."""
    digits = np.empty((len(values), length), dtype=np.uint16)
    for place in reversed(range(length)):
        values, digits[:, place] = np.divmod(values, np.uint64(base))
    return digits
