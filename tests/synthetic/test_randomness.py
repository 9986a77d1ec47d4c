"""Random numbers against the laws they should follow. Seeds are fixed: a wrong law fails, chance does not."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from olmoe_parrots.synthetic.randomness import LARGEST_DOMAIN, Permutation, Stream


@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_permutation_meets_every_place_once(size: int, seed: int, key: int) -> None:
    images = Permutation(size, seed, key)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_the_largest_domain_is_met_without_overflow() -> None:
    places = np.array([0, 1, LARGEST_DOMAIN // 3, LARGEST_DOMAIN - 1], dtype=np.uint64)
    images = Permutation(LARGEST_DOMAIN, 3)(places)
    assert len(set(images.tolist())) == 4
    assert int(images.max()) < LARGEST_DOMAIN


def test_a_permutation_has_no_order_left_in_it() -> None:
    size, bins = 26**4, 16
    images = Permutation(size, 7)(np.arange(size)).astype(np.int64)
    first = images * bins // size
    # the images of neighbours, and of neighbours after wrapping by one digit, are independent
    for shift in (1, 26, int(np.sqrt(size))):
        table = np.zeros((bins, bins))
        np.add.at(table, (first[:-shift], first[shift:]), 1)
        assert chi2_contingency(table).pvalue > 1e-3
    steps = np.diff(images) % size
    assert chisquare(np.bincount(steps * bins // size, minlength=bins)).pvalue > 1e-3


def test_permutations_of_other_seeds_and_keys_are_unrelated() -> None:
    size = 100_000
    one = Permutation(size, 1, 0)(np.arange(size))
    for other in (Permutation(size, 2, 0), Permutation(size, 1, 1)):
        # a random permutation has one fixed place on average, Poisson distributed
        assert (one == other(np.arange(size))).sum() < 10


def test_numbers_below_a_bound_are_uniform() -> None:
    drawn = Stream(5, 1).below(np.array([[7], [10]]), (2, 70_000))
    assert chisquare(np.bincount(drawn[0], minlength=7)).pvalue > 1e-3
    assert chisquare(np.bincount(drawn[1], minlength=10)).pvalue > 1e-3
    assert drawn.min() == 0
    assert drawn[0].max() == 6


def test_a_stream_starts_with_the_words_of_numpys_generator() -> None:
    words = np.random.PCG64(np.random.SeedSequence(9).spawn(3)[2]).random_raw(2).view(np.uint32).astype(object)
    assert Stream(9, 2).below(1000, (4,)).tolist() == [word * 1000 >> 32 for word in words]


def test_ordered_subsets_are_uniform() -> None:
    chosen = Stream(11).subsets(5, 3, 60_000).astype(np.int64)
    codes = chosen[0] * 25 + chosen[1] * 5 + chosen[2]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 5 * 4 * 3
    assert chisquare(counts).pvalue > 1e-3
