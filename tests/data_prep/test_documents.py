"""Documents as lines of JSON, what they are known by, texts seen before, and work in order."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.documents import Document, Skipped, Unusable, content_digest, place_of, to_line
from data_prep.duplicates import SeenTexts
from data_prep.workers import Workers
from olmoe_parrots.errors import InputError


@given(st.text().filter(str.strip), st.dictionaries(st.text(), st.integers()))
def test_a_line_is_the_document(text: str, metadata: dict[str, int]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(Unusable):
            to_line(Document("a", text, "web", metadata))
        return
    line = to_line(Document("a", text, "web", metadata))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    row = json.loads(line)
    assert (row["id"], row["text"], row["source"], row["metadata"]) == ("a", text, "web", metadata)
    assert set(row) == {"id", "text", "source", "added", "metadata"}


@pytest.mark.parametrize(("text", "reason"), [(" \n\t", "empty text"), ("a \ud800 b", "invalid Unicode")])
def test_what_is_no_document(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        to_line(Document("a", text, "web"))


def test_white_space_at_the_ends_does_not_tell_texts_apart() -> None:
    assert content_digest(" a  b\n") == content_digest("a  b") != content_digest("a b")


def test_places_are_uniform_and_depend_on_all_three() -> None:
    places = [place_of(f"doc-{i}", "web", 0) for i in range(20_000)]
    counts = Counter(place * 20 // 2**64 for place in places)
    expected = len(places) / 20
    assert sum((counts[i] - expected) ** 2 / expected for i in range(20)) < 43.8  # chi-square of 19, p = 0.001
    assert len({place_of("a", "web", 0), place_of("a", "web", 1), place_of("a", "books", 0), places[0]}) == 4


def test_counts_add_up_and_can_be_taken() -> None:
    skipped = Skipped({"a": {"no text": 1}})
    skipped.add("a", "no text")
    skipped.update({"b": {"invalid JSON": 3}})
    assert skipped.lines() == ["a: left out 2 x no text", "b: left out 3 x invalid JSON"]
    assert skipped.take() == {"a": {"no text": 2}, "b": {"invalid JSON": 3}} and skipped.as_dict() == {}


@given(st.lists(st.integers(0, 20)))
def test_a_text_is_new_once(texts: list[int]) -> None:
    seen = SeenTexts(Path(":memory:"))
    known: set[int] = set()
    for text in texts:
        assert seen.add(bytes([text]), "a/0") == (text not in known)
        known.add(text)
    seen.close()


def test_what_a_unit_brought_can_be_forgotten_after_an_interruption(tmp_path: Path) -> None:
    seen = SeenTexts(tmp_path / "seen")
    assert seen.add(b"1", "a/0") and seen.add(b"2", "a/1") and seen.add(b"3", "a/1")
    seen.forget([b"3"])
    seen.commit()
    assert seen.add(b"4", "a/1")
    seen.close()  # not committed: as after a kill
    again = SeenTexts(tmp_path / "seen")
    again.forget_unit("a/1")
    assert [again.add(bytes(text, "ascii"), "a/2") for text in "1234"] == [False, True, True, True]
    again.remove()
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"seen: it cannot be used .* remove this file"):
        SeenTexts(tmp_path / "seen")


def _square(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_no_further_ahead_than_needed(processes: int) -> None:
    taken = []

    def jobs():
        for number in range(100):
            taken.append(number)
            yield f"job {number}", number

    with Workers(processes) as workers:
        results = workers.map(_square, jobs())
        assert [next(results) for _ in range(10)] == [(f"job {n}", n * n) for n in range(10)]
        results.close()
        assert len(taken) <= 10 + processes + 1
        assert list(workers.map(_square, jobs())) == [(f"job {n}", n * n) for n in range(100)]


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    with Workers(2) as workers, pytest.raises(InputError, match=r"killed.*fewer --processes"):
        list(workers.map(_square, [("a", 1), ("b", -1), ("c", 2)]))


# In a process of its own, where nothing has started the one that workers are forked from.
KILLED_AT_START = """
import os, signal, time
from multiprocessing import forkserver
from data_prep.workers import Workers
from olmoe_parrots.errors import InputError

if __name__ == "__main__":
    try:
        with Workers(2) as workers:
            workers.start()
            while not (pid := getattr(forkserver._forkserver, "_forkserver_pid", None)):
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            list(workers.map(abs, [("a", -1)]))
    except InputError as error:
        print(error)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it has ended, a new pool would ask it for processes
    with Workers(2) as workers:
        print(list(workers.map(abs, [("a", -1)])))
"""


def test_workers_that_end_while_they_start_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED_AT_START)
    run = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    first, second = run.stdout.splitlines()
    assert "worker processes: one was killed" in first and second == "[('a', 1)]"
    assert "Traceback" not in run.stderr
