"""OLMo's transformer block with a mixture of experts in place of its feed-forward network.

``OLMoSequentialBlock.forward`` (olmo/model.py:722) is used whole: its ``ff_proj`` and ``act`` become identities and its
``ff_out`` the MoE layer. The layer's routing statistics leave through the slot in which OLMo's blocks return their keys
and values, which ``OLMo.forward`` collects whenever ``use_cache`` is true.
"""

import math
from enum import IntFlag
from typing import Any, NamedTuple

import torch.nn.functional as F
from olmo.config import ActivationType, InitFnType
from olmo.initialization import init_normal
from olmo.model import BufferCache, OLMoSequentialBlock
from torch import Tensor, nn

from .experts import Activation
from .layer import MoELayer
from .router import RoutingStatistics, TopKRouter


class Collect(IntFlag):
    """What a forward pass is to collect from its blocks; goes where OLMo passes ``use_cache``."""

    NOTHING = 0
    KEYS_VALUES = 1
    ROUTING = 2


class Collected(NamedTuple):
    """What one block gives back beside its hidden states."""

    keys_values: tuple[Tensor, Tensor] | None
    statistics: RoutingStatistics


class FeedForwardMoE(MoELayer):
    """A :class:`MoELayer` that returns only its output, as OLMo's block expects of ``ff_out``.

    The statistics wait in ``statistics`` for the block that called it, which takes them at once.
    """

    statistics: RoutingStatistics | None = None

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y, self.statistics = super().forward(x)
        return y


ACTIVATIONS = {
    ActivationType.gelu: Activation(F.gelu),
    ActivationType.relu: Activation(F.relu),
    ActivationType.swiglu: Activation(F.silu, gated=True),
}


class MoEBlock(OLMoSequentialBlock):
    """``config`` is a :class:`olmoe_parrots.config.ModelConfig` whose ``block_type`` is ``moe``."""

    ff_out: FeedForwardMoE  # type: ignore[assignment]

    def __init__(self, layer_id: int, config: Any, cache: BufferCache) -> None:
        super().__init__(layer_id, config, cache)
        hidden_size = int(self.act.output_multiplier * self.hidden_size)
        router = TopKRouter(
            config.d_model,
            config.moe_num_experts,
            config.moe_top_k,
            normalize=config.moe_normalize_expert_weights,
            capacity_factor=None if config.moe_dropless else config.moe_capacity_factor,
            loss_in_fp32=config.moe_lbl_in_fp32,
            device=config.init_device,
        )
        self.ff_proj = nn.Identity()  # type: ignore[assignment]
        self.act = nn.Identity()  # type: ignore[assignment]
        self.ff_out = FeedForwardMoE(
            config.d_model,
            hidden_size,
            router,
            ACTIVATIONS[config.activation_type],
            bias=config.include_bias,
            shared_expert=config.moe_shared_expert,
            backend=config.moe_backend,
            device=config.init_device,
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, attention_bias: Any = None, layer_past: Any = None, use_cache: Any = False, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """As OLMo's, but with :class:`Collect` in ``use_cache`` and :class:`Collected` as the second output."""
        wanted = Collect(use_cache)
        try:
            x, keys_values = super().forward(
                x, attention_bias, layer_past=layer_past, use_cache=bool(wanted & Collect.KEYS_VALUES), **kwargs
            )
        finally:  # recomputation under activation checkpointing may stop by an exception after the experts
            statistics, self.ff_out.statistics = self.ff_out.statistics, None
        assert statistics is not None, "the experts ran"
        return x, Collected(keys_values, statistics) if wanted else None

    def reset_parameters(self) -> None:
        """As OLMo's blocks (olmo/model.py:479,698): the experts' input projection and the router like its ``ff_proj``,
        the output projection like its ``ff_out``."""
        for norm in (self.q_norm, self.k_norm, self.attn_norm, self.ff_norm):
            if norm is not None:
                norm.reset_parameters()
        ffn, cutoff = self.ff_out, self.config.init_cutoff_factor
        hidden_size = ffn.w_out.out_features
        if self.config.init_fn == InitFnType.normal:
            std_in = std_attn_out = std_ffn_out = self.config.init_std
        elif self.config.init_fn == InitFnType.full_megatron:
            std_in = self.config.init_std
            std_attn_out = std_ffn_out = self.config.init_std / math.sqrt(2.0 * self.config.n_layers)
            cutoff = cutoff or 3.0
        elif self.config.init_fn == InitFnType.mitchell:
            std_in = 1 / math.sqrt(self.config.d_model)
            std_attn_out = 1 / math.sqrt(2 * self.config.d_model * (self.layer_id + 1))
            std_ffn_out = 1 / math.sqrt(2 * hidden_size * (self.layer_id + 1))
            cutoff = cutoff or 3.0
        else:
            raise NotImplementedError(f"init_fn {self.config.init_fn}: use normal, mitchell or full_megatron")
        init_normal(self.att_proj, std_in, cutoff)
        init_normal(self.attn_out, std_attn_out, cutoff)
        init_normal(ffn.router.layer, std_in, cutoff)
        init_normal(ffn.w_in, std_in, cutoff)
        init_normal(ffn.w_out, std_ffn_out, cutoff)
        if ffn.shared_expert is not None:
            init_normal(ffn.shared_expert.w_in, std_in, cutoff)
            init_normal(ffn.shared_expert.w_out, std_ffn_out, cutoff)
