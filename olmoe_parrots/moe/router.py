"""Token-choice top-k routing.

Shapes in names: T tokens, D model width, E experts, K experts per token (top-k).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """What a router decided for T tokens."""

    weights_TK: Tensor
    """How much each chosen expert's output counts; zero where capacity dropped the token."""
    indices_TK: Tensor
    """The chosen experts, best first (int64)."""
    statistics: "RoutingStatistics"


class RoutingStatistics(NamedTuple):
    """All that the auxiliary losses and the load metrics of one layer need, however many tokens there were.

    These few numbers travel with the layer's output, so they are right under activation checkpointing,
    gradient accumulation, compilation and evaluation: nothing is kept anywhere between calls.
    """

    tokens_per_expert_E: Tensor
    """How many of the T·K assignments went to each expert, before any is dropped (float32, no gradient)."""
    mean_probability_E: Tensor
    """Router probability of each expert, averaged over the T tokens (carries gradient)."""
    mean_squared_logsumexp: Tensor
    """Mean over the T tokens of logsumexp(logits)², a scalar (carries gradient)."""


class TopKRouter(nn.Module):
    """Scores every expert for every token in float32 and picks the K best.

    Softmax over all E experts, then top-k, as MegaBlocks' ``LearnedRouter`` and OLMoE do. With ``normalize`` the K
    weights are divided by their sum, as Mixtral does (the same as a softmax over the K chosen logits).

    :param capacity_factor: when given, an expert takes at most ``int(K·T·capacity_factor / E)`` assignments (at least
        one); those of the latest tokens beyond that are dropped: they contribute nothing and are not given to another
        expert. ``None`` is dropless.
    :param loss_in_fp32: whether the load-balancing loss averages probabilities in float32 or in the compute type.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        normalize: bool = False,
        capacity_factor: float | None = None,
        loss_in_fp32: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top-k must lie between 1 and the number of experts: k={top_k}, experts={num_experts}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.normalize = normalize
        self.capacity_factor = capacity_factor
        self.loss_in_fp32 = loss_in_fp32
        self.layer = nn.Linear(d_model, num_experts, bias=False, device=device)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route T tokens; the weights come back in the type of ``x_TD``, or in float64 when that is float64."""
        precise = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
        lowered = compute_dtype(x_TD)
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.to(precise), self.layer.weight.to(precise))
            probabilities_TE = logits_TE.softmax(dim=-1)
            weights_TK, indices_TK = probabilities_TE.topk(self.top_k, dim=-1)
            if self.normalize:
                weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
            statistics = self._statistics(logits_TE, probabilities_TE, indices_TK, lowered)
            if self.capacity_factor is not None:
                weights_TK = weights_TK * self._kept(indices_TK, self.capacity_factor)
        return Routing(weights_TK.to(x_TD.dtype), indices_TK, statistics)

    def _statistics(
        self, logits_TE: Tensor, probabilities_TE: Tensor, indices_TK: Tensor, lowered: torch.dtype
    ) -> RoutingStatistics:
        averaged = probabilities_TE if self.loss_in_fp32 else probabilities_TE.to(lowered)
        counts_E = torch.zeros(self.num_experts, dtype=torch.float32, device=logits_TE.device)
        chosen = indices_TK.flatten()
        # exact: float32 counts whole numbers up to 16.7 million, and no step holds that many assignments in one layer
        counts_E.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))
        return RoutingStatistics(
            tokens_per_expert_E=counts_E,
            mean_probability_E=averaged.mean(dim=0).to(logits_TE.dtype),
            mean_squared_logsumexp=logits_TE.logsumexp(dim=-1).square().mean(),
        )

    def _kept(self, indices_TK: Tensor, capacity_factor: float) -> Tensor:
        """1 where an assignment is within its expert's capacity, first tokens first, else 0 (T, K)."""
        capacity = max(1, int(indices_TK.numel() * capacity_factor / self.num_experts))
        assigned_NE = F.one_hot(indices_TK.flatten(), self.num_experts)
        place_in_queue_N = (assigned_NE.cumsum(dim=0) * assigned_NE).sum(dim=-1)
        return (place_in_queue_N <= capacity).view_as(indices_TK)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products of ``x`` are computed in: autocast's where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
