"""Our layer and its auxiliary losses beside MegaBlocks' own dMoE, the layer the paper used, with equal weights."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from olmoe_parrots.moe.experts import Activation
from olmoe_parrots.moe.layer import MoELayer
from olmoe_parrots.moe.losses import load_balancing_loss, router_z_loss
from olmoe_parrots.moe.router import TopKRouter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.megablocks

TOKENS, WIDTH, HIDDEN, EXPERTS = 16, 16, 32, 4
BALANCE_WEIGHT, Z_WEIGHT = 0.02, 0.003


def build_dmoe(package: ModuleType, top_k: int, gated: bool, normalize: bool) -> torch.nn.Module:
    arguments = package.Arguments(
        hidden_size=WIDTH,
        ffn_hidden_size=HIDDEN,
        moe_num_experts=EXPERTS,
        moe_top_k=top_k,
        moe_normalize_expert_weights=1 if normalize else None,
        moe_loss_weight=BALANCE_WEIGHT,
        moe_zloss_weight=Z_WEIGHT,
        moe_lbl_in_fp32=True,
        num_layers=1,
        activation_fn=F.silu if gated else F.gelu,
        mlp_type="glu" if gated else "mlp",
        mlp_impl="grouped",
        bias=False,
        return_bias=False,
        fp16=False,
        device=DEVICE,
        init_method=lambda weight: torch.nn.init.normal_(weight, std=0.3),
        output_layer_init_method=lambda weight: torch.nn.init.normal_(weight, std=0.3),
    )
    return package.dMoE(arguments)


def build_ours(dmoe: torch.nn.Module, top_k: int, gated: bool, normalize: bool, backend: str) -> MoELayer:
    router = TopKRouter(WIDTH, EXPERTS, top_k, normalize=normalize, device=DEVICE)
    activation = Activation(F.silu, gated=True) if gated else Activation(F.gelu)
    layer = MoELayer(WIDTH, HIDDEN, router, activation, backend=backend, device=DEVICE)
    mlp = dmoe.experts.mlp
    shape = (EXPERTS, HIDDEN, WIDTH)
    # MegaBlocks activates w1; our second half is the one that is activated
    halves = [mlp.v1, mlp.w1] if gated else [mlp.w1]
    with torch.no_grad():
        layer.router.layer.weight.copy_(dmoe.router.layer.weight)
        layer.w_in.weight.copy_(torch.cat([half.view(shape) for half in halves], dim=1))
        layer.w_out.weight.copy_(mlp.w2.view(shape))
    return layer


@pytest.mark.parametrize("backend", ["grouped", "loop", "megablocks"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_our_layer_equals_dmoe(package: ModuleType, top_k: int, gated: bool, normalize: bool, backend: str) -> None:
    torch.manual_seed(top_k + 2 * gated)
    dmoe = build_dmoe(package, top_k, gated, normalize)
    ours = build_ours(dmoe, top_k, gated, normalize, backend)
    x_theirs = torch.randn(1, TOKENS, WIDTH, device=DEVICE, requires_grad=True)
    x_ours = x_theirs.detach().clone().requires_grad_()
    probe = torch.randn_like(x_theirs)

    theirs = dmoe(x_theirs)
    losses_theirs = [
        package.layers.moe.batched_load_balancing_loss(dmoe.experts.args),
        package.layers.router.batched_router_zloss(dmoe.experts.args).mean(),
    ]
    (theirs * probe).sum().add(sum(losses_theirs)).backward()
    output, statistics = ours(x_ours)
    losses_ours = [BALANCE_WEIGHT * load_balancing_loss([statistics]), Z_WEIGHT * router_z_loss([statistics])]
    (output * probe).sum().add(sum(losses_ours)).backward()

    close(output, theirs)
    for our_loss, their_loss in zip(losses_ours, losses_theirs, strict=True):
        close(our_loss, their_loss)
    close(x_ours.grad, x_theirs.grad)
    close(ours.router.layer.weight.grad, dmoe.router.layer.weight.grad)
    mlp = dmoe.experts.mlp
    close(ours.w_out.weight.grad.reshape(-1, WIDTH), mlp.w2.grad)
    close(ours.w_in.weight.grad[:, -HIDDEN:].reshape(-1, WIDTH), mlp.w1.grad)
    if gated:
        close(ours.w_in.weight.grad[:, :HIDDEN].reshape(-1, WIDTH), mlp.v1.grad)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
