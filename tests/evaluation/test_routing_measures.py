"""Formulas against enumeration, closed forms and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score, normalized_mutual_info_score

from olmoe_parrots.evaluation.routing_counts import Tables
from olmoe_parrots.evaluation.routing_data import Sample
from olmoe_parrots.evaluation.routing_measures import SUMMARIES, expected_pairs, measure, mutual_information

EXPERTS = 6


def pairs_by_enumeration(weights: list[float], picks: int) -> np.ndarray:
    """The share of draws that hold both of two experts, the diagonal those that hold one; P(set) ∝ Π weights."""
    sets = list(itertools.combinations(range(len(weights)), picks))
    odds = [math.prod(weights[e] for e in chosen) for chosen in sets]
    pairs = np.zeros((len(weights), len(weights)))
    for chosen, share in zip(sets, odds, strict=True):
        for i, j in itertools.product(chosen, repeat=2):
            pairs[i, j] += share / sum(odds)
    return pairs


@pytest.mark.parametrize("picks", [1, 2, 3, 4])
def test_expected_pairs_are_those_of_all_draws(picks: int) -> None:
    weights = np.random.default_rng(picks).uniform(0.05, 3.0, EXPERTS).tolist()
    pairs = pairs_by_enumeration(weights, picks)
    found = expected_pairs(pairs.diagonal() * 1000, 1000, picks)
    np.testing.assert_allclose(found, pairs * 1000, rtol=1e-6, atol=1e-6)


def test_an_expert_of_every_token_and_one_of_none() -> None:
    inner = pairs_by_enumeration([0.5, 1.0, 2.0, 4.0], 2)
    pairs = np.zeros((6, 6))
    pairs[1:5, 1:5] = inner
    pairs[0, 0] = 1
    pairs[0, 1:5] = pairs[1:5, 0] = inner.diagonal()
    np.testing.assert_allclose(expected_pairs(pairs.diagonal() * 500, 500, 3), pairs * 500, rtol=1e-6, atol=1e-6)


def test_even_loads_give_every_pair_alike() -> None:
    found = expected_pairs(np.full(8, 250), 1000, 2)
    assert found[~np.eye(8, dtype=bool)] == pytest.approx(np.full(56, 1000 / 28))


def sample_and_tables(top_k: int) -> tuple[Sample, Tables, np.ndarray]:
    """30 sequences of 50 tokens whose experts follow id and source a little, and the experts chosen."""
    random = np.random.default_rng(top_k)
    ids = (random.zipf(1.5, (30, 50)) % 40).astype(np.int32)
    source = np.arange(30) % 3
    sample = Sample(ids, np.ones(ids.shape, dtype=np.bool_), source, ("a", "b", "c"))
    likes = random.normal(0, 1, (40, EXPERTS))[ids] + random.normal(0, 0.5, (3, EXPERTS))[source][:, None]
    scores = torch.from_numpy(likes + random.gumbel(0, 1, likes.shape)).view(-1, EXPERTS)
    tables = Tables(sample, 1, EXPERTS, top_k)
    chosen = scores.topk(top_k).indices
    tables.add(0, torch.arange(30), chosen, scores.softmax(dim=-1))
    return sample, tables, chosen.numpy()


@pytest.mark.parametrize("top_k", [1, 2])
def test_information_is_scikit_learns(top_k: int) -> None:
    sample, tables, chosen = sample_and_tables(top_k)
    found = {row["measurement"]: row for row in measure(tables, sample)}
    experts = chosen.flatten()
    ids = sample.tokens_RS.flatten().repeat(top_k)
    sources = sample.source_R.repeat(50 * top_k)
    assert found["token_mutual_information"]["value"] == pytest.approx(mutual_info_score(ids, experts))
    assert found["source_mutual_information"]["value"] == pytest.approx(mutual_info_score(sources, experts))
    assert found["source_nmi"]["value"] == pytest.approx(normalized_mutual_info_score(sources, experts))


def test_specialization_of_one_expert_a_token_is_the_adjusted_mutual_information() -> None:
    """scikit-learn's has the exact mean over all permutations where ours has one."""
    sample, tables, chosen = sample_and_tables(1)
    found = {row["measurement"]: row for row in measure(tables, sample)}
    adjusted = adjusted_mutual_info_score(sample.tokens_RS.flatten(), chosen.flatten(), average_method="min")
    assert 0.05 < adjusted < 0.6
    assert found["token_specialization"]["value"] == pytest.approx(adjusted, abs=0.015)


def test_shares_entropies_and_groups() -> None:
    sample, tables, chosen = sample_and_tables(2)
    rows = measure(tables, sample)
    found = {row["measurement"]: row for row in rows}
    load = np.bincount(chosen.flatten(), minlength=EXPERTS)
    share = load / load.sum()
    assert found["load"]["counts"] == load.tolist()
    assert found["load"]["value"] == pytest.approx(share.tolist(), rel=1e-5)
    assert found["load_entropy"]["value"] == pytest.approx(-(share * np.log(share)).sum() / math.log(EXPERTS))
    assert found["load_max_over_mean"]["value"] == pytest.approx(load.max() / load.mean())
    of_b = chosen.reshape(30, -1)[sample.source_R == 1].flatten()
    assert found["share_by_source"]["counts"][1] == np.bincount(of_b, minlength=EXPERTS).tolist()
    assert found["share_by_source"]["tokens"] == [500, 500, 500]
    assert sum(found["share_by_frequency_band"]["tokens"]) == 1500
    bands = np.array(found["share_by_frequency_band"]["counts"])
    assert bands.sum(axis=0).tolist() == load.tolist()
    assert "share_by_part" not in found
    assert set(found) >= set(SUMMARIES) - {"part_specialization"}
    assert {row["layer"] for row in rows} == {0}


def test_information_of_a_table_worked_by_hand() -> None:
    """Rows (3, 1) and (1, 3): ln 2 less the entropy of a quarter."""
    information, groups, experts = mutual_information(np.array([[3, 1], [1, 3]]))
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert (information, groups, experts) == pytest.approx((math.log(2) - quarter, math.log(2), math.log(2)))
    assert mutual_information(np.array([[2, 4], [3, 6]]))[0] == pytest.approx(0, abs=1e-12)
