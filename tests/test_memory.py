"""The formulas of activations against the tensors that autograd keeps, counted by hooks and by a profiler."""

from typing import Any

import pytest
import torch
from olmo.config import ActivationCheckpointingStrategy
from test_accounting import make_config
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.config import ModelConfig
from olmoe_parrots.memory import LOSS_CHUNK, activation_bytes, layer_bytes, state_bytes
from olmoe_parrots.model import ParrotsOLMo, build_model

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")

SEQUENCES, LENGTH = 3, 16
MODELS: dict[str, dict[str, Any]] = {
    "experts": {"block_type": "moe"},
    "gated experts": {"block_type": "moe", "activation_type": "swiglu"},
    "three of eight experts, one shared": {
        "block_type": "moe",
        "moe_num_experts": 8,
        "moe_top_k": 3,
        "moe_shared_expert": True,
    },
    "dense": {},
    "dense, gated": {"activation_type": "swiglu"},
    "grouped queries": {"block_type": "moe", "n_kv_heads": 2},
    "norms of queries, keys and embeddings": {"attention_layer_norm": True, "embedding_layer_norm": True},
    "norms without weights": {"layer_norm_with_affine": False},
    "biases, output matrix apart": {"include_bias": True, "weight_tying": False},
}


def build(options: dict[str, Any]) -> tuple[ParrotsOLMo, Tensor, Tensor]:
    """A model whose experts run by the backend of the CPU, with token numbers and labels."""
    config: ModelConfig = make_config(init_device="cpu", **{"moe_mlp_impl": "auto", **options})
    ids = torch.randint(0, config.vocab_size, (SEQUENCES, LENGTH))
    return build_model(config).train(), ids, ids[:, 1:].contiguous()


def kept_for_backward(model: ParrotsOLMo, ids: Tensor, labels: Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps, without parameters and tables of positions."""
    lasting = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, labels=labels)
    cache: Any = model._OLMo__cache  # type: ignore[attr-defined]
    lasting |= {table.untyped_storage().data_ptr() for table in cache.values()}
    return sum(storage.nbytes() for pointer, storage in found.items() if pointer not in lasting)


def logits_of_a_chunk(shape: ModelShape) -> int:
    return 4 * min(LOSS_CHUNK, SEQUENCES * (LENGTH - 1)) * shape.vocab_size


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_what_is_kept_is_what_autograd_keeps(options: dict[str, Any]) -> None:
    model, ids, labels = build(options)
    shape = ModelShape.from_config(model.config)
    # the loss keeps the gradient of its input where no hook sees it
    expected = kept_for_backward(model, ids, labels) + 4 * labels.numel() * shape.d_model
    assert activation_bytes(shape, SEQUENCES, LENGTH) - logits_of_a_chunk(shape) == expected


@pytest.mark.parametrize("options", [MODELS["experts"], MODELS["dense, gated"]], ids=["experts", "dense"])
def test_with_checkpointing_layers_keep_their_inputs(options: dict[str, Any]) -> None:
    model, ids, labels = build({**options, "vocab_size": 8, "embedding_size": 8})
    shape = ModelShape.from_config(model.config)
    whole_layer = kept_for_backward(model, ids, labels)
    model.set_activation_checkpointing(ActivationCheckpointingStrategy.whole_layer)
    inputs = kept_for_backward(model, ids, labels)
    layer, boundary = layer_bytes(shape, SEQUENCES, LENGTH), 4 * ids.numel() * shape.d_model
    assert whole_layer - inputs == shape.n_layers * (layer - boundary)
    # with as few logits it is in the backward pass that most is there
    assert activation_bytes(shape, SEQUENCES, LENGTH, checkpointing=True) == inputs + layer - boundary


@pytest.mark.parametrize("name", ["experts", "dense"])
def test_all_of_it_is_what_the_profiler_saw_allocated(name: str) -> None:
    model, ids, labels = build(MODELS[name])
    shape = ModelShape.from_config(model.config)
    model(ids, labels=labels)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(ids, labels=labels)
    allocated = sum(event.self_cpu_memory_usage for event in profiler.events() or [])
    assert output.loss is not None
    kept = activation_bytes(shape, SEQUENCES, LENGTH) - logits_of_a_chunk(shape)
    gradient_of_output_matrix = 4 * shape.vocab_size * shape.d_model
    # token numbers were there before; a few scalars and counts of tokens per expert come to it
    assert allocated == pytest.approx(kept - 8 * ids.numel() + gradient_of_output_matrix, rel=0.01)


def test_logits_of_the_loss() -> None:
    shape = ModelShape.from_config(make_config())
    chunked, whole = (activation_bytes(shape, SEQUENCES, LENGTH, chunked_loss=chunked) for chunked in (True, False))
    labels = SEQUENCES * (LENGTH - 1)
    assert whole - chunked == 4 * 128 * (SEQUENCES * LENGTH + 2 * labels - labels) - 4 * labels * 32


def test_state_is_sixteen_bytes_a_parameter() -> None:
    model, _, _ = build(MODELS["experts"])
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    counted = sum(t.numel() * 4 for t in tensors if t is not None and t.dim() > 0)
    assert state_bytes(ModelShape.from_config(model.config)) == counted
