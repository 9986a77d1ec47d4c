"""The mixture-of-experts feed-forward layer: a router, its experts and, if asked for, one shared expert."""

import torch
from torch import Tensor, nn

from .experts import BACKENDS, Activation, ExpertLinear, ExpertWeights, choose_backend
from .router import RoutingStatistics, TopKRouter, compute_dtype


class SharedExpert(nn.Module):
    """An expert that every token visits; its output is added to the chosen experts' (DeepSeekMoE, as in OLMoE)."""

    def __init__(
        self, d_model: int, input_width: int, hidden: int, activation: Activation, bias: bool, device: str | None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.w_in = nn.Linear(d_model, input_width, bias=bias, device=device)
        self.w_out = nn.Linear(hidden, d_model, bias=bias, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_out(self.activation(self.w_in(x)))


class MoELayer(nn.Module):
    """Takes (..., D), gives (..., D) and the layer's :class:`RoutingStatistics`.

    :param hidden_size: intermediate width H of each expert, after gating.
    :param activation: the pointwise function, and whether the experts are gated (an input projection 2·H wide).
    :param backend: a name of :data:`~olmoe_parrots.moe.experts.BACKENDS`, or ``auto``.
    """

    def __init__(
        self,
        d_model: int,
        hidden_size: int,
        router: TopKRouter,
        activation: Activation,
        *,
        bias: bool = False,
        shared_expert: bool = False,
        backend: str = "auto",
        device: str | None = None,
    ) -> None:
        super().__init__()
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: use auto, {', '.join(BACKENDS)}")
        input_width = 2 * hidden_size if activation.gated else hidden_size
        num_experts = router.num_experts
        self.router = router
        self.activation = activation
        self.backend = backend
        self.w_in = ExpertLinear(num_experts, input_width, d_model, input_width if bias else None, device)
        self.w_out = ExpertLinear(num_experts, hidden_size, d_model, d_model if bias else None, device)
        self.shared_expert: SharedExpert | None = None
        if shared_expert:
            self.shared_expert = SharedExpert(d_model, input_width, hidden_size, activation, bias, device)

    def forward(self, x: Tensor) -> tuple[Tensor, RoutingStatistics]:
        x_TD = x.reshape(-1, x.shape[-1])
        dtype = compute_dtype(x_TD)
        routing = self.router(x_TD)
        # neither grouped_mm nor MegaBlocks is on autocast's lists for every device, so the cast is made here
        experts = ExpertWeights(
            *(None if p is None else p.to(dtype) for p in (self.w_in.weight, self.w_out.weight)),
            *(None if p is None else p.to(dtype) for p in (self.w_in.bias, self.w_out.bias)),
        )
        x_cast = x_TD.to(dtype)
        run = BACKENDS[choose_backend(self.backend, x_cast, experts)]
        with torch.autocast(x.device.type, enabled=False):
            y_TD = run(x_cast, routing.weights_TK.to(dtype), routing.indices_TK, experts, self.activation)
        y = y_TD.view(x.shape)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        return y, routing.statistics
