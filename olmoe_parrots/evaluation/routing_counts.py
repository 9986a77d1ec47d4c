"""Which expert takes which token, counted exactly in the model's own forward pass.

Shapes: L layers, E experts, K experts per token, B sequences of a batch, S tokens each, T = B·S, U different token ids,
G groups of tokens. All counts are int64 on the CPU. The largest table, of experts by token ids, takes 16·L·U·E bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from olmoe_parrots.evaluation.routing_data import Sample
from olmoe_parrots.moe.router import Routing, TopKRouter

SHUFFLES = 20
"""How often the sources are dealt anew to the sequences. Token ids and parts, of which there are many, once."""


@dataclass(frozen=True)
class Grouping:
    """Assignments by group and expert, as counted and with the groups shuffled.

    Args:
        counts_LGE: assignments.
        shuffled_LXGE: the same where the groups of X random permutations of the tokens (or the sequences) are counted
            with the experts of the tokens as they stand: what there is to see where nothing is.
    """

    counts_LGE: Tensor
    shuffled_LXGE: Tensor


class Tables:
    """The counts of a sample, filled layer by layer and batch by batch.

    Args:
        top_k: K. A token that a layer's capacity drops counts as if it were not.
        seed: of the permutations.
    """

    def __init__(self, sample: Sample, layers: int, experts: int, top_k: int, seed: int = 0) -> None:
        self.experts, self.top_k = experts, top_k
        self.tokens = int(sample.counted_RS.sum())
        self.ids_U, compact_N = np.unique(sample.tokens_RS[sample.counted_RS], return_inverse=True)
        self.tokens_U = np.bincount(compact_N)
        self.pairs_LEE = _zeros(layers, experts, experts)
        self.probability_LE = torch.zeros(layers, experts, dtype=torch.float64)
        self.entropy_L = torch.zeros(layers, dtype=torch.float64)
        self.token = _grouping(layers, len(self.ids_U), experts, 1)
        self.part = _grouping(layers, len(sample.parts), experts, 1)
        self.source = _grouping(layers, len(sample.sources), experts, SHUFFLES)
        draw = np.random.default_rng(seed)
        order_N = draw.permutation(self.tokens)
        self._labels = [_Labels(self.token, *_spread(sample, compact_N, order_N))]
        if sample.part_RS is not None:
            self._labels.append(_Labels(self.part, *_spread(sample, sample.part_RS[sample.counted_RS], order_N)))
        self._source_R = torch.from_numpy(sample.source_R)
        self._dealt_XR = torch.stack([self._source_R[draw.permutation(len(self._source_R))] for _ in range(SHUFFLES)])
        self._counted_RS = torch.from_numpy(sample.counted_RS)

    def add(self, layer: int, rows_B: Tensor, indices_TK: Tensor, probabilities_TE: Tensor) -> None:
        """Count what a layer's router did with the sequences `rows_B` of the sample.

        Args:
            indices_TK: the experts that each token takes, padding included.
            probabilities_TE: the router's, of all experts.
        """
        counted_T = self._counted_RS[rows_B].flatten()
        here_T = counted_T.to(indices_TK.device)
        experts_NK = indices_TK[here_T].cpu()
        probabilities_NE = probabilities_TE[here_T].double()
        self.probability_LE[layer] += probabilities_NE.sum(dim=0).cpu()
        self.entropy_L[layer] += torch.special.entr(probabilities_NE).sum().cpu()
        for place in range(self.top_k):
            _add(self.pairs_LEE[layer], experts_NK[:, place], experts_NK)
        for labels in self._labels:
            _add(labels.grouping.counts_LGE[layer], labels.observed_RS[rows_B].flatten()[counted_T], experts_NK)
            shuffled_N = labels.shuffled_RS[rows_B].flatten()[counted_T]
            _add(labels.grouping.shuffled_LXGE[layer, 0], shuffled_N, experts_NK)
        sequence_T = torch.arange(len(rows_B)).repeat_interleave(self._counted_RS.shape[1])
        loads_BE = _add(_zeros(len(rows_B), self.experts), sequence_T[counted_T], experts_NK)
        self.source.counts_LGE[layer].index_add_(0, self._source_R[rows_B], loads_BE)
        for number, dealt_R in enumerate(self._dealt_XR):
            self.source.shuffled_LXGE[layer, number].index_add_(0, dealt_R[rows_B], loads_BE)

    @property
    def load_LE(self) -> Tensor:
        """Assignments of each expert: in each layer they add up to K times the counted tokens."""
        return self.pairs_LEE.diagonal(dim1=1, dim2=2)


@dataclass(frozen=True)
class _Labels:
    """The group of each token, and one that a shuffle gave it; padding has the group 0 and is not counted."""

    grouping: Grouping
    observed_RS: Tensor
    shuffled_RS: Tensor


def count_routing(
    model: nn.Module, sample: Sample, batch_size: int, report: Callable[[int], Any] = lambda sequences: None
) -> Tables:
    """Send a sample through a MoE model and count what its routers choose. Raises ValueError for a dense model.

    Args:
        model: in eval mode; one of :func:`olmoe_parrots.model.build_model`.
        batch_size: sequences at a time.
        report: gets the number of sequences after each batch.
    """
    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    if not routers:
        raise ValueError("the model is dense")
    tables = Tables(sample, len(routers), routers[0].num_experts, routers[0].top_k)
    device = next(model.parameters()).device
    rows_B = torch.empty(0, dtype=torch.int64)

    def hook_of(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...], Routing], None]:
        def hook(router: nn.Module, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            assert isinstance(router, TopKRouter)
            tables.add(layer, rows_B, routing.indices_TK, _probabilities(router, inputs[0]))

        return hook

    handles = [router.register_forward_hook(hook_of(layer)) for layer, router in enumerate(routers)]
    try:
        with torch.inference_mode():
            for rows_B in torch.arange(len(sample.tokens_RS)).split(batch_size):
                tokens_BS = torch.from_numpy(sample.tokens_RS[rows_B.numpy()].astype(np.int64))
                model(tokens_BS.to(device), last_logits_only=True)
                report(len(rows_B))
    finally:
        for handle in handles:
            handle.remove()
    return tables


def _probabilities(router: TopKRouter, x_TD: Tensor) -> Tensor:
    """The router's softmax over all experts (T, E), which it does not hand over: the formula of its `forward`."""
    precise = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
    with torch.autocast(x_TD.device.type, enabled=False):
        return F.linear(x_TD.to(precise), router.layer.weight.to(precise)).softmax(dim=-1)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


def _grouping(layers: int, groups: int, experts: int, shuffles: int) -> Grouping:
    return Grouping(_zeros(layers, groups, experts), _zeros(layers, shuffles, groups, experts))


def _spread(sample: Sample, labels_N: Any, order_N: Any) -> tuple[Tensor, Tensor]:
    """Labels of the counted tokens, as they stand and in another order, in their places: (R, S) each."""
    spread = []
    for labels in (labels_N, labels_N[order_N]):
        labels_RS = np.zeros(sample.tokens_RS.shape, dtype=np.int32)
        labels_RS[sample.counted_RS] = labels
        spread.append(torch.from_numpy(labels_RS))
    return spread[0], spread[1]


def _add(table_GE: Tensor, group_N: Tensor, experts_NK: Tensor) -> Tensor:
    """Add one for each assignment to the row of its token's group; the table, changed."""
    flat = (group_N[:, None].long() * table_GE.shape[1] + experts_NK).flatten()
    table_GE.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
    return table_GE
