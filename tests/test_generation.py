"""Greedy decoding with a cache: what the model itself would say, token by token, without one."""

from typing import Any

import numpy as np
import pytest
import torch
from synthetic_data import KINDS, TASKS, make_model
from torch import Tensor, nn

from olmoe_parrots.generation import decode_greedily
from olmoe_parrots.model import ModelOutput
from olmoe_parrots.synthetic.task import EOS, PAD

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


class Recorder(nn.Module):
    """Passes calls on and keeps the inputs and the logits of the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.inputs, self.logits = model, [], []

    def forward(self, **arguments: Any) -> ModelOutput:
        output = self.model(**arguments)
        self.inputs.append(arguments["input_ids"])
        self.logits.append(output.logits[:, -1])
        return output


def prompts_of(name: str, count: int = 80) -> Tensor:
    queries, _ = TASKS[name].test_queries(count, count, 5)
    return torch.from_numpy(queries.prompts_QT.astype(np.int64))


def decode_plainly(model: nn.Module, prompt_T: Tensor, length: int) -> tuple[list[int], list[Tensor]]:
    """The whole sequence anew for each token, one prompt at a time; PAD follows EOS."""
    sequence, logits = prompt_T.tolist(), []
    for _ in range(length):
        with torch.no_grad():
            logits.append(model(torch.tensor([sequence])).logits[0, -1])
        sequence.append(int(logits[-1].argmax()))
        if sequence[-1] == EOS:
            break
    decoded = sequence[len(prompt_T) :]
    return decoded + [PAD] * (length - len(decoded)), logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(TASKS))
def test_the_cache_changes_nothing(kind: str, name: str) -> None:
    task, prompts_BT = TASKS[name], prompts_of(name)
    model = make_model(kind, task)
    recorder = Recorder(model)
    decoded_BT = decode_greedily(recorder, prompts_BT, task.answer_length, eos_token_id=EOS, pad_token_id=PAD)
    assert decoded_BT.shape == (80, task.answer_length)
    # with a cache: the prompt once, then a token at a time
    lengths = [inputs.shape[1] for inputs in recorder.inputs]
    assert lengths == [prompts_BT.shape[1], *[1] * (len(lengths) - 1)]
    ended = 0
    for number, prompt_T in enumerate(prompts_BT):
        expected, logits = decode_plainly(model, prompt_T, task.answer_length)
        assert decoded_BT[number].tolist() == expected
        for step, wanted_V in enumerate(logits):
            torch.testing.assert_close(recorder.logits[step][number], wanted_V, rtol=1e-5, atol=1e-5)
        ended += EOS in expected
    assert len({tuple(row) for row in decoded_BT.tolist()}) > 40, "the prompts are told apart"
    if name == "shortest_path":
        assert 0 < ended < 80, "some end early, some do not"


def test_it_stops_when_all_sequences_have_ended() -> None:
    task, prompts_BT = TASKS["phone_book"], prompts_of("phone_book", 8)
    recorder = Recorder(make_model("dense", task))
    first_B = decode_greedily(recorder, prompts_BT, 1, eos_token_id=EOS, pad_token_id=PAD)[:, 0]
    recorder.inputs.clear()
    same = prompts_BT[:1].expand(8, -1)
    decoded_BT = decode_greedily(recorder, same, 4, eos_token_id=int(first_B[0]), pad_token_id=PAD)
    assert len(recorder.inputs) == 1
    assert decoded_BT.tolist() == [[int(first_B[0]), PAD, PAD, PAD]] * 8


def test_nothing_random_is_drawn_and_nothing_learned() -> None:
    task, prompts_BT = TASKS["phone_book"], prompts_of("phone_book", 8)
    model = make_model("moe", task, residual_dropout=0.5)
    state = torch.random.get_rng_state()
    first = decode_greedily(model, prompts_BT, 4, eos_token_id=EOS, pad_token_id=PAD)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, decode_greedily(model, prompts_BT, 4, eos_token_id=EOS, pad_token_id=PAD))
    assert all(parameter.grad is None for parameter in model.parameters())
