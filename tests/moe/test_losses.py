"""The auxiliary losses against formulas summed token by token, and against Hugging Face's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from olmoe_parrots.moe.losses import load_balancing_loss, router_z_loss
from olmoe_parrots.moe.router import RoutingStatistics, TopKRouter


def statistics_of(logits_TE: Tensor, top_k: int) -> RoutingStatistics:
    num_experts = logits_TE.shape[1]
    router = TopKRouter(num_experts, num_experts, top_k)
    with torch.no_grad():
        router.layer.weight.copy_(torch.eye(num_experts))
    return router(logits_TE).statistics


def random_layers(seed: int, layers: int, tokens: int, experts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, experts, generator=generator, dtype=torch.float64) for _ in range(layers)]


def balancing_by_hand(logits_TE: Tensor, top_k: int) -> float:
    (tokens, experts), count, mean = logits_TE.shape, [0] * logits_TE.shape[1], [0.0] * logits_TE.shape[1]
    for row in logits_TE.tolist():
        total = sum(math.exp(value) for value in row)
        for e in sorted(range(experts), key=lambda e, row=row: -row[e])[:top_k]:
            count[e] += 1
        for e in range(experts):
            mean[e] += math.exp(row[e]) / total / tokens
    return experts * sum(count[e] / (tokens * top_k) * mean[e] for e in range(experts))


def z_by_hand(logits_TE: Tensor) -> float:
    return sum(math.log(sum(math.exp(value) for value in row)) ** 2 for row in logits_TE.tolist()) / len(logits_TE)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    layers=st.integers(1, 4),
    tokens=st.integers(1, 20),
    experts=st.integers(1, 8),
    top_k=st.integers(1, 4),
)
def test_formulas(seed: int, layers: int, tokens: int, experts: int, top_k: int) -> None:
    top_k = min(top_k, experts)
    logits = random_layers(seed, layers, tokens, experts)
    statistics = [statistics_of(layer, top_k) for layer in logits]
    balancing = sum(balancing_by_hand(layer, top_k) for layer in logits) / layers
    # the counts, and so the shares, are single precision
    assert load_balancing_loss(statistics).item() == pytest.approx(balancing, rel=1e-6)
    assert router_z_loss(statistics).item() == pytest.approx(
        sum(z_by_hand(layer) for layer in logits) / len(logits), rel=1e-12
    )


@pytest.mark.parametrize("top_k", [1, 2])
def test_even_routing_gives_one(top_k: int) -> None:
    """Each expert is the best and the second best of one token in four, and all are as probable on average."""
    row = torch.tensor([2.0, 1.0, 0.0, -1.0])
    logits = torch.stack([row.roll(shift) for shift in range(4)])
    statistics = statistics_of(logits, top_k)
    assert statistics.tokens_per_expert_E.tolist() == [top_k] * 4
    assert load_balancing_loss([statistics]).item() == pytest.approx(1, abs=1e-7)
    assert load_balancing_loss([statistics] * 3).item() == pytest.approx(1, abs=1e-7)


def test_one_expert_for_all_gives_the_number_of_experts() -> None:
    logits = torch.tensor([[60.0, 0, 0, 0, 0]]).repeat(9, 1)
    assert load_balancing_loss([statistics_of(logits, 1)]).item() == pytest.approx(5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_hugging_face_is_k_times_ours_for_one_layer(top_k: int) -> None:
    (logits,) = random_layers(5, 1, 24, 6)
    theirs = load_balancing_loss_func((logits,), num_experts=6, top_k=top_k)
    # theirs counts in single precision
    assert load_balancing_loss([statistics_of(logits, top_k)]).item() * top_k == pytest.approx(theirs.item(), rel=1e-6)


def test_hugging_face_pools_layers_where_we_average_losses() -> None:
    first, second = random_layers(6, 2, 24, 6)
    for layers, equal in (((first, first), True), ((first, second), False)):
        theirs = load_balancing_loss_func(layers, num_experts=6, top_k=2).item()
        ours = 2 * load_balancing_loss([statistics_of(layer, 2) for layer in layers]).item()
        assert (ours == pytest.approx(theirs, rel=1e-6)) == equal


def test_gradient_flows_through_probabilities_alone() -> None:
    (logits,) = random_layers(7, 1, 10, 4)
    logits.requires_grad_()
    load_balancing_loss([statistics_of(logits, 2)]).backward()
    by_hand = logits.detach().clone().requires_grad_()
    probabilities = by_hand.softmax(-1)
    share = torch.bincount(probabilities.detach().topk(2).indices.flatten(), minlength=4) / 20
    (4 * (share * probabilities.mean(0)).sum()).backward()
    torch.testing.assert_close(logits.grad, by_hand.grad)

    counts, probability = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
    squared = torch.rand((), requires_grad=True)
    router_z_loss([RoutingStatistics(counts, probability, squared)]).backward()
    assert counts.grad is None and probability.grad is None and squared.grad is not None


def test_given_counts_take_the_place_of_the_pass_own() -> None:
    layers = random_layers(8, 2, 10, 4)
    statistics = [statistics_of(layer, 2) for layer in layers]
    counts = torch.tensor([[7, 1, 1, 1], [0, 0, 10, 10]], dtype=torch.float64)
    expected = 0.0
    for layer, row in zip(layers, counts.tolist(), strict=True):
        mean = layer.softmax(-1).mean(0).tolist()
        expected += 4 * sum(count / sum(row) * m for count, m in zip(row, mean, strict=True)) / 2
    for scale in (1, 1000):
        found = load_balancing_loss(statistics, tokens_per_expert_LE=counts * scale)
        assert found.item() == pytest.approx(expected, rel=1e-12)
    own = torch.stack([layer.tokens_per_expert_E for layer in statistics])
    assert load_balancing_loss(statistics, tokens_per_expert_LE=own).item() == load_balancing_loss(statistics).item()
    assert load_balancing_loss(statistics).item() != pytest.approx(expected, rel=1e-6)


def test_global_counts_make_the_loss_linear_in_the_tokens() -> None:
    """With the counts of the whole batch, the losses of its halves average to the loss of the whole."""
    (logits,) = random_layers(9, 1, 20, 4)
    whole, halves = statistics_of(logits, 2), [statistics_of(half, 2) for half in logits.split(10)]
    counts = whole.tokens_per_expert_E[None]
    parts = [load_balancing_loss([half], tokens_per_expert_LE=counts) for half in halves]
    torch.testing.assert_close(sum(parts) / 2, load_balancing_loss([whole]))
    own = [load_balancing_loss([half]) for half in halves]
    assert not torch.isclose(sum(own) / 2, load_balancing_loss([whole]))
    torch.testing.assert_close(sum(router_z_loss([half]) for half in halves) / 2, router_z_loss([whole]))
