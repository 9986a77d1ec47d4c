"""OLMo with MoE blocks: what must not change the numbers, and what must not be kept."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from olmo.config import ActivationCheckpointingStrategy
from olmo.model import OLMo
from olmo.optim import build_optimizer
from torch import Tensor

from olmoe_parrots.config import ModelConfig, TrainConfig
from olmoe_parrots.model import ModelOutput, MoEOLMo, ParrotsOLMo, build_model, initialize
from olmoe_parrots.moe.block import FeedForwardMoE
from olmoe_parrots.moe.losses import load_balancing_loss, router_z_loss

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")

LAYERS, EXPERTS, TOP_K, VOCABULARY = 4, 4, 2, 64


def make_config(**options: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": LAYERS,
        "mlp_hidden_size": 32,
        "activation_type": "gelu",
        "block_type": "moe",
        "rope": True,
        "layer_norm_type": "rms",
        "include_bias": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": 32,
        "vocab_size": VOCABULARY,
        "embedding_size": VOCABULARY,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
        "init_std": 0.2,
        "moe_num_experts": EXPERTS,
        "moe_top_k": TOP_K,
    }
    return ModelConfig.new(**{**settings, **options})


def make_model(**options: Any) -> MoEOLMo:
    model = build_model(make_config(**options))
    initialize(model, 1)
    return model  # type: ignore[return-value]


def make_ids(batch: int = 2, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY - 1, (batch, length), generator=torch.Generator().manual_seed(seed))


def auxiliary_losses(output: ModelOutput) -> Tensor:
    assert output.routing is not None
    return load_balancing_loss(output.routing) + 0.1 * router_z_loss(output.routing)


def forward_backward(model: MoEOLMo, ids: Tensor) -> tuple[ModelOutput, dict[str, Tensor]]:
    model.zero_grad()
    output = model(ids)
    cross_entropy = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    (cross_entropy + auxiliary_losses(output)).backward()
    return output, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_run(
    found: tuple[ModelOutput, dict[str, Tensor]],
    expected: tuple[ModelOutput, dict[str, Tensor]],
    tolerance: float = 1e-5,
) -> None:
    close = {"rtol": tolerance, "atol": tolerance}
    (output, grads), (wanted_output, wanted_grads) = found, expected
    torch.testing.assert_close(output.logits, wanted_output.logits, **close)
    assert output.routing is not None and wanted_output.routing is not None
    for layer, wanted in zip(output.routing, wanted_output.routing, strict=True):
        assert torch.equal(layer.tokens_per_expert_E, wanted.tokens_per_expert_E)
        torch.testing.assert_close(layer.mean_probability_E, wanted.mean_probability_E, **close)
        torch.testing.assert_close(layer.mean_squared_logsumexp, wanted.mean_squared_logsumexp, **close)
    assert [gradient.shape for gradient in grads.values()] == [gradient.shape for gradient in wanted_grads.values()]
    for (name, gradient), wanted in zip(grads.items(), wanted_grads.values(), strict=True):
        torch.testing.assert_close(gradient, wanted, **close, msg=lambda text, name=name: f"{name}: {text}")


def moe_layers(model: torch.nn.Module) -> list[FeedForwardMoE]:
    return [module for module in model.modules() if isinstance(module, FeedForwardMoE)]


def assert_nothing_kept(model: torch.nn.Module) -> None:
    assert len(moe_layers(model)) == LAYERS
    assert all(layer.statistics is None for layer in moe_layers(model))


# What a forward pass answers.


def test_routing_of_each_layer() -> None:
    ids = make_ids()
    output = make_model()(ids)
    assert output.attn_key_values is None and output.hidden_states is None
    assert len(output.routing) == LAYERS
    for layer in output.routing:
        assert layer.tokens_per_expert_E.sum() == ids.numel() * TOP_K
        assert layer.mean_probability_E.sum().item() == pytest.approx(1)
    assert output.logits.shape == (*ids.shape, VOCABULARY)


def test_auxiliary_gradients_reach_every_router() -> None:
    model = make_model()
    auxiliary_losses(model(make_ids())).backward()
    for layer in moe_layers(model):
        assert layer.router.layer.weight.grad.any()
    # experts of the last layer have no router after them
    assert moe_layers(model)[-1].w_in.weight.grad is None
    assert moe_layers(model)[0].w_in.weight.grad.any()


def test_two_passes_do_not_add_up_and_nothing_is_kept() -> None:
    model = make_model()
    first = forward_backward(model, make_ids(seed=1))
    assert_nothing_kept(model)
    forward_backward(model, make_ids(batch=3, seed=2))
    again = forward_backward(model, make_ids(seed=1))
    assert len(again[0].routing) == LAYERS
    assert_same_run(again, first, tolerance=0)
    assert_nothing_kept(model)


def test_evaluation_without_gradient() -> None:
    model, ids = make_model(), make_ids()
    training = model(ids)
    model.eval()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            output = model(ids)
        assert torch.equal(output.logits, training.logits)
        assert not output.logits.requires_grad
        assert not any(statistic.requires_grad for layer in output.routing for statistic in layer)
        assert_nothing_kept(model)


def test_hidden_states_and_last_logits() -> None:
    model, ids = make_model(), make_ids()
    full = model(ids, output_hidden_states=True)
    assert len(full.hidden_states) == LAYERS + 1
    last = model(ids, last_logits_only=True)
    torch.testing.assert_close(last.logits, full.logits[:, -1:])


# Recomputation, compilation and grouping change nothing.

VARIANTS = [
    {},
    {"norm_after": True, "attention_layer_norm": True},
    {"moe_shared_expert": True, "include_bias": True, "activation_type": "swiglu", "mlp_hidden_size": 64},
    {"moe_dropless": False, "moe_capacity_factor": 0.75, "n_kv_heads": 2},
    {"residual_dropout": 0.2, "embedding_dropout": 0.1, "attention_dropout": 0.1},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("strategy", list(ActivationCheckpointingStrategy))
def test_activation_checkpointing(strategy: ActivationCheckpointingStrategy, variant: dict[str, Any]) -> None:
    model, ids = make_model(**variant), make_ids()
    torch.manual_seed(5)
    expected = forward_backward(model, ids)
    model.set_activation_checkpointing(strategy)
    calls = []
    model.transformer["wte"].register_forward_hook(lambda *_: calls.append("pass"))
    moe_layers(model)[0].register_forward_pre_hook(lambda *_: calls.append("moe"))
    torch.manual_seed(5)
    assert_same_run(forward_backward(model, ids), expected)
    assert_nothing_kept(model)
    recomputed = strategy not in ("fine_grained", "two_in_three", "three_in_four")
    assert calls == ["pass", "moe", "moe"] if recomputed else ["pass", "moe"]


@pytest.mark.parametrize("strategy", [None, "whole_layer", "fine_grained"])
@pytest.mark.parametrize("size", [2, 4])
def test_block_groups(size: int, strategy: str | None) -> None:
    single, grouped = make_model(), make_model(block_group_size=size)
    state = {}
    for name, value in single.state_dict().items():
        parts = name.split(".")
        if parts[1] == "blocks":
            group, place = divmod(int(parts[2]), size)
            parts[1:3] = ["block_groups", str(group), str(place)]
        state[".".join(parts)] = value
    grouped.load_state_dict(state)
    # initial weights and wrapping go by a block's own number, checkpointing by its group's
    groups = grouped.transformer["block_groups"]
    assert [block.layer_id for group in groups for block in group] == list(range(LAYERS))
    assert [group.layer_offset for group in groups] == list(range(0, LAYERS, size))
    if strategy is not None:
        grouped.set_activation_checkpointing(ActivationCheckpointingStrategy(strategy))
    ids = make_ids()
    assert_same_run(forward_backward(grouped, ids), forward_backward(single, ids), tolerance=1e-6)
    assert_nothing_kept(grouped)
    found, expected = (model.generate(ids, max_steps=4).token_ids for model in (grouped.eval(), single.eval()))
    assert torch.equal(found, expected)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "variant", [{"n_layers": 2}, {"n_layers": 2, "moe_shared_expert": True, "moe_mlp_impl": "loop"}], ids=str
)
def test_compiled_blocks(fresh_compiler: None, backend: str, variant: dict[str, Any]) -> None:
    model, ids = make_model(**variant), make_ids()
    plain = forward_backward(model, ids), forward_backward(model, make_ids(seed=3))
    for block in model.transformer["blocks"]:
        block.compile(backend=backend)
    compiled = forward_backward(model, ids), forward_backward(model, make_ids(seed=3))
    for found, expected in zip(compiled, plain, strict=True):
        assert_same_run(found, expected)
    assert all(layer.statistics is None for layer in moe_layers(model))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain[0][0].logits, rtol=1e-5, atol=1e-5)


def test_compiled_blocks_with_checkpointing(fresh_compiler: None) -> None:
    model, ids = make_model(n_layers=2), make_ids()
    expected = forward_backward(model, ids)
    model.set_activation_checkpointing(ActivationCheckpointingStrategy.whole_layer)
    for block in model.transformer["blocks"]:
        block.compile(backend="aot_eager")
    assert_same_run(forward_backward(model, ids), expected)
    assert all(layer.statistics is None for layer in moe_layers(model))


def test_compiled_blocks_in_bfloat16(fresh_compiler: None) -> None:
    """There the grouped product stays inside the graph: a block is one graph, whatever the load of its experts."""
    model, graphs = make_model(n_layers=2, moe_mlp_impl="grouped"), []

    def count_graphs(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    ids = make_ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(ids)
        model.transformer["blocks"][0].compile(backend=count_graphs, fullgraph=True)
        compiled = model(ids)
        model(make_ids(seed=1))
    assert len(graphs) == 1
    torch.testing.assert_close(compiled.logits, plain.logits, rtol=2e-2, atol=2e-2)
    auxiliary_losses(compiled).backward()


# Generation.


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"attention_layer_norm": True, "n_kv_heads": 2},
        {"norm_after": True},
        {"rope": False, "n_kv_heads": 1},
        {"rope": False, "alibi": True},
        {"moe_shared_expert": True, "activation_type": "swiglu", "mlp_hidden_size": 64},
        {"block_type": "sequential"},
    ],
    ids=str,
)
def test_greedy_generation_with_a_cache(variant: dict[str, Any]) -> None:
    model, ids, steps = make_model(**variant).eval(), make_ids(batch=3, length=5), 10
    generated = model.generate(ids, max_steps=steps).token_ids[:, 0]
    sequence, finished = ids, torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(steps):
            following = model(sequence).logits[:, -1].argmax(-1)
            following[finished] = model.config.eos_token_id
            finished |= following == model.config.eos_token_id
            sequence = torch.cat([sequence, following[:, None]], dim=1)
    assert torch.equal(generated, sequence[:, 5:])
    assert len(set(generated.flatten().tolist())) > 3


def test_cached_logits_and_routing() -> None:
    model, ids = make_model(n_kv_heads=2).eval(), make_ids()
    with torch.no_grad():
        whole = model(ids)
        start = model(ids[:, :8], use_cache=True)
        rest = model(ids[:, 8:], past_key_values=start.attn_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], dim=1), whole.logits, rtol=1e-5, atol=1e-5)
    assert [tuple(keys.shape) for keys, _ in rest.attn_key_values] == [(2, 2, 12, 8)] * LAYERS
    for layer, first, second in zip(whole.routing, start.routing, rest.routing, strict=True):
        assert torch.equal(layer.tokens_per_expert_E, first.tokens_per_expert_E + second.tokens_per_expert_E)


# Initial weights.

INITIALIZED = [
    {},
    {"block_type": "sequential"},
    {"include_bias": True, "attention_layer_norm": True, "moe_shared_expert": True, "weight_tying": False},
    {"rope": False, "init_fn": "mitchell", "bias_for_layer_norm": True},
    {"embedding_layer_norm": True, "init_fn": "full_megatron", "block_group_size": 2},
    {"embedding_layer_norm": True, "bias_for_layer_norm": True, "block_type": "sequential"},
]


@pytest.mark.parametrize("options", INITIALIZED, ids=str)
def test_initial_weights_follow_from_the_seed_alone(options: dict[str, Any]) -> None:
    torch.manual_seed(10)
    on_cpu = build_model(make_config(init_device="cpu", **options))
    initialize(on_cpu, 7)
    late = build_model(make_config(init_device="meta", **options)).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in late.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(11)
    torch.randn(5)
    state = torch.get_rng_state()
    initialize(late, 7)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(on_cpu.named_parameters(), late.parameters(), strict=True):
        assert torch.equal(first, second), name
    ids = make_ids()
    assert torch.equal(on_cpu(ids).logits, late(ids).logits)
    initialize(late, 8)
    assert not torch.equal(on_cpu.transformer["wte"].weight, late.transformer["wte"].weight)


@pytest.mark.parametrize("block_type", ["moe", "sequential"])
def test_a_model_built_on_the_cpu_is_initialized(block_type: str) -> None:
    model = build_model(make_config(block_type=block_type, embedding_layer_norm=True, bias_for_layer_norm=True))
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_f" in name:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.2, rel=0.2), name


# Beside OLMo.


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_olmos_optimizer_takes_every_parameter(decay_norm_and_bias: bool) -> None:
    model = make_model(include_bias=True, attention_layer_norm=True, moe_shared_expert=True, weight_tying=False)
    cfg = TrainConfig.new(
        model={"block_type": "moe"},
        optimizer={"name": "adamw", "weight_decay": 0.1, "decay_norm_and_bias": decay_norm_and_bias},
    )
    groups = build_optimizer(cfg, model).param_groups
    named = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(named)
    decayed = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    experts = {name for name in named if "ff_out.w_" in name or "router" in name or "shared_expert" in name}
    biases = {name for name in named if name.endswith("bias")}
    assert len(experts) == LAYERS * 9 and any("w_in.bias" in name for name in biases)
    assert experts - biases <= decayed
    assert (biases <= decayed) if decay_norm_and_bias else not (biases & decayed)
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert parameter is named[name]


def test_an_optimizer_step_moves_every_weight() -> None:
    model = make_model(include_bias=True)
    cfg = TrainConfig.new(model={"block_type": "moe"}, optimizer={"name": "adamw", "weight_decay": 0.0})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    forward_backward(model, make_ids(batch=8))
    build_optimizer(cfg, model).step()
    for name, parameter in model.named_parameters():
        if name.endswith("att_proj.bias"):
            continue  # a key's bias shifts all scores of a query alike: rounding is all its gradient
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("options", [{}, {"n_kv_heads": 2, "attention_layer_norm": True, "weight_tying": False}])
def test_dense_model_is_olmos(options: dict[str, Any]) -> None:
    config = make_config(block_type="sequential", **options)
    model, olmo = build_model(config), OLMo(config)
    assert type(model) is ParrotsOLMo
    olmo.load_state_dict(model.state_dict())
    ids = make_ids()
    output, expected = model(ids, use_cache=True), olmo(ids, use_cache=True)
    assert output.routing is None
    assert torch.equal(output.logits, expected.logits)
    for found, wanted in zip(output.attn_key_values, expected.attn_key_values, strict=True):
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"include_bias": True, "norm_after": True}, {"activation_type": "swiglu", "attention_layer_norm": True}],
    ids=str,
)
def test_one_expert_is_olmos_dense_model(options: dict[str, Any]) -> None:
    olmo = OLMo(make_config(block_type="sequential", init_device="cpu", **options))
    model = make_model(moe_num_experts=1, moe_top_k=1, **options)
    state = model.state_dict()
    for name, value in olmo.state_dict().items():
        name = name.replace("ff_proj.", "ff_out.w_in.") if "ff_proj" in name else name
        if name.split(".")[-2] == "ff_out" and "blocks" in name:
            name = name.replace("ff_out.", "ff_out.w_out.")
        if "ff_out.w_" in name:
            value = (value.T if name.endswith("w_out.weight") else value)[None]
        assert state[name].shape == value.shape
        state[name] = value
    model.load_state_dict(state)
    ids = make_ids()
    torch.testing.assert_close(model(ids).logits, olmo(ids).logits, rtol=1e-5, atol=1e-5)
