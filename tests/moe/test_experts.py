"""How the experts' weights are held and which backend computes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from olmoe_parrots.moe.experts import (
    BACKENDS,
    Activation,
    ExpertLinear,
    ExpertWeights,
    choose_backend,
    grouped_experts,
    why_not,
)


def make_weights(
    width: int = 8, hidden: int = 8, bias: bool = False, dtype: torch.dtype = torch.float32
) -> ExpertWeights:
    w_in, w_out = torch.randn(3, hidden, width, dtype=dtype), torch.randn(3, hidden, width, dtype=dtype)
    b_in, b_out = torch.randn(3, hidden, dtype=dtype), torch.randn(3, width, dtype=dtype)
    return ExpertWeights(w_in, w_out, b_in, b_out) if bias else ExpertWeights(w_in, w_out)


def make_tokens(width: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, width, dtype=dtype)


@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
def test_worked_example(backend: str) -> None:
    """Two experts small enough to work out by hand: one doubles, one triples and adds one."""
    eye = torch.eye(4)
    experts = ExpertWeights(
        torch.stack([2 * eye, 3 * eye]),
        torch.stack([eye, eye]),
        torch.zeros(2, 4),
        torch.tensor([[0.0] * 4, [1.0] * 4]),
    )
    x = torch.tensor([[1.0, 2, 3, 4], [-1, 1, -1, 1], [0, 0, 0, 8]])
    indices = torch.tensor([[0, 1], [1, 0], [0, 1]])
    weights = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.0, 2.0]])
    # relu makes nothing of the second token's negative features, the third adds 2 * 1 everywhere
    expected = torch.tensor([[1 + 1.0, 2 + 1.75, 3 + 2.5, 4 + 3.25], [1, 4, 1, 4], [2, 2, 2, 50]])
    assert torch.equal(BACKENDS[backend](x, weights, indices, experts, Activation(F.relu)), expected)


def test_an_expert_chosen_twice_by_a_token_counts_twice() -> None:
    experts, x = make_weights(), make_tokens()
    weights, twice = torch.rand(5, 2), torch.ones(5, 2, dtype=torch.long)
    once = F.relu(x @ experts.w_in_EID[1].T) @ experts.w_out_EHD[1] * weights.sum(1, keepdim=True)
    for name in ("loop", "threaded", "grouped"):
        torch.testing.assert_close(BACKENDS[name](x, weights, twice, experts, Activation(F.relu)), once)


def test_gated_activation_takes_value_then_gate() -> None:
    """In the order of OLMo's SwiGLU, so that its checkpoints can be carried over."""
    value, gate = torch.randn(3, 4), torch.randn(3, 4)
    found = Activation(F.silu, gated=True)(torch.cat([value, gate], dim=-1))
    torch.testing.assert_close(found, gate * torch.sigmoid(gate) * value)
    assert not torch.allclose(found, value * torch.sigmoid(value) * gate)


def test_auto_takes_threads_on_the_cpu_and_under_compilation_grouped_or_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", make_tokens(6), make_weights(6)) == "threaded"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_backend("auto", make_tokens(), make_weights()) == "grouped"
    assert choose_backend("auto", make_tokens(), make_weights(bias=True)) == "grouped"
    assert choose_backend("auto", make_tokens(6), make_weights(6)) == "loop"
    assert choose_backend("auto", make_tokens(), make_weights(hidden=6)) == "loop"
    assert choose_backend("auto", make_tokens(dtype=torch.float64), make_weights(dtype=torch.float64)) == "loop"
    # 12 elements are 48 bytes in single precision and 24 in half of it
    assert choose_backend("auto", make_tokens(12), make_weights(12)) == "grouped"
    half = torch.bfloat16
    assert choose_backend("auto", make_tokens(12, half), make_weights(12, dtype=half)) == "loop"
    assert choose_backend("auto", make_tokens(16, half), make_weights(16, dtype=half)) == "grouped"


def test_a_named_backend_runs_or_says_why_not() -> None:
    assert choose_backend("loop", make_tokens(6), make_weights(6)) == "loop"
    assert choose_backend("grouped", make_tokens(), make_weights()) == "grouped"
    with pytest.raises(ValueError, match="threads are the CPU's, and the model is on meta"):
        choose_backend("threaded", make_tokens().to("meta"), make_weights())
    with pytest.raises(ValueError, match=r"^moe_mlp_impl=grouped cannot run: grouped_mm does not take torch.float64$"):
        choose_backend("grouped", make_tokens(dtype=torch.float64), make_weights(dtype=torch.float64))
    reason = "moe_mlp_impl=grouped cannot run: grouped_mm needs rows of a multiple of 16 bytes, a width is 6"
    with pytest.raises(ValueError, match=f"^{reason}$"):
        choose_backend("grouped", make_tokens(6), make_weights(6))
    with pytest.raises(ValueError, match="MegaBlocks' experts have no biases"):
        choose_backend("megablocks", make_tokens(), make_weights(bias=True))


@pytest.mark.parametrize("width", [4, 8, 6, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_grouped_is_refused_exactly_where_torch_refuses_it(width: int, dtype: torch.dtype) -> None:
    x, experts = make_tokens(width, dtype).requires_grad_(), make_weights(width, dtype=dtype)
    indices, weights = torch.tensor([[0], [1], [2], [2], [1]]), torch.ones(5, 1, dtype=dtype)
    if why_not("grouped", x, experts) is None:
        grouped_experts(x, weights, indices, experts, Activation(F.relu)).sum().backward()
        assert x.grad is not None
    else:
        with pytest.raises((RuntimeError, ValueError)):
            grouped_experts(x, weights, indices, experts, Activation(F.relu)).sum().backward()


def test_expert_linear_is_a_linear_that_is_never_called() -> None:
    experts = ExpertLinear(3, 5, 4, bias_width=4)
    assert isinstance(experts, nn.Linear)
    assert {name: tuple(p.shape) for name, p in experts.named_parameters()} == {"weight": (3, 5, 4), "bias": (3, 4)}
    assert [name for name, _ in ExpertLinear(3, 5, 4).named_parameters()] == ["weight"]
    assert repr(experts) == "ExpertLinear(weight=(3, 5, 4), bias=True)"
    with pytest.raises(TypeError, match="used by a backend"):
        experts(torch.randn(2, 4))
