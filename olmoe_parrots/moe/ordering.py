"""Assignments of tokens to experts in the order of their experts.

Shapes in names: T tokens, E experts, K experts per token (top-k), N = T·K assignments.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Order(NamedTuple):
    """Assignments sorted by expert, stably: an expert sees its tokens in their order."""

    experts_N: Tensor
    """The expert of each sorted assignment."""
    token_N: Tensor
    """The token of each sorted assignment."""
    assignment_N: Tensor
    """Where each sorted assignment stands among the T·K unsorted ones."""
    place_TK: Tensor
    """Where each unsorted assignment stands among the sorted ones: the inverse."""
    ends_E: Tensor
    """Where each expert's assignments end (int32)."""


def order_by_expert(indices_TK: Tensor, num_experts: int) -> Order:
    """The order of the chosen experts `indices_TK` (int64), without leaving the device."""
    experts_N, assignment_N = indices_TK.flatten().sort(stable=True)
    every_expert = torch.arange(num_experts, device=indices_TK.device)
    ends_E = torch.searchsorted(experts_N, every_expert, right=True).to(torch.int32)
    positions_N = torch.arange(len(assignment_N), device=indices_TK.device)
    place_N = torch.empty_like(assignment_N).scatter_(0, assignment_N, positions_N)
    token_N = torch.div(assignment_N, indices_TK.shape[1], rounding_mode="floor")
    return Order(experts_N, token_N, assignment_N, place_N.view_as(indices_TK), ends_E)
