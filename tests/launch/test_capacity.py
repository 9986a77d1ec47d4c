"""The search for a capacity, against trying every size."""

import itertools
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from launch.capacity import bounds, ladder, most_tries, nearest_rung, next_rung


def _search(rungs: int, guess: int, answer: int) -> tuple[int, int]:
    """What the search finds for a model that masters rungs up to `answer`, and how many tries it takes."""
    mastered: dict[int, bool] = {}
    while (rung := next_rung(rungs, guess, mastered)) is not None:
        assert rung not in mastered, "no size is tried twice"
        mastered[rung] = rung <= answer
        assert len(mastered) <= rungs
    return bounds(rungs, mastered)[0], len(mastered)


def test_every_answer_is_found_from_every_guess_within_the_promised_tries() -> None:
    for rungs in range(1, 40):
        for guess in range(rungs):
            for answer in range(-1, rungs):
                found, tries = _search(rungs, guess, answer)
                assert found == answer
                assert tries <= min(rungs, most_tries(abs(answer - guess)))


def test_a_right_guess_takes_two_tries() -> None:
    assert _search(30, 12, 12) == (12, 2)
    assert _search(30, 12, 11) == (11, 2)


@given(st.data())
def test_a_monotone_curve_of_recall_gives_what_trying_every_size_gives(data: st.DataObject) -> None:
    sizes = ladder(data.draw(st.integers(1, 200)), 100_000, data.draw(st.floats(1.1, 3.0)))
    capacity = data.draw(st.floats(1, 200_000))
    steepness = data.draw(st.floats(0.5, 20))
    recall = [1 / (1 + (size / capacity) ** steepness) for size in sizes]
    exhaustive = max((i for i, value in enumerate(recall) if value >= 0.9), default=-1)
    guess = nearest_rung(sizes, data.draw(st.floats(0.1, 1e6)))
    found, tries = _search(len(sizes), guess, exhaustive)
    assert found == exhaustive
    assert tries <= most_tries(abs(exhaustive - guess))


@given(st.integers(1, 25), st.integers(0, 24), st.integers(-1, 24), st.randoms())
def test_an_interrupted_search_goes_on_the_same(rungs: int, guess: int, answer: int, chance: random.Random) -> None:
    """The order in which the results lie there does not matter."""
    guess, answer = min(guess, rungs - 1), min(answer, rungs - 1)
    mastered: dict[int, bool] = {}
    while (rung := next_rung(rungs, guess, mastered)) is not None:
        entries = [*mastered.items(), (rung, rung <= answer)]
        chance.shuffle(entries)
        mastered = dict(entries)
    assert bounds(rungs, mastered)[0] == answer


def test_noise_that_contradicts_the_assumption_still_ends() -> None:
    assert next_rung(10, 5, {3: False, 5: True, 6: False}) is None
    assert bounds(10, {3: False, 5: True, 6: False}) == (5, 6)


@given(st.integers(1, 1000), st.integers(0, 100_000), st.floats(1.01, 4))
def test_ladders_rise_by_the_ratio(smallest: int, more: int, ratio: float) -> None:
    sizes = ladder(smallest, smallest + more, ratio)
    assert sizes[0] == smallest
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] <= (smallest + more) * 1.001
    assert (smallest + more) / sizes[-1] < ratio * (1 + 1 / sizes[-1])
    assert all(b / a <= ratio * (1 + 2 / a) for a, b in itertools.pairwise(sizes))


def test_the_nearest_rung_is_by_ratio() -> None:
    assert nearest_rung((100, 200, 400), 140) == 0
    assert nearest_rung((100, 200, 400), 145) == 1
    assert nearest_rung((100, 200, 400), 1e9) == 2
    assert nearest_rung((100, 200, 400), math.sqrt(100 * 200) * 1.001) == 1
