"""The MoE layer against a plain loop over tokens, written out in float64 without any of its code."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from olmoe_parrots.moe.experts import Activation
from olmoe_parrots.moe.layer import MoELayer
from olmoe_parrots.moe.router import TopKRouter

POINTWISE = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
BF16_TOLERANCE = 2e-2


class Options(NamedTuple):
    tokens: int = 12
    experts: int = 4
    top_k: int = 2
    width: int = 8
    hidden: int = 12
    activation: str = "gelu"
    gated: bool = False
    bias: bool = False
    normalize: bool = False
    shared_expert: bool = False
    capacity_factor: float | None = None
    load: str = "random"
    """``starved``: no token goes to the last expert unless it must; ``crowded``: every token goes to expert 0."""
    seed: int = 0


def make_options(width_step: int) -> st.SearchStrategy[Options]:
    def limit_top_k(options: Options) -> Options:
        return options._replace(top_k=min(options.top_k, options.experts))

    width = st.integers(1, 4).map(lambda n: n * width_step)
    return st.builds(
        Options,
        tokens=st.integers(1, 40),
        experts=st.integers(1, 8),
        top_k=st.integers(1, 4),
        width=width,
        hidden=width,
        activation=st.sampled_from(sorted(POINTWISE)),
        gated=st.booleans(),
        bias=st.booleans(),
        normalize=st.booleans(),
        shared_expert=st.booleans(),
        capacity_factor=st.sampled_from([None, None, 0.05, 0.5, 1.0, 1.25]),
        load=st.sampled_from(["random", "starved", "crowded"]),
        seed=st.integers(0, 2**31),
    ).map(limit_top_k)


def make_layer(options: Options, backend: str, dtype: torch.dtype) -> MoELayer:
    torch.manual_seed(options.seed)
    router = TopKRouter(
        options.width,
        options.experts,
        options.top_k,
        normalize=options.normalize,
        capacity_factor=options.capacity_factor,
    )
    activation = Activation(POINTWISE[options.activation], options.gated)
    layer = MoELayer(
        options.width,
        options.hidden,
        router,
        activation,
        bias=options.bias,
        shared_expert=options.shared_expert,
        backend=backend,
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        # with the tokens' first feature at 1, the router's first column is a bias
        if options.load == "starved":
            layer.router.layer.weight[-1, 0] = -30
        elif options.load == "crowded":
            layer.router.layer.weight[0, 0] = 30
    return layer.to(dtype)


def make_tokens(options: Options, dtype: torch.dtype) -> Tensor:
    x = torch.randn(options.tokens, options.width)
    x[:, 0] = 1
    return x.to(dtype).requires_grad_()


def feed_forward(
    x_D: Tensor, w_in_ID: Tensor, b_in_I: Tensor | None, w_out_HD: Tensor, b_out_D: Tensor | None, options: Options
) -> Tensor:
    hidden = w_in_ID @ x_D
    if b_in_I is not None:
        hidden = hidden + b_in_I
    if options.gated:
        half = len(hidden) // 2
        hidden = POINTWISE[options.activation](hidden[half:]) * hidden[:half]
    else:
        hidden = POINTWISE[options.activation](hidden)
    y = hidden @ w_out_HD
    return y if b_out_D is None else y + b_out_D


class Reference(NamedTuple):
    output_TD: Tensor
    smallest_gap: float
    """Between the logits of two experts of one token, of which routing in lower precision may take the wrong one."""
    tokens_per_expert: list[int]
    dropped: int


def per_token_loop(x_TD: Tensor, p: dict[str, Tensor], options: Options) -> Reference:
    rows, gaps, count, dropped = [], [float("inf")], [0] * options.experts, 0
    capacity = None
    if options.capacity_factor is not None:
        assignments = options.top_k * options.tokens
        capacity = max(1, int(assignments * options.capacity_factor / options.experts))
    for x_D in x_TD:
        logits = p["router.layer.weight"] @ x_D
        scores = (logits - logits.max()).exp()
        scores = scores / scores.sum()
        ranked = sorted(range(options.experts), key=lambda e, scores=scores: -float(scores[e].detach()))
        ordered = sorted(logits.tolist())
        gaps += [high - low for low, high in itertools.pairwise(ordered)]
        chosen = ranked[: options.top_k]
        total = sum(scores[e] for e in chosen)
        row = torch.zeros_like(x_D)
        for e in chosen:
            count[e] += 1
            if capacity is not None and count[e] > capacity:
                dropped += 1
                continue
            weight = scores[e] / total if options.normalize else scores[e]
            b_in, b_out = (p[f"{name}.bias"][e] if options.bias else None for name in ("w_in", "w_out"))
            row = row + weight * feed_forward(x_D, p["w_in.weight"][e], b_in, p["w_out.weight"][e], b_out, options)
        if options.shared_expert:
            w_in, w_out = p["shared_expert.w_in.weight"], p["shared_expert.w_out.weight"]
            b_in, b_out = p.get("shared_expert.w_in.bias"), p.get("shared_expert.w_out.bias")
            row = row + feed_forward(x_D, w_in, b_in, w_out.T, b_out, options)
        rows.append(row)
    return Reference(torch.stack(rows), min(gaps), count, dropped)


def gradients(output: Tensor, inputs: list[Tensor], seed: int) -> list[Tensor]:
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((output * probe.to(output.dtype)).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def check_against_loop(options: Options, backend: str, dtype: torch.dtype, tolerance: float) -> Reference:
    layer = make_layer(options, backend, dtype)
    x = make_tokens(options, dtype)
    doubles = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    x_ref = x.detach().double().requires_grad_()
    reference = per_token_loop(x_ref, doubles, options)
    if dtype != torch.float64:
        assume(reference.smallest_gap > 1e-4)
    output, statistics = layer(x)
    assert output.dtype == dtype
    assert_near(output.detach(), reference.output_TD.detach(), tolerance)
    assert statistics.tokens_per_expert_E.tolist() == reference.tokens_per_expert
    found = gradients(output, [x, *layer.parameters()], options.seed)
    expected = gradients(reference.output_TD, [x_ref, *doubles.values()], options.seed)
    for actual, wanted in zip(found, expected, strict=True):
        assert_near(actual, wanted, tolerance)
    return reference


@settings(deadline=None, max_examples=60)
@given(options=make_options(width_step=3))
def test_loop_and_threads_equal_per_token_loop_in_float64(options: Options) -> None:
    for backend in ("loop", "threaded"):
        check_against_loop(options, backend, torch.float64, 1e-12)


# relu has a kink, where single precision may take the other side: the examples are the same in every run
@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(options=make_options(width_step=4))
def test_backends_equal_per_token_loop_in_float32(backend: str, options: Options) -> None:
    check_against_loop(options, backend, torch.float32, 1e-5)


@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        *({"top_k": k} for k in (1, 3, 4)),
        *({"activation": name} for name in POINTWISE),
        {"bias": True},
        {"normalize": True},
        {"shared_expert": True, "bias": True},
        {"capacity_factor": 0.5, "normalize": True},
    ],
    ids=str,
)
def test_every_option_alone(backend: str, gated: bool, changes: dict[str, Any]) -> None:
    """What the property tests draw at random, once each for certain."""
    dtype, tolerance = (torch.float32, 1e-5) if backend == "grouped" else (torch.float64, 1e-12)
    reference = check_against_loop(Options(gated=gated, seed=3)._replace(**changes), backend, dtype, tolerance)
    assert (reference.dropped > 0) == ("capacity_factor" in changes)


@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
def test_experts_without_tokens_and_one_with_all(backend: str) -> None:
    options = Options(top_k=1, bias=True, load="starved", seed=1)
    assert check_against_loop(options, backend, torch.float32, 1e-5).tokens_per_expert[-1] == 0
    options = options._replace(load="crowded")
    assert check_against_loop(options, backend, torch.float32, 1e-5).tokens_per_expert == [12, 0, 0, 0]
    layer = make_layer(options, backend, torch.float32)
    layer(make_tokens(options, torch.float32))[0].sum().backward()
    assert layer.w_in.weight.grad is not None and layer.w_in.bias.grad is not None
    assert not layer.w_in.weight.grad[1:].any() and not layer.w_in.bias.grad[1:].any()
    assert layer.w_in.weight.grad[0].any()


@pytest.mark.parametrize("backend", ["loop", "threaded"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_gradcheck(gated: bool, normalize: bool, backend: str) -> None:
    options = Options(tokens=5, width=3, hidden=2, gated=gated, bias=True, normalize=normalize, shared_expert=True)
    layer = make_layer(options, backend, torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values, strict=True))
        output, statistics = torch.func.functional_call(layer, parameters, (x,))
        return output, statistics.mean_probability_E, statistics.mean_squared_logsumexp

    inputs = (make_tokens(options, torch.float64), *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
def test_sum_backward_and_strided_inputs(backend: str) -> None:
    """The gradient of ``sum()`` has no strides of its own, which ``grouped_mm`` refuses."""
    options = Options(tokens=10, seed=4)
    layer = make_layer(options, backend, torch.float32)
    x = make_tokens(options, torch.float32)
    layer(x)[0].sum().backward()
    doubles = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    x_ref = x.detach().double().requires_grad_()
    per_token_loop(x_ref, doubles, options).output_TD.sum().backward()
    assert_near(x.grad, x_ref.grad, 1e-5)
    for name, parameter in layer.named_parameters():
        assert_near(parameter.grad, doubles[name].grad, 1e-5)
    transposed = x.detach().t().contiguous().t()
    assert not transposed.is_contiguous()
    assert_near(layer(transposed)[0], layer(x)[0], 1e-6)


def test_leading_dimensions_are_kept() -> None:
    options = Options(tokens=12)
    layer, x = make_layer(options, "loop", torch.float64), make_tokens(options, torch.float64)
    flat, _ = layer(x)
    batched, _ = layer(x.view(3, 4, -1))
    torch.testing.assert_close(batched, flat.view(3, 4, -1))


@pytest.mark.parametrize("gated", [False, True])
def test_in_bfloat16_backends_are_near_the_loop(gated: bool) -> None:
    options = Options(tokens=32, width=16, hidden=32, gated=gated, bias=True, seed=5)
    outputs, grads = [], []
    for backend in ("loop", "threaded", "grouped"):
        layer = make_layer(options, backend, torch.bfloat16)
        x = make_tokens(options, torch.bfloat16)
        output, _ = layer(x)
        assert output.dtype == torch.bfloat16
        outputs.append(output.detach())
        grads.append(gradients(output, [x, *layer.parameters()], 0))
    for output, found in zip(outputs[1:], grads[1:], strict=True):
        assert_near(output, outputs[0], BF16_TOLERANCE)
        for actual, looped in zip(found, grads[0], strict=True):
            assert_near(actual, looped, BF16_TOLERANCE)


@pytest.mark.parametrize("backend", ["loop", "threaded", "grouped"])
@pytest.mark.parametrize("shared_expert", [False, True])
def test_autocast_computes_in_bfloat16(backend: str, shared_expert: bool) -> None:
    options = Options(tokens=32, width=16, hidden=32, bias=True, shared_expert=shared_expert, seed=6)
    layer, x = make_layer(options, backend, torch.float32), make_tokens(options, torch.float32)
    plain, exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, statistics = layer(x)
    assert output.dtype == torch.bfloat16
    assert not torch.equal(output.float(), plain)
    assert_near(output.detach(), plain.detach(), BF16_TOLERANCE)
    # the router itself stays in single precision
    for found, wanted in zip(statistics, exact, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
    found = gradients(output, [x, *layer.parameters()], 0)
    expected = gradients(plain, [x, *layer.parameters()], 0)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        assert_near(actual, wanted, BF16_TOLERANCE)


def test_auto_runs_where_grouped_refuses() -> None:
    for changes, dtype, reason in (
        ({"width": 6}, torch.float32, "multiple of 16 bytes, a width is 6"),
        ({"hidden": 10}, torch.float32, "multiple of 16 bytes, a width is 10"),
        ({"width": 12}, torch.bfloat16, "multiple of 16 bytes, a width is 12"),
        ({}, torch.float64, "does not take torch.float64"),
    ):
        options = Options()._replace(**changes)
        x = make_tokens(options, dtype)
        looped, _ = make_layer(options, "loop", dtype)(x)
        chosen, _ = make_layer(options, "auto", dtype)(x)
        assert_near(chosen.detach(), looped.detach(), BF16_TOLERANCE if dtype == torch.bfloat16 else 1e-5)
        with pytest.raises(ValueError, match=f"moe_mlp_impl=grouped cannot run: .*{reason}"):
            make_layer(options, "grouped", dtype)(x)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown backend 'sparse2': use auto, loop, threaded, grouped, megablocks"):
        make_layer(Options(), "sparse2", torch.float32)
