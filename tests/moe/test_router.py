"""Routing and its statistics against the formulas, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from olmoe_parrots.moe.router import Routing, TopKRouter


def route(logits_TE: Tensor, top_k: int, **options: object) -> Routing:
    """Route by given logits: the router's weight is the identity."""
    num_experts = logits_TE.shape[1]
    router = TopKRouter(num_experts, num_experts, top_k, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        router.layer.weight.copy_(torch.eye(num_experts))
    return router(logits_TE)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def random_logits(seed: int, tokens: int, experts: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator, dtype=torch.float64) * 2


SIZES = {"seed": st.integers(0, 2**31), "tokens": st.integers(1, 40), "experts": st.integers(1, 8)}


@settings(deadline=None, max_examples=50)
@given(**SIZES, top_k=st.integers(1, 4), normalize=st.booleans())
def test_weights_and_statistics(seed: int, tokens: int, experts: int, top_k: int, normalize: bool) -> None:
    top_k = min(top_k, experts)
    logits = random_logits(seed, tokens, experts)
    routing = route(logits, top_k, normalize=normalize)
    counts, mean, squared = [0] * experts, [0.0] * experts, 0.0
    for t, row in enumerate(logits.tolist()):
        scores = softmax(row)
        chosen = sorted(range(experts), key=lambda e, row=row: -row[e])[:top_k]
        assert routing.indices_TK[t].tolist() == chosen
        total = sum(scores[e] for e in chosen) if normalize else 1.0
        assert routing.weights_TK[t].tolist() == pytest.approx([scores[e] / total for e in chosen], rel=1e-12)
        for e in chosen:
            counts[e] += 1
        mean = [m + score / tokens for m, score in zip(mean, scores, strict=True)]
        squared += math.log(sum(math.exp(value) for value in row)) ** 2 / tokens
    assert routing.statistics.tokens_per_expert_E.tolist() == counts
    assert routing.statistics.mean_probability_E.tolist() == pytest.approx(mean, rel=1e-12)
    assert routing.statistics.mean_squared_logsumexp.item() == pytest.approx(squared, rel=1e-12)


def test_normalized_weights_are_a_softmax_over_the_chosen_logits() -> None:
    """As Mixtral words it."""
    logits = random_logits(1, 20, 6)
    routing = route(logits, 3, normalize=True)
    torch.testing.assert_close(routing.weights_TK, logits.topk(3).values.softmax(-1))


@settings(deadline=None, max_examples=60)
@given(**SIZES, top_k=st.integers(1, 4), factor=st.floats(0.01, 3.0))
def test_capacity_drops_the_latest_assignments(seed: int, tokens: int, experts: int, top_k: int, factor: float) -> None:
    top_k = min(top_k, experts)
    logits = random_logits(seed, tokens, experts)
    dropless, limited = route(logits, top_k), route(logits, top_k, capacity_factor=factor)
    capacity = max(1, int(top_k * tokens * factor / experts))
    queues: list[list[int]] = [[] for _ in range(experts)]
    expected = dropless.weights_TK.clone()
    for place, expert in enumerate(dropless.indices_TK.flatten().tolist()):
        if len(queues[expert]) < capacity:
            queues[expert].append(place)
        else:
            expected[place // top_k, place % top_k] = 0
    assert torch.equal(limited.weights_TK, expected)
    # a dropped assignment still says which expert was wanted, in the indices and in the load
    assert torch.equal(limited.indices_TK, dropless.indices_TK)
    for found, wanted in zip(limited.statistics, dropless.statistics, strict=True):
        assert torch.equal(found, wanted)


def test_capacity_of_an_example_worked_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [1, 3, 0], [3, 0, 1]])
    # 8 assignments over 3 experts at 0.8: two each; experts in order of arrival: 0 1 0 1 1 0 0 2
    kept = route(logits, 2, capacity_factor=0.8).weights_TK > 0
    assert kept.flatten().tolist() == [True, True, True, True, False, False, False, True]


def test_dropped_assignments_give_no_gradient() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.5]], requires_grad=True)
    route(logits, 1, capacity_factor=0.5).weights_TK.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].any() and not logits.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scores_are_computed_in_single_precision_at_least(dtype: torch.dtype) -> None:
    x = torch.randn(64, 16).to(dtype)
    router = TopKRouter(16, 8, 2).to(dtype)
    routing = router(x)
    precise = torch.promote_types(dtype, torch.float32)
    exact = (x.to(precise) @ router.layer.weight.to(precise).T).softmax(-1)
    weights, indices = exact.topk(2)
    assert torch.equal(routing.indices_TK, indices)
    assert routing.weights_TK.dtype == dtype
    torch.testing.assert_close(routing.weights_TK, weights.to(dtype))
    assert routing.statistics.mean_probability_E.dtype == precise
    torch.testing.assert_close(routing.statistics.mean_probability_E, exact.mean(0))


def test_autocast_does_not_lower_the_scores() -> None:
    x, router = torch.randn(64, 16), TopKRouter(16, 8, 2)
    plain = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = router(x)
    assert torch.equal(lowered.weights_TK, plain.weights_TK)
    assert torch.equal(lowered.indices_TK, plain.indices_TK)


@pytest.mark.parametrize("autocast", [False, True])
def test_probabilities_are_averaged_in_the_compute_precision_on_demand(autocast: bool) -> None:
    """Whether that is the type of the tokens or the one that autocast computes in."""
    x = torch.randn(64, 16).to(torch.float32 if autocast else torch.bfloat16)
    router = TopKRouter(16, 8, 2, loss_in_fp32=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low = router(x).statistics.mean_probability_E
        router.loss_in_fp32 = True
        high = router(x).statistics.mean_probability_E
    exact = (x.float() @ router.layer.weight.T).softmax(-1)
    torch.testing.assert_close(high, exact.mean(0))
    assert torch.equal(low, exact.bfloat16().mean(0).float())
    assert not torch.equal(low, high)


def test_counts_carry_no_gradient_and_the_other_statistics_do() -> None:
    logits = random_logits(0, 8, 4).requires_grad_()
    statistics = route(logits, 2).statistics
    assert not statistics.tokens_per_expert_E.requires_grad
    for statistic in (statistics.mean_probability_E[0], statistics.mean_squared_logsumexp):
        (gradient,) = torch.autograd.grad(statistic, logits, retain_graph=True)
        assert gradient.any()


@pytest.mark.parametrize("top_k", [-1, 0, 5])
def test_top_k_out_of_range_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=rf"between 1 and the number of experts: k={top_k}, experts=4"):
        TopKRouter(8, 4, top_k)
