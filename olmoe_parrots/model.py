"""OLMo with mixture-of-experts blocks.

:func:`build_model` gives :class:`ParrotsOLMo` for a dense config and :class:`MoEOLMo` for a MoE one; both answer with
:class:`ModelOutput`, and both know their FLOPs from closed formulas.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from olmo.model import OLMo, OLMoBlockGroup
from torch import Tensor, nn

from .accounting import ModelShape
from .config import BlockType, ModelConfig
from .loss import chunked_cross_entropy
from .moe.block import Collect, MoEBlock
from .moe.router import RoutingStatistics


class ModelOutput(NamedTuple):
    """OLMo's output (olmo/model.py:974) and the routing of the same forward pass."""

    logits: Tensor
    """(batch, sequence, vocabulary)"""
    attn_key_values: list[tuple[Tensor, Tensor]] | None
    hidden_states: tuple[Tensor, ...] | None
    routing: list[RoutingStatistics] | None
    """One entry a MoE layer; ``None`` for a dense model."""
    loss: Tensor | None = None
    """The sum of the labels' cross-entropies, where labels were given; then ``logits`` has no positions."""


class ParrotsOLMo(OLMo):
    """OLMo's own dense model, with :class:`ModelOutput`, and with FLOPs that count the tied output matrix and only the
    experts a token visits."""

    config: ModelConfig

    def reset_parameters(self) -> None:
        """OLMo's (olmo/model.py:1167), which forgets the norm of the embeddings."""
        super().reset_parameters()
        if self.config.embedding_layer_norm:
            self.transformer["emb_norm"].reset_parameters()  # type: ignore[operator]

    @property
    def num_fwd_flops(self) -> int:
        """Forward FLOPs per token (OLMo's, at olmo/model.py:1569, leaves out the tied output matrix)."""
        return ModelShape.from_config(self.config).flops_per_token() // 3

    @property
    def num_bck_flops(self) -> int:
        """Backward FLOPs per token: twice the forward's."""
        return 2 * self.num_fwd_flops

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> ModelOutput:  # type: ignore[override]
        """OLMo's, and with `labels` (batch, sequence - 1) their loss, for which no logits are kept.

        It is in the forward pass that FSDP has the weights of the output matrix whole.
        """
        if labels is None:
            return self._forward(*args, **kwargs)
        hidden_states: list[Tensor] = []

        def take(module: nn.Module, arguments: Any, normed: Tensor) -> Tensor:
            hidden_states.append(normed)
            return normed[:, :0]

        hook = self.transformer["ln_f"].register_forward_hook(take)
        try:
            output = self._forward(*args, **kwargs)
        finally:
            hook.remove()
        return output._replace(loss=self._loss(hidden_states[0][:, :-1], labels))

    def _forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        return ModelOutput(*OLMo.forward(self, *args, **kwargs), routing=None)

    def _loss(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        if self.config.scale_logits:
            hidden_BSD = hidden_BSD / math.sqrt(self.config.d_model)
        weight = self.transformer["wte" if self.config.weight_tying else "ff_out"].weight
        return chunked_cross_entropy(hidden_BSD.flatten(0, 1), cast(Tensor, weight), labels_BS.flatten())


class MoEOLMo(ParrotsOLMo):
    """OLMo whose blocks are :class:`~olmoe_parrots.moe.block.MoEBlock`."""

    def __init__(self, config: ModelConfig, init_params: bool = True) -> None:
        # OLMo.__init__ builds dense blocks (olmo/model.py:1099): one, without memory, and then ours in its place
        scaffold = replace(config, block_type=BlockType.sequential, n_layers=1, block_group_size=1, init_device="meta")
        super().__init__(scaffold, init_params=False)
        device = config.init_device
        if device != "meta":
            self.to_empty(device=device or "cpu")
        self.config = config
        cache: Any = self._OLMo__cache
        blocks = [MoEBlock(i, config, cache) for i in range(config.n_layers)]
        if config.block_group_size > 1:
            size = config.block_group_size
            groups = [OLMoBlockGroup(config, i, blocks[i : i + size]) for i in range(0, config.n_layers, size)]
            del self.transformer["blocks"]
            self.transformer["block_groups"] = nn.ModuleList(groups)
        else:
            self.transformer["blocks"] = nn.ModuleList(blocks)
        if init_params and device != "meta":
            self.reset_parameters()

    def _forward(self, *args: Any, use_cache: bool = False, **kwargs: Any) -> ModelOutput:
        wanted = Collect.ROUTING | (Collect.KEYS_VALUES if use_cache else Collect.NOTHING)
        forward: Any = OLMo.forward  # OLMo types the flag as bool and what blocks return as keys and values
        logits, collected, hidden_states = forward(self, *args, use_cache=wanted, **kwargs)
        keys_values = [block.keys_values for block in collected] if use_cache else None
        return ModelOutput(logits, keys_values, hidden_states, [block.statistics for block in collected])


def build_model(config: ModelConfig, init_params: bool = True) -> ParrotsOLMo:
    """The model that a config describes, on ``config.init_device`` (the CPU when unset).

    :raises olmo.exceptions.OLMoConfigurationError: when OLMo refuses the combination of options.
    """
    model_class = MoEOLMo if config.block_type == BlockType.moe else ParrotsOLMo
    return model_class(config, init_params=init_params)


def initialize(model: nn.Module, seed: int) -> None:
    """Draw all initial weights of an unwrapped model from ``seed`` alone, whatever was drawn before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model.reset_parameters()  # type: ignore[operator]
