"""The search for the largest task size that a model still masters, with as few training runs as possible.

Sizes stand on a ladder, each a fixed ratio above the last. It is taken that a model that masters a size masters every
smaller one. From a guessed rung the search doubles its steps up (or down) until the answer lies between a rung that was
mastered and one that was not, and halves that range until the two are neighbours. The next rung follows from the
results that are there and from nothing else, so a search that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def ladder(smallest: int, largest: int, ratio: float) -> tuple[int, ...]:
    """Sizes from `smallest` up to at most `largest`, each `ratio` times the last, rounded to whole numbers.

    Args:
        ratio: above 1; the resolution to which a capacity is told.
    """
    rungs = 1 + int(math.log(largest / smallest) / math.log(ratio) + 1e-9)
    return tuple(dict.fromkeys(round(smallest * ratio**i) for i in range(rungs)))


def nearest_rung(sizes: tuple[int, ...], guess: float) -> int:
    """The place of the size nearest to `guess` by ratio."""
    return min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / max(guess, 1e-9))))


def bounds(rungs: int, mastered: Mapping[int, bool]) -> tuple[int, int]:
    """The highest rung known to be mastered (-1: none yet) and the lowest one above it known not to be (`rungs`)."""
    low = max((rung for rung, right in mastered.items() if right), default=-1)
    return low, min((rung for rung, right in mastered.items() if not right and rung > low), default=rungs)


def next_rung(rungs: int, guess: int, mastered: Mapping[int, bool]) -> int | None:
    """The rung to try next, or None when the capacity is known: it is then the lower of :func:`bounds`.

    An answer D rungs from the guess takes at most ``2·floor(log2(D + 1)) + 2`` tries.

    Args:
        rungs: how many there are.
        guess: where to begin.
        mastered: what the tries so far have shown, by rung.
    """
    low, high = bounds(rungs, mastered)
    if low + 1 == high:
        return None
    if low == -1 and high == rungs:
        return guess
    if high == rungs:
        return min(rungs - 1, 2 * low - guess + 1) if low >= guess else (low + high) // 2
    if low == -1:
        return max(0, 2 * high - guess - 1) if high <= guess else (low + high) // 2
    return (low + high) // 2


def most_tries(distance: int) -> int:
    """The most tries that an answer `distance` rungs from the guess takes."""
    return 2 * int(math.log2(distance + 1)) + 2
