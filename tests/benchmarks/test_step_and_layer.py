"""The floors that the benchmarks of a layer and of a step compare with: their FLOPs, counted by torch."""

import moe_layer
import pytest
import torch
import train_step
from torch.utils.flop_counter import FlopCounterMode

from olmoe_parrots.accounting import ModelShape


def _flops(run) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        run()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("gated", [False, True])
def test_the_floor_of_a_layer_has_the_layers_products(gated: bool) -> None:
    tokens, d, experts = 64, 32, 4
    x, grad = torch.randn(tokens, d, requires_grad=True), torch.randn(tokens, d)
    layer = moe_layer.prepare(moe_layer.ours(d, experts, gated, "loop"), x, grad, skewed=False)
    floor = moe_layer.products(tokens, d, experts, gated)
    assert sum(_flops(floor).values()) == sum(_flops(layer).values())


def test_every_backend_is_timed_once_a_round() -> None:
    row = moe_layer.measure((64, 32, 4, True), gated=False, rounds=2)
    ours = {f"ours, {backend}" for backend in ("threaded", "grouped", "loop")}
    assert set(row["seconds"]) == {*ours, "products", "copies"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row["seconds"].values())
    assert row["largest_share"] > 1 / 4


def test_the_products_of_a_step_are_those_of_a_gated_moe(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"TOKENS": 1024, "SEQUENCES": 2, "D": 32, "LAYERS": 2, "HEADS": 2, "VOCABULARY": 100}
    for name, size in sizes.items():
        monkeypatch.setattr(train_step, name, size)
    (step,) = train_step.products_alone().values()
    found = _flops(step)
    shape = ModelShape(d_model=32, n_layers=2, n_heads=2, hidden_size=32, vocab_size=100, sequence_length=512,
                       num_experts=16, top_k=2, gated=True)  # fmt: skip
    layer = shape.attention_params() + 2 * 3 * 32 * 32
    assert found["aten.mm"] == 6 * 1024 * (2 * layer + 32 * 100)
