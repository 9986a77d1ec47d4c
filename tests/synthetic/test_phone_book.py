"""Phone-book: uniqueness, distribution, layout, scoring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from olmoe_parrots.errors import InputError
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.task import Queries

SIZE = 300_000


def _entries(book: PhoneBook, size: int, seed: int) -> list[tuple[str, str]]:
    """Names and numbers as text, read off the training rows."""
    words = book.vocabulary.words
    rows = book.rows(0, size, seed, book.test_queries(size, 1, seed)[0]).tokens_RT
    texts = ("".join(words[token] for token in row) for row in rows)
    return [tuple(text.replace("<pad>", "").removesuffix("<eos>").split(":")) for text in texts]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    book = PhoneBook()
    return book.rows(0, SIZE, 0, book.test_queries(SIZE, 1, 0)[0]).tokens_RT.astype(np.int64)


def test_names_and_numbers_are_unique(tokens: np.ndarray) -> None:
    assert len(np.unique(tokens[:, :5], axis=0)) == SIZE
    assert len(np.unique(tokens[:, 6:14], axis=0)) == SIZE


@given(
    st.integers(1, 4),
    st.sampled_from(["ab", "xyz", "abcdefghijklmnopqrstuvwxyz"]),
    st.integers(1, 4),
    st.sampled_from(["01", "0123456789", "ab01"]),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_whole_name_spaces_are_used_up(name: int, letters: str, number: int, digits: str, seed: int) -> None:
    book = PhoneBook(name, letters, number, digits)
    size = min(len(letters) ** name, len(digits) ** number, 2000)
    book.check(size, 1, seed)
    entries = _entries(book, size, seed)
    assert len({name for name, _ in entries}) == len({number for _, number in entries}) == size
    assert all(len(n) == name and set(n) <= set(letters) for n, _ in entries)
    assert all(len(n) == number and set(n) <= set(digits) for _, n in entries)
    with pytest.raises(InputError, match="exist"):
        book.check(min(len(letters) ** name, len(digits) ** number) + 1, 1, seed)


def test_a_smaller_book_is_the_beginning_of_a_larger_one() -> None:
    book = PhoneBook()
    assert _entries(book, 500, 4) == _entries(book, 3000, 4)[:500]
    assert not set(_entries(book, 500, 4)) & set(_entries(book, 500, 5))


def test_letters_and_digits_are_uniform_and_independent(tokens: np.ndarray) -> None:
    names, numbers = tokens[:, :5] - 3, tokens[:, 6:14] - 29
    for column in names.T:
        assert chisquare(np.bincount(column, minlength=26)).pvalue > 1e-4
    for column in numbers.T:
        assert chisquare(np.bincount(column, minlength=10)).pvalue > 1e-4
    columns = [*names.T, *numbers.T]
    p_values = []
    for i, one in enumerate(columns):
        for other in columns[:i]:
            table = np.zeros((26, 26))
            np.add.at(table, (one, other), 1)
            p_values.append(chi2_contingency(table[table.any(axis=1)][:, table.any(axis=0)]).pvalue)
    assert min(p_values) > 1e-4
    # an entry tells nothing about the next one
    table = np.zeros((10, 10))
    np.add.at(table, (numbers[:-1, 0], numbers[1:, 0]), 1)
    assert chi2_contingency(table).pvalue > 1e-4


def test_names_tell_nothing_of_numbers_of_the_same_alphabet() -> None:
    entries = _entries(PhoneBook(3, "0123456789", 3, "0123456789"), 1000, 0)
    # of 1,000 matched at random, one on average is its own number
    assert sum(name == number for name, number in entries) < 8


def test_a_row_and_its_label_mask_are_as_documented() -> None:
    book = PhoneBook(name_length=3, number_length=4, sequence_length=12)
    rows = book.rows(0, 10, 0, book.test_queries(10, 1, 0)[0])
    for row, mask in zip(rows.tokens_RT, rows.learned_RT, strict=True):
        words = book.vocabulary.decode(row).split()
        assert words[3] == ":"
        assert words[8:] == ["<eos>", "<pad>", "<pad>", "<pad>"]
        assert all(word.isdigit() for word in words[4:8])
        assert np.flatnonzero(mask).tolist() == [4, 5, 6, 7]


def test_the_queries_are_different_entries_of_the_book() -> None:
    book, size = PhoneBook(), 20_000
    queries, _ = book.test_queries(size, 1000, 3)
    words = book.vocabulary.words
    asked = {
        "".join(words[i] for i in prompt)[:-1]: "".join(words[i] for i in answer)
        for prompt, answer in zip(queries.prompts_QT, queries.answers_QT, strict=True)
    }
    entries = _entries(book, size, 3)
    assert len(asked) == 1000
    assert asked.items() <= dict(entries).items()
    # from all parts of the book alike
    places = [place for place, (name, _) in enumerate(entries) if name in asked]
    assert chisquare(np.histogram(places, bins=20, range=(0, size))[0]).pvalue > 1e-3


def test_scores_worked_out_by_hand() -> None:
    book = PhoneBook(number_length=4)
    answers = np.array([[30, 31, 32, 33]] * 4, dtype=np.uint16)
    queries = Queries(np.zeros((4, 6), dtype=np.uint16), answers)
    decoded = np.array([[30, 31, 32, 33, 1], [30, 31, 32, 34, 1], [31, 30, 33, 32, 0], [1, 1, 1, 1, 1]])
    accuracy, digits = book.score(queries, decoded)
    assert (accuracy.metric, accuracy.value, accuracy.examples) == ("accuracy", 0.25, 4)
    # the standard error of the mean of 1, 0, 0, 0: sqrt(0.25 / 4)
    assert accuracy.standard_error == pytest.approx(0.25)
    assert (digits.metric, digits.value) == ("digit_accuracy", 7 / 16)
    # decoding that stopped short
    accuracy, digits = book.score(queries, np.array([[30, 31]] * 4))
    assert (accuracy.value, digits.value) == (0, 0.5)


@pytest.mark.parametrize(
    ("options", "size", "test_size", "message"),
    [
        ({"name_length": 2}, 677, 10, "676 of 2 characters exist"),
        ({"number_length": 2}, 101, 10, "100 of 2 characters exist"),
        ({}, 10, 11, "cannot be drawn"),
        ({"name_alphabet": "aab"}, 10, 5, "different characters"),
        ({"number_alphabet": "7"}, 10, 5, "different characters"),
        ({"name_alphabet": "ab :"}, 10, 5, "only letters and digits"),
        ({"name_length": 0}, 10, 5, "not positive"),
        ({"name_length": 10**9}, 10, 5, "2^62"),
        ({"sequence_length": 14}, 10, 5, "needs up to 15"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, size: int, test_size: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        PhoneBook(**options).check(size, test_size, 0)
    assert message in str(error.value)
