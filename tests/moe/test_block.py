"""The MoE block against OLMo's own dense block, and its initial weights."""

import math
from typing import Any

import pytest
import torch
from olmo.model import BufferCache, OLMoSequentialBlock
from torch import Tensor

from olmoe_parrots.config import BlockType, ModelConfig
from olmoe_parrots.moe.block import Collect, Collected, MoEBlock

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def make_config(**options: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "d_model": 16,
        "n_heads": 4,
        "n_layers": 4,
        "mlp_hidden_size": 24,
        "activation_type": "gelu",
        "block_type": "moe",
        "rope": True,
        "layer_norm_type": "rms",
        "include_bias": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": 16,
        "vocab_size": 64,
        "embedding_size": 64,
        "moe_num_experts": 4,
        "moe_top_k": 2,
    }
    return ModelConfig.new(**{**settings, **options})


def make_block(config: ModelConfig, layer_id: int = 0) -> MoEBlock:
    torch.manual_seed(0)
    block = MoEBlock(layer_id, config, BufferCache())
    block.reset_parameters()
    return block


def shake(block: torch.nn.Module) -> None:
    """Give every parameter, norms and biases too, values that matter."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def copy_dense_into(block: MoEBlock, dense: OLMoSequentialBlock) -> None:
    """Every expert becomes the dense block's feed-forward network."""
    weights = dict(dense.named_parameters())
    num_experts = block.ff_out.router.num_experts
    ours = {
        "ff_out.w_in.weight": weights["ff_proj.weight"].expand(num_experts, -1, -1),
        "ff_out.w_out.weight": weights["ff_out.weight"].T.expand(num_experts, -1, -1),
    }
    if "ff_out.bias" in weights:
        ours["ff_out.w_in.bias"] = weights["ff_proj.bias"].expand(num_experts, -1)
        ours["ff_out.w_out.bias"] = weights["ff_out.bias"].expand(num_experts, -1)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if not name.startswith("ff_out.router"):
                parameter.copy_(ours[name] if name in ours else weights[name])


OPTIONS = [
    {},
    {"activation_type": "relu", "include_bias": True},
    {"activation_type": "swiglu", "mlp_hidden_size": 32},
    {"activation_type": "swiglu", "mlp_hidden_size": None, "mlp_ratio": 4, "include_bias": True},
    {"attention_layer_norm": True, "n_kv_heads": 2},
    {"norm_after": True, "attention_layer_norm": True},
    {"layer_norm_type": "default", "bias_for_layer_norm": True, "rope": False},
    {"clip_qkv": 0.5, "layer_norm_with_affine": False},
]


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equal_experts_are_olmos_dense_block(options: dict[str, Any], experts: int) -> None:
    """With weights that sum to one, whichever experts a token visits; forward and gradients of the shared parts."""
    config = make_config(
        moe_num_experts=experts, moe_top_k=min(2, experts), moe_normalize_expert_weights=True, **options
    )
    dense_config = make_config(**{**options, "block_type": "sequential"})
    torch.manual_seed(0)
    dense = OLMoSequentialBlock(0, dense_config, BufferCache())
    dense.reset_parameters()
    shake(dense)
    block = make_block(config)
    copy_dense_into(block, dense)
    x = torch.randn(2, 5, 16, requires_grad=True)
    expected, _ = dense(x)
    found, collected = block(x)
    assert collected is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    probe = torch.randn_like(found)
    wanted = torch.autograd.grad((expected * probe).sum(), [x, *dense.parameters()])
    (x_gradient,) = torch.autograd.grad((found * probe).sum(), [x], retain_graph=True)
    torch.testing.assert_close(x_gradient, wanted[0], rtol=1e-4, atol=1e-4)
    names = [name for name, _ in dense.named_parameters()]
    by_name = dict(zip(names, wanted[1:], strict=True))
    (found * probe).sum().backward()
    for name, parameter in block.named_parameters():
        if name in by_name and not name.startswith("ff_out"):
            torch.testing.assert_close(parameter.grad, by_name[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.ff_out.w_in.weight.grad.sum(0), by_name["ff_proj.weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.ff_out.w_out.weight.grad.sum(0), by_name["ff_out.weight"].T, rtol=1e-4, atol=1e-4)


def test_what_is_collected() -> None:
    block, x = make_block(make_config(n_kv_heads=2)), torch.randn(2, 5, 16)
    outputs = {wanted: block(x, use_cache=Collect(wanted)) for wanted in range(4)}
    for output, _ in outputs.values():
        assert torch.equal(output, outputs[0][0])
    assert outputs[0][1] is None
    for wanted in (1, 2, 3):
        collected = outputs[wanted][1]
        assert isinstance(collected, Collected)
        assert collected.statistics.tokens_per_expert_E.sum() == 2 * 5 * 2
        if wanted & Collect.KEYS_VALUES:
            keys, values = collected.keys_values
            assert keys.shape == values.shape == (2, 2, 5, 4)
        else:
            assert collected.keys_values is None
    assert block.ff_out.statistics is None


def test_statistics_are_those_of_what_the_experts_saw() -> None:
    block = make_block(make_config(norm_after=True))
    shake(block)
    seen: list[Tensor] = []
    block.ff_out.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    _, collected = block(torch.randn(2, 5, 16), use_cache=Collect.ROUTING)
    logits = seen[0].view(-1, 16) @ block.ff_out.router.layer.weight.T
    counts = torch.bincount(logits.topk(2).indices.flatten(), minlength=4)
    assert collected.statistics.tokens_per_expert_E.tolist() == counts.tolist()
    torch.testing.assert_close(collected.statistics.mean_probability_E, logits.softmax(-1).mean(0))


def assert_drawn(weight: Tensor, std: float, cutoff: float | None) -> None:
    # the standard deviation of a standard normal cut at ±3 is 0.9866
    expected = std * (0.9866 if cutoff == 3.0 else 1.0)
    count = weight.numel()
    assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count))
    assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
    farthest = weight.abs().max().item()
    assert farthest > 2 * std
    if cutoff is not None:
        assert farthest <= cutoff * std * 1.0001


@pytest.mark.parametrize("layer_id", [0, 3])
@pytest.mark.parametrize("init_fn", ["normal", "mitchell", "full_megatron"])
def test_initial_weights(init_fn: str, layer_id: int) -> None:
    """The laws of OLMo's dense block; the experts' input projection and router go by its ``ff_proj``."""
    d, hidden, layers, std = 64, 96, 4, 0.05
    config = make_config(
        d_model=d,
        mlp_hidden_size=2 * hidden,
        activation_type="swiglu",
        include_bias=True,
        attention_layer_norm=True,
        moe_num_experts=8,
        moe_shared_expert=True,
        init_fn=init_fn,
        init_std=std,
        init_cutoff_factor=None,
    )
    block = make_block(config, layer_id)
    shake(block)
    block.reset_parameters()
    out, attention_out = {
        "normal": (std, std),
        "mitchell": (1 / math.sqrt(2 * hidden * (layer_id + 1)), 1 / math.sqrt(2 * d * (layer_id + 1))),
        "full_megatron": (std / math.sqrt(2 * layers),) * 2,
    }[init_fn]
    into = 1 / math.sqrt(d) if init_fn == "mitchell" else std
    cutoff = None if init_fn == "normal" else 3.0
    ffn = block.ff_out
    assert ffn.shared_expert is not None
    assert_drawn(block.att_proj.weight, into, cutoff)
    assert_drawn(block.attn_out.weight, attention_out, cutoff)
    assert_drawn(ffn.router.layer.weight, into, cutoff)
    assert_drawn(ffn.shared_expert.w_in.weight, into, cutoff)
    assert_drawn(ffn.shared_expert.w_out.weight, out, cutoff)
    for expert in range(8):
        assert_drawn(ffn.w_in.weight[expert], into, cutoff)
        assert_drawn(ffn.w_out.weight[expert], out, cutoff)
    assert not torch.equal(ffn.w_in.weight[0], ffn.w_in.weight[1])
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("init_fn", ["normal", "mitchell", "full_megatron"])
def test_shared_parts_are_drawn_as_olmo_draws_its_own(init_fn: str) -> None:
    config = make_config(init_fn=init_fn, d_model=64, block_type="sequential", init_cutoff_factor=2.0)
    dense = OLMoSequentialBlock(2, config, BufferCache())
    torch.manual_seed(0)
    dense.reset_parameters()
    config.block_type = BlockType.moe
    block = make_block(config, layer_id=2)
    assert block.att_proj.weight.std().item() == pytest.approx(dense.att_proj.weight.std().item(), rel=0.05)
    assert block.attn_out.weight.std().item() == pytest.approx(dense.attn_out.weight.std().item(), rel=0.05)
    assert block.ff_out.w_in.weight.std().item() == pytest.approx(dense.ff_proj.weight.std().item(), rel=0.1)
    assert block.ff_out.w_out.weight.std().item() == pytest.approx(dense.ff_out.weight.std().item(), rel=0.1)


@pytest.mark.parametrize("init_fn", ["kaiming_normal", "fan_in"])
def test_other_initializations_are_refused(init_fn: str) -> None:
    with pytest.raises(NotImplementedError, match="use normal, mitchell or full_megatron"):
        make_block(make_config(init_fn=init_fn))
