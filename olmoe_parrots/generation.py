"""Greedy decoding with a cache of keys and values, batched, for dense and MoE models alike.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from olmo.torch_util import get_world_size
from torch import Tensor

from .model import ModelOutput


@torch.no_grad()
def decode_greedily(
    model: Callable[..., ModelOutput], prompts_BT: Tensor, length: int, *, eos_token_id: int, pad_token_id: int
) -> Tensor:
    """The ``length`` tokens that a model finds likeliest after each prompt, one by one: (B, length).

    What follows a sequence's EOS is PAD; decoding stops early when every sequence has one. The model is called as it
    is: put it in eval mode, and into autocast, first. Nothing random is drawn.

    All prompts are of one length; padding among them is not masked. Where experts have a capacity (``moe_dropless:
    false``), what is dropped depends on the tokens of a forward pass, and so on the batch and the cache.

    With several ranks all of them must call this together, each with its own prompts, as a sharded model's forward
    passes are joint ones: each goes on until all are done.
    """
    decoded_BT = prompts_BT.new_full((len(prompts_BT), length), pad_token_id)
    ended_B = torch.zeros(len(prompts_BT), dtype=torch.bool, device=prompts_BT.device)
    inputs_BT, keys_values = prompts_BT, None
    for step in range(length):
        output = model(input_ids=inputs_BT, past_key_values=keys_values, use_cache=True, last_logits_only=True)
        keys_values = output.attn_key_values
        chosen_B = output.logits[:, -1].argmax(dim=-1).masked_fill_(ended_B, pad_token_id)
        decoded_BT[:, step] = chosen_B
        ended_B |= chosen_B == eos_token_id
        if step + 1 == length or _all_ended(ended_B):
            break
        inputs_BT = chosen_B[:, None]
    return decoded_BT


def _all_ended(ended_B: Tensor) -> bool:
    going_on: Any = (~ended_B).any().int()
    if get_world_size() > 1:
        dist.all_reduce(going_on)
    return not going_on.item()
