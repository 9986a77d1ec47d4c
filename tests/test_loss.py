"""Losses without a whole batch's logits are those with them, in the model and in training."""

import pytest
import torch
import torch.nn.functional as F
from test_model import make_model

from olmoe_parrots.config import ModelConfig
from olmoe_parrots.loss import chunked_cross_entropy, pays_to_chunk
from olmoe_parrots.memory import LOSS_CHUNK


def test_it_is_the_cross_entropy_of_the_logits() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2 * LOSS_CHUNK + 7, 16, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(300, 16, requires_grad=True)
    labels = torch.randint(0, 300, (len(hidden),))
    labels[::5] = -100
    found = chunked_cross_entropy(hidden, weight, labels)
    doubles = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = F.cross_entropy(doubles[0] @ doubles[1].T, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(0.25 * found, (hidden, weight))
    for actual, wanted in zip(gradients, torch.autograd.grad(0.25 * expected, doubles), strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"block_type": "sequential"}, {"weight_tying": False}, {"scale_logits": True}, {"block_group_size": 2}],
    ids=str,
)
def test_a_model_with_labels_gives_the_loss_of_its_logits(options: dict) -> None:
    model = make_model(n_layers=2, **options)
    torch.manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (3, 9))
    labels = ids[:, 1:].clone()
    labels[0, 3:] = -100
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)
    assert output.logits.shape[1] == 0, "no position's logits are kept"
    assert (output.routing is None) == (options.get("block_type") == "sequential")
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for parameter, found, gradient in zip(
        parameters, torch.autograd.grad(output.loss, parameters, allow_unused=True), wanted, strict=True
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5, msg=str(parameter.shape))
    assert model(ids).logits.shape[1] == 9, "the next forward pass gives logits again"


def test_where_it_is_taken() -> None:
    wide, narrow = ModelConfig(d_model=64, vocab_size=1000), ModelConfig(d_model=64, vocab_size=30, embedding_size=32)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pays_to_chunk(wide, torch.float32, cpu)
    assert not pays_to_chunk(narrow, torch.float32, cpu), "fewer logits than features"
    assert not pays_to_chunk(wide, torch.bfloat16, cpu)
    assert not pays_to_chunk(wide, torch.float32, cuda), "unmeasured there"
