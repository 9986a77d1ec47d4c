"""The closed formulas against models that are really built and operations that are really counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from olmo.model import OLMo
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.config import ModelConfig, load_train_config
from olmoe_parrots.grid import Run, grid, quickstart
from olmoe_parrots.model import ParrotsOLMo, build_model

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = [*grid(), *quickstart()]

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def make_config(**options: Any) -> ModelConfig:
    small: dict[str, Any] = {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "activation_type": "gelu",
        "block_type": "sequential",
        "rope": True,
        "layer_norm_type": "rms",
        "include_bias": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": 16,
        "vocab_size": 96,
        "embedding_size": 128,
        "init_device": "meta",
        "moe_num_experts": 4,
        "moe_mlp_impl": "loop",
    }
    return ModelConfig.new(**{**small, **options})


def counts_of_built(model: ParrotsOLMo) -> tuple[int, int, int]:
    """Total, active and non-embedding parameters, counted tensor by tensor."""
    config = model.config
    named = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(count for name, count in named.items() if ".ff_out.w_in." in name or ".ff_out.w_out." in name)
    assert (experts > 0) == (str(config.block_type) == "moe")
    idle = experts * (config.moe_num_experts - config.moe_top_k) // config.moe_num_experts if experts else 0
    embeddings = named["transformer.wte.weight"] + named.get("transformer.wpe.weight", 0)
    total = sum(named.values())
    return total, total - idle, total - embeddings


def counts_of_shape(shape: ModelShape) -> tuple[int, int, int]:
    return shape.total_params(), shape.active_params(), shape.non_embedding_params()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_grid_point_equals_its_built_model(run: Run) -> None:
    config = load_train_config(str(CONFIGS / f"{run.name}.yaml"), validate_paths=False).model
    model = build_model(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert counts_of_shape(run.shape()) == counts_of_built(model)
    assert counts_of_shape(ModelShape.from_config(config)) == counts_of_built(model)
    # on the paper's own words: L(4 + 2E)d^2 + Vd in total, L(4 + 2k)d^2 + Vd active, norms and routers left out
    experts, width = run.experts, run.width
    norms = (2 * run.layers + 1) * width
    networks, visited = (experts, 2) if experts else ((run.hidden_size or width) // width,) * 2
    for found, ffns in ((run.shape().total_params(), networks), (run.shape().active_params(), visited)):
        routers = run.layers * width * experts
        assert found - norms - routers == run.layers * (4 + 2 * ffns) * width**2 + 32_000 * width


@st.composite
def model_options(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4]))
    experts = draw(st.integers(1, 6))
    positions = draw(st.sampled_from(["rope", "alibi", "learned"]))
    hidden = draw(st.sampled_from([None, 32, 40]))
    return {
        "d_model": heads * draw(st.sampled_from([4, 8])),
        "n_heads": heads,
        "n_kv_heads": draw(st.sampled_from([None, *(n for n in (1, 2, 4) if heads % n == 0)])),
        "n_layers": draw(st.integers(1, 3)),
        "mlp_hidden_size": hidden,
        "mlp_ratio": draw(st.sampled_from([1, 2, 4])),
        "activation_type": draw(st.sampled_from(["gelu", "relu", "swiglu"])),
        "block_type": draw(st.sampled_from(["moe", "sequential"])),
        "rope": positions == "rope",
        "alibi": positions == "alibi",
        "layer_norm_type": draw(st.sampled_from(["rms", "default"])),
        "layer_norm_with_affine": draw(st.booleans()),
        "attention_layer_norm": draw(st.booleans()),
        "attention_layer_norm_with_affine": draw(st.booleans()),
        "include_bias": draw(st.booleans()),
        "bias_for_layer_norm": draw(st.sampled_from([None, True, False])),
        "embedding_layer_norm": draw(st.booleans()),
        "weight_tying": draw(st.booleans()),
        "embedding_size": draw(st.sampled_from([None, 128])),
        "norm_after": draw(st.booleans()),
        "moe_num_experts": experts,
        "moe_top_k": draw(st.integers(1, experts)),
        "moe_shared_expert": draw(st.booleans()),
    }


@settings(deadline=None, max_examples=150)
@given(options=model_options())
def test_parameters_under_any_options(options: dict[str, Any]) -> None:
    config = make_config(**options)
    model = build_model(config)
    assert counts_of_shape(ModelShape.from_config(config)) == counts_of_built(model)


@pytest.mark.parametrize(
    "shape, count, published",
    [
        ({"d_model": 1024}, "total_params", 158.6e6),
        ({"d_model": 4096}, "total_params", 2144e6),
        ({"d_model": 256, "num_experts": 8, "top_k": 2}, "active_params", 18.7e6),
        ({"d_model": 1024, "num_experts": 8, "top_k": 2}, "active_params", 200.5e6),
        ({"d_model": 512, "n_layers": 12, "num_experts": 8, "top_k": 2}, "active_params", 41.5e6),
    ],
    ids=str,
)
def test_published_sizes(shape: dict[str, int], count: str, published: float) -> None:
    """The paper's 159M, 2.1B, 18M, 200M and 42M: plain experts of width d, 32,000 tokens, one tied embedding."""
    fixed = {"n_layers": 20, "n_heads": shape["d_model"] // 64, "hidden_size": shape["d_model"]}
    built = ModelShape(vocab_size=32_000, sequence_length=2048, **{**fixed, **shape})
    assert getattr(built, count)() == pytest.approx(published, rel=0.005)
    # what the working behind them rules out: a gated network, and OLMo's vocabulary
    for other in ({"gated": True}, {"vocab_size": 50_280}):
        changed = ModelShape(**{**vars(built), **other})
        assert abs(getattr(changed, count)() / published - 1) > 0.015


# Operations.


def counted_flops(config: ModelConfig, batch: int = 2) -> int:
    """FLOPs of a forward and backward pass by torch's own counter, per token.

    It knows no CPU attention kernel: the plain one is two matrix products over the whole square, causal or not.
    """
    model = build_model(config)
    ids = torch.randint(0, config.vocab_size, (batch, config.max_sequence_length))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    total = counter.get_total_flops()
    assert total % ids.numel() == 0
    return total // ids.numel()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_type": "swiglu", "weight_tying": False, "include_bias": True},
        {"n_kv_heads": 2, "attention_layer_norm": True},
        {"n_kv_heads": 1, "rope": False, "max_sequence_length": 24},
        {"block_type": "moe"},
        {"block_type": "moe", "moe_num_experts": 6, "moe_top_k": 3, "activation_type": "swiglu"},
        {"block_type": "moe", "moe_shared_expert": True, "include_bias": True, "moe_top_k": 1},
        {"block_type": "moe", "n_layers": 3, "n_kv_heads": 2, "weight_tying": False, "embedding_size": None},
    ],
    ids=str,
)
def test_flops_equal_torchs_count(options: dict[str, Any]) -> None:
    config = make_config(init_device="cpu", **options)
    assert ModelShape.from_config(config).flops_per_token() == counted_flops(config)


@pytest.mark.parametrize("block_type", ["moe", "sequential"])
def test_a_model_knows_its_flops(block_type: str) -> None:
    config = make_config(block_type=block_type)
    model = build_model(config)
    flops = ModelShape.from_config(config).flops_per_token()
    assert model.num_fwd_flops * 3 == flops
    assert model.num_fwd_flops + model.num_bck_flops == flops


def test_olmo_leaves_the_tied_output_matrix_out() -> None:
    """And counts norms, which are no matrix products."""
    config = make_config()
    model, olmo = build_model(config), OLMo(config)
    norms = (2 * config.n_layers + 1) * config.d_model
    assert model.num_fwd_flops - olmo.num_fwd_flops == 2 * (128 * config.d_model - norms)


def test_flops_of_a_moe_follow_active_parameters() -> None:
    few, many = (make_config(block_type="moe", moe_num_experts=experts) for experts in (4, 64))
    growth = ModelShape.from_config(many).flops_per_token() - ModelShape.from_config(few).flops_per_token()
    assert growth == 6 * few.n_layers * few.d_model * 60  # the router's rows alone


def test_a_checkpoint_holds_weights_and_two_moments() -> None:
    config = make_config(block_type="moe", init_device="cpu")
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [*model.parameters(), *(s[key] for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert ModelShape.from_config(config).checkpoint_bytes() == held
