"""The two auxiliary losses of a router, from the statistics that travel with a forward pass.

For one layer with T tokens, E experts and K experts per token, let n_e be the number of assignments of expert e
(they sum to T·K), P_e the router probability of expert e averaged over the tokens and z_t the router logits of token t.

Load balancing (Switch Transformer, eq. 4, for top-k)::

    E / (T·K) · Σ_e n_e · P_e          1 when the load is even; averaged over the layers

- MegaBlocks' ``batched_load_balancing_loss`` is this very formula, times its ``moe_loss_weight``.
- Hugging Face's ``load_balancing_loss_func`` (Mixtral, OLMoE) does not divide by K and pools the layers before it
  multiplies: with one layer, or with equal statistics in all, it is K times this one. A weight tuned there has to be
  multiplied by K here.

Router z-loss (ST-MoE, eq. 5)::

    1/T · Σ_t logsumexp(z_t)²          averaged over the layers

- MegaBlocks' ``batched_router_zloss`` gives this value, times its ``moe_zloss_weight``, once a layer and leaves it to
  the caller to reduce them. OLMo-core takes their mean, as we do, which keeps a weight's meaning at any depth; a
  caller that sums them has a weight L times smaller for the same loss.

Both are taken over the tokens of one micro-batch on one rank, as in OLMoE, weighted by the micro-batch's share of the
batch. The z-loss is linear in the tokens, so it does not depend on how the batch is cut; load balancing multiplies two
averages, so it does, unless ``tokens_per_expert`` is given from the whole global batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .router import RoutingStatistics


def load_balancing_loss(layers: Sequence[RoutingStatistics], *, tokens_per_expert_LE: Tensor | None = None) -> Tensor:
    """Unweighted load-balancing loss, averaged over the layers (a scalar; 1 when every load is even).

    :param layers: the statistics of each MoE layer of one forward pass.
    :param tokens_per_expert_LE: counts (layers, E) to use in place of those of this forward pass: those of the global
        batch. Only their proportions matter.
    """
    mean_probability_LE = torch.stack([layer.mean_probability_E for layer in layers])
    if tokens_per_expert_LE is None:
        tokens_per_expert_LE = torch.stack([layer.tokens_per_expert_E for layer in layers])
    # the counts sum to T·K, so their share is n_e / (T·K)
    share_LE = tokens_per_expert_LE / tokens_per_expert_LE.sum(dim=-1, keepdim=True)
    num_experts = mean_probability_LE.shape[-1]
    return num_experts * (share_LE * mean_probability_LE).sum(dim=-1).mean()


def router_z_loss(layers: Sequence[RoutingStatistics]) -> Tensor:
    """Unweighted router z-loss, averaged over the layers (a scalar)."""
    return torch.stack([layer.mean_squared_logsumexp for layer in layers]).mean()
