"""Greedy decoding with a cache of keys and values, batched, for dense and MoE models alike.

Shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
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


@torch.no_grad()
def continue_greedily(
    model: Callable[..., ModelOutput],
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    eos_token_id: int,
    device: torch.device,
    is_complete: Callable[[list[int]], bool] = lambda decoded: False,
) -> list[list[int]]:
    """At most ``length`` tokens that a model finds likeliest after each prompt; EOS, which ends a sequence, with them.

    Prompts of any lengths, and no padding: the model reads as many tokens of all of them at once as the shortest one
    has, and then one at a time, of a longer prompt its own next token. So every token has the place that it has alone,
    and what is decoded does not depend on the other prompts of a batch, where no expert has a capacity. The steps are
    as many as the longest prompt is longer than the shortest, and those of decoding: batch prompts of like lengths.

    Nothing is joint: ranks that each hold a whole model may call this at different times.

    Args:
        prompts: token ids, at least one in each.
        is_complete: told what was decoded after a prompt, whenever that grows; True ends the sequence.
    """
    place = min(len(prompt) for prompt in prompts)
    decoded: list[list[int]] = [[] for _ in prompts]
    going = [length > 0] * len(prompts)
    inputs_BT = torch.tensor([list(prompt[:place]) for prompt in prompts], device=device)
    keys_values = None
    while any(going):
        output = model(input_ids=inputs_BT, past_key_values=keys_values, use_cache=True, last_logits_only=True)
        keys_values = output.attn_key_values
        tokens = output.logits[:, -1].argmax(dim=-1).tolist()
        for row, prompt in enumerate(prompts):
            if place < len(prompt):
                tokens[row] = prompt[place]
            elif going[row]:
                decoded[row].append(tokens[row])
                ended = tokens[row] == eos_token_id or len(decoded[row]) == length
                going[row] = not ended and not is_complete(decoded[row])
        inputs_BT, place = torch.tensor(tokens, device=device)[:, None], place + 1
    return decoded


def _all_ended(ended_B: Tensor) -> bool:
    going_on: Any = (~ended_B).any().int()
    if get_world_size() > 1:
        dist.all_reduce(going_on)
    return not going_on.item()
