"""The real MegaBlocks layer against a per-token loop, our use of it, and the stand-ins for its compiled modules.

Sizes in names: T tokens, D model width, H hidden width, E experts, K experts per token. MegaBlocks wants H * E >= 128.
"""

import itertools
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from olmoe_parrots.moe import megablocks, megablocks_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.megablocks

T, D, H, E = 16, 16, 32, 4
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make_arguments(package: ModuleType, top_k: int, **options: Any) -> Any:
    settings = dict(activation_fn=F.silu, bias=False, return_bias=False, fp16=False, mlp_impl="grouped", device=DEVICE)
    return package.Arguments(
        hidden_size=D,
        ffn_hidden_size=H,
        moe_num_experts=E,
        moe_top_k=top_k,
        init_method=lambda weight: torch.nn.init.normal_(weight, std=0.3),
        output_layer_init_method=lambda weight: torch.nn.init.normal_(weight, std=0.3),
        **{**settings, **options},
    )


def make_tokens() -> Tensor:
    """Random tokens whose first feature is 1, so that a router's first column is a bias."""
    x = torch.randn(T, D, device=DEVICE)
    x[:, 0] = 1
    return x.requires_grad_()


def starve_last_expert(router_weight: Tensor) -> None:
    with torch.no_grad():
        router_weight[-1, 0] = -100


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]


def per_token_loop(x: Tensor, weights: Tensor, indices: Tensor, experts: list[Tensor], activation: Any) -> Tensor:
    """`experts` are (E, H, D) each: in, out, and the factor beside the activation when gated."""
    w_in, w_out, *up = experts
    rows = []
    for t in range(x.shape[0]):
        row = torch.zeros_like(x[t])
        for k in range(indices.shape[1]):
            e = int(indices[t, k])
            hidden = activation(w_in[e] @ x[t])
            if up:
                hidden = hidden * (up[0][e] @ x[t])
            row = row + weights[t, k] * (hidden @ w_out[e])
        rows.append(row)
    return torch.stack(rows)


def assert_same_with_gradients(
    actual: Tensor, inputs: list[Tensor], expected: Tensor, references: list[Tensor]
) -> None:
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach(), **TOLERANCE)
    probe = torch.randn_like(expected)
    # retained, as two losses of one forward pass share its graph
    gradients = torch.autograd.grad((actual * probe.to(actual)).sum(), inputs, retain_graph=True)
    wanted_gradients = torch.autograd.grad((expected * probe).sum(), references, retain_graph=True)
    for found, wanted in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, **TOLERANCE)


@pytest.mark.parametrize("memory_optimized", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("mlp_type", ["mlp", "glu"])
def test_dmoe_equals_per_token_loop(package: ModuleType, mlp_type: str, top_k: int, memory_optimized: bool) -> None:
    arguments = make_arguments(package, top_k, mlp_type=mlp_type, memory_optimized_mlp=memory_optimized)
    layer = package.dMoE(arguments)
    starve_last_expert(layer.router.layer.weight)
    x = make_tokens()
    mlp = layer.experts.mlp
    parameters = [layer.router.layer.weight, mlp.w1, mlp.w2, *([mlp.v1] if mlp_type == "glu" else [])]

    x_ref, router, *flat = references = double(x, *parameters)
    weights, indices = (x_ref @ router.T).softmax(-1).topk(top_k)
    assert not (indices == E - 1).any()
    expected = per_token_loop(x_ref, weights, indices, [w.view(E, H, D) for w in flat], F.silu)
    assert_same_with_gradients(layer(x[None])[0], [x, *parameters], expected, references)


@pytest.mark.parametrize("top_k", [1, 2])
def test_auxiliary_losses_equal_their_formulas(package: ModuleType, top_k: int) -> None:
    """Summed over L layers: w / L * E * sum_e(share of the T*K assignments * mean probability), and w * mean(lse^2)."""
    layers, weight, z_weight = 2, 0.02, 0.003
    arguments = make_arguments(
        package, top_k, num_layers=layers, moe_loss_weight=weight, moe_zloss_weight=z_weight, moe_lbl_in_fp32=True
    )
    balancing, z_losses, routers, references = torch.zeros(()).double(), [], [], []
    for _ in range(layers):
        layer, x = package.dMoE(arguments), make_tokens()
        layer(x[None])
        x_ref, router = double(x, layer.router.layer.weight)
        logits = x_ref @ router.T
        probabilities = logits.softmax(-1)
        counts = torch.bincount(probabilities.topk(top_k).indices.flatten(), minlength=E)
        balancing = balancing + weight / layers * E * (counts / (T * top_k) * probabilities.mean(0)).sum()
        z_losses.append(z_weight * logits.logsumexp(-1).square().mean())
        routers.append(layer.router.layer.weight)
        references.append(router)

    found = package.layers.moe.batched_load_balancing_loss(arguments)
    assert_same_with_gradients(found, routers, balancing, references)
    found = package.layers.router.batched_router_zloss(arguments)
    assert_same_with_gradients(found, routers, torch.stack(z_losses), references)


@pytest.mark.parametrize("top_k", [1, 2])
def test_capacity_keeps_the_first_assignments_of_each_expert(package: ModuleType, top_k: int) -> None:
    factor = 0.7
    layer = package.MoE(make_arguments(package, top_k, moe_capacity_factor=factor))
    x, mlp = make_tokens(), layer.experts.mlp
    x_ref, router, w1, w2 = double(x, layer.router.layer.weight, mlp.w1, mlp.w2)
    weights, indices = (x_ref @ router.T).softmax(-1).topk(top_k)
    capacity, taken = int(factor * top_k * T / E), [0] * E
    kept = torch.zeros_like(weights)
    for t, k in itertools.product(range(T), range(top_k)):
        e = int(indices[t, k])
        kept[t, k] = taken[e] < capacity
        taken[e] += 1
    assert 0 < kept.sum() < kept.numel()
    expected = per_token_loop(x_ref, weights * kept, indices, [w1.transpose(1, 2), w2], F.silu)
    references = [x_ref, router, w1, w2]
    assert_same_with_gradients(layer(x[None])[0], [x, layer.router.layer.weight, mlp.w1, mlp.w2], expected, references)


@pytest.mark.parametrize("hidden", [8, 5])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
def test_our_experts_equal_per_token_loop(package: ModuleType, top_k: int, gated: bool, hidden: int) -> None:
    width = D if hidden == 8 else 7
    x = torch.randn(width, T, device=DEVICE).t().requires_grad_()
    w_in = torch.randn(E, hidden * (1 + gated), width, device=DEVICE, requires_grad=True)
    w_out = torch.randn(E, hidden, width, device=DEVICE, requires_grad=True)
    weights = torch.rand(T, top_k, device=DEVICE, requires_grad=True)
    indices = torch.rand(T, E - 1, device=DEVICE).topk(top_k).indices
    actual = megablocks.megablocks_experts(
        x, weights, indices, w_in, w_out, activation=F.gelu, gated=gated, num_experts=E, top_k=top_k
    )

    x_ref, weights_ref, w_in_ref, w_out_ref = references = double(x, weights, w_in, w_out)
    *up, gate = w_in_ref.chunk(2, dim=1) if gated else [w_in_ref]
    expected = per_token_loop(x_ref, weights_ref, indices, [gate, w_out_ref, *up], F.gelu)
    # outputs here are of the order of 100
    scale = float(expected.detach().abs().max())
    assert_same_with_gradients(actual / scale, [x, weights, w_in, w_out], expected / scale, references)


def test_our_experts_leave_nothing_behind(package: ModuleType) -> None:
    weights = torch.rand(T, 1, device=DEVICE)
    indices = torch.zeros(T, 1, dtype=torch.long, device=DEVICE)
    w = torch.randn(E, 8, D, device=DEVICE, requires_grad=True)
    options = {"activation": F.silu, "gated": False, "num_experts": E, "top_k": 1}
    megablocks.megablocks_experts(make_tokens(), weights, indices, w, w, **options).sum().backward()
    assert package.layers.moe.get_load_balancing_loss() == []
    assert package.layers.router._ROUTER_LOGITS == []
    assert torch.cuda.is_available() or not {"megablocks_ops", "grouped_gemm"} & set(sys.modules)
    with pytest.raises(ValueError, match="w_in has shape"):
        megablocks.megablocks_experts(make_tokens(), weights, indices, w, w, **{**options, "gated": True})


def test_importing_our_module_imports_neither_megablocks_nor_triton() -> None:
    code = (
        "import sys; from olmoe_parrots.moe import megablocks as m; m.is_available(); "
        "assert not {'megablocks', 'stk', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA Triton needs no interpreter")
@pytest.mark.parametrize("too_early", [False, True])
def test_loading_turns_to_the_interpreter_unless_triton_came_first(package: ModuleType, too_early: bool) -> None:
    code = (
        "from olmoe_parrots.moe.megablocks import load_megablocks as load; load(); "
        "import triton; assert not isinstance(triton.language.sum, triton.JITFunction)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", f"import triton; {code}" if too_early else code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == too_early, done.stderr
    if too_early:
        assert done.stderr.splitlines()[-1].startswith("ImportError: triton was imported without TRITON_INTERPRET=1")


def test_other_versions_and_missing_packages_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megablocks, "find_spec", lambda name: object())
    monkeypatch.setattr(megablocks, "version", lambda name: "0.7.0")
    with pytest.raises(ImportError, match=r"^megablocks 0\.7\.0 is not supported, only 0\.10\.x: .*`make megablocks`$"):
        megablocks.load_megablocks.__wrapped__()
    monkeypatch.setattr(megablocks, "find_spec", lambda name: None if name == "triton" else object())
    assert not megablocks.is_available()
    with pytest.raises(ImportError, match=r"^MegaBlocks backend: triton not installed: run `make megablocks`$"):
        megablocks.load_megablocks.__wrapped__()


GROUPS = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@settings(deadline=None)
@given(sizes=GROUPS, spare=st.integers(0, 3), dtype=st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_integer_stand_ins(sizes: list[int], spare: int, dtype: torch.dtype) -> None:
    ends = list(itertools.accumulate(sizes))
    sums = torch.empty(1, len(sizes), dtype=dtype)
    megablocks_ops.inclusive_cumsum(torch.tensor([sizes], dtype=dtype), 1, sums)
    assert sums.tolist() == [ends]
    megablocks_ops.exclusive_cumsum(torch.tensor([sizes], dtype=dtype), 1, sums)
    assert sums.tolist() == [[0, *ends][:-1]]

    values = [e for e, size in enumerate(sizes) for _ in range(size)]
    shuffled = torch.tensor(values, dtype=dtype)[torch.randperm(len(values))]
    assert megablocks_ops.histogram(shuffled, len(sizes)).tolist() == sizes
    assert megablocks_ops.histogram(shuffled[None], len(sizes)).tolist() == [sizes]
    found, order = torch.empty_like(shuffled), torch.empty_like(shuffled)
    megablocks_ops.sort(shuffled, 3, found, order)
    assert found.tolist() == values
    assert order.tolist() == sorted(range(len(values)), key=shuffled.tolist().__getitem__)

    bins, row = torch.tensor(ends, dtype=torch.int32), torch.arange(len(sizes))[None] * 10
    copies = torch.full((1, ends[-1] + spare), -1)
    megablocks_ops.replicate_forward(row, bins, copies)
    assert copies.tolist() == [[10 * e for e in values] + [-1] * spare]
    summed = torch.empty(1, len(sizes))
    megablocks_ops.replicate_backward(torch.ones(1, ends[-1] + spare), bins, summed)
    assert summed.tolist() == [sizes]

    columns = torch.empty(ends[-1] * 2, dtype=torch.int16)
    megablocks_ops.indices(bins * 8, 8, ends[-1], 2, columns)
    assert columns.tolist() == [c for e in values for c in (2 * e, 2 * e + 1)]


@pytest.mark.parametrize("grouped_mm", [True, False])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("inner, outer", [(8, 4), (8, 6), (3, 5)])
def test_grouped_gemm_stand_in(
    monkeypatch: pytest.MonkeyPatch, inner: int, outer: int, trans_b: bool, grouped_mm: bool
) -> None:
    if not grouped_mm:
        monkeypatch.setattr(megablocks_ops, "_HAS_GROUPED_MM", False)
    sizes = torch.tensor([3, 0, 6])
    a = torch.randn(9, inner, requires_grad=True)
    # every second row, as the halves of a gated projection are strided
    whole = torch.randn(3, 2, *((outer, inner) if trans_b else (inner, outer)), requires_grad=True)
    b = whole[:, 1]
    product = megablocks_ops.make_grouped_gemm().ops.gmm(a, b, sizes, trans_b=trans_b)
    assert product.is_contiguous()
    a_ref, whole_ref = references = double(a, whole)
    matrices = whole_ref[:, 1].transpose(1, 2) if trans_b else whole_ref[:, 1]
    pieces = [rows @ matrix for rows, matrix in zip(a_ref.split(sizes.tolist()), matrices, strict=True)]
    assert_same_with_gradients(product, [a, whole], torch.cat(pieces), references)
    # a gradient from sum() has no strides, which grouped_mm refuses
    (found,) = torch.autograd.grad(product.sum(), a)
    torch.testing.assert_close(found.double(), *torch.autograd.grad(torch.cat(pieces).sum(), a_ref), **TOLERANCE)
    with pytest.raises(ValueError, match="add up to the 9 rows"):
        megablocks_ops.backend_gmm(a, b, sizes - 1, trans_b=trans_b)
