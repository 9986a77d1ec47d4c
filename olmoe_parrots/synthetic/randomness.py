"""Random numbers that depend on a seed and a key alone, and are the same under every numpy.

numpy keeps the output of its bit generators and of SeedSequence fixed between versions, not that of its
distributions. So everything here is made from raw 64-bit words.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[Any]
_ROUNDS = 8
# Domains up to 2^62 keep every product and sum below in 64 bits.
LARGEST_DOMAIN = 1 << 62


class Stream:
    """A sequence of random integers; two streams of one seed and different keys are independent.

    Args:
        seed: of the data set, not negative.
        key: which stream, as a SeedSequence's spawn key.
    """

    def __init__(self, seed: int, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))

    def below(self, bound: int | Integers, shape: tuple[int, ...]) -> Integers:
        """Integers of `shape`, uniform in [0, bound); `bound` is at most 2^31 and broadcasts against `shape`.

        Each value has probability 1/bound to within 2^-32.
        """
        count = math.prod(shape)
        words = self._bits.random_raw((count + 1) // 2).view(np.uint32)[:count].reshape(shape).astype(np.uint64)
        words *= np.asarray(bound, dtype=np.uint64)
        words >>= np.uint64(32)
        return words.view(np.int64)

    def subsets(self, pool: int, count: int, batch: int) -> Integers:
        """`count` distinct integers of [0, pool) in random order, for each of `batch` columns: (count, batch) uint16.

        Every ordered choice has the same probability. It is a Fisher-Yates shuffle of all columns at once, stopped
        after `count` steps. `pool` is at most 2^16.
        """
        values = np.repeat(np.arange(pool, dtype=np.uint16)[:, None], batch, axis=1)
        flat, columns = values.reshape(-1), np.arange(batch)
        steps = np.arange(count)[:, None]
        places = (steps + self.below(pool - steps, (count, batch))) * batch + columns
        chosen = np.empty((count, batch), dtype=np.uint16)
        for step in range(count):
            chosen[step] = flat[places[step]]
            flat[places[step]] = values[step]
        return chosen


def mix(words: Integers) -> Integers:
    """A fixed bijection of uint64 whose output looks random: the finalizer of SplitMix64 (Steele and others, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Permutation:
    """A random-looking bijection of [0, size) that gives any place at once, so that blocks can be made in any order.

    A Feistel network over two digits of mixed radix, whose product is the first that reaches `size`; a value beyond
    `size` is sent through again until it falls inside ("cycle walking"), which keeps it a bijection.

    Args:
        size: of the domain, at most LARGEST_DOMAIN.
        seed, key: as of a Stream.
    """

    def __init__(self, size: int, seed: int, *key: int) -> None:
        self.size = size
        high = math.isqrt(size - 1) + 1
        low = -(-size // high)
        self._radixes = (np.uint64(high), np.uint64(low))
        words = np.random.SeedSequence(seed, spawn_key=key).generate_state(_ROUNDS, np.uint64)
        self._round_keys = words

    def __call__(self, places: Integers) -> Integers:
        """The images of `places`, integers of [0, size): uint64 of the same shape."""
        values = self._once(np.asarray(places, dtype=np.uint64))
        while (outside := values >= np.uint64(self.size)).any():
            values[outside] = self._once(values[outside])
        return values

    def _once(self, values: Integers) -> Integers:
        low = self._radixes[1]
        digits = [values // low, values % low]
        for number, key in enumerate(self._round_keys):
            changed, radix = number % 2, self._radixes[number % 2]
            # 32 random bits times a radix below 2^32, as in Stream.below
            shift = ((mix(digits[1 - changed] + key) >> np.uint64(32)) * radix) >> np.uint64(32)
            digits[changed] = (digits[changed] + shift) % radix
        return digits[0] * low + digits[1]
