"""Parameters, FLOPs and memory of a model, in closed formulas from its shape alone: nothing is built, torch not needed.

Symbols of the paper: d width, L layers, E experts, k experts per token, V vocabulary, S sequence length.
"""

from dataclasses import dataclass
from typing import Any

FP32_BYTES = 4
ADAM_MOMENTS = 2


@dataclass(frozen=True)
class ModelShape:
    """Everything that decides how large a model is and what a token costs."""

    d_model: int
    n_layers: int
    n_heads: int
    hidden_size: int
    """Intermediate width of the FFN, or of each expert, after gating."""
    vocab_size: int
    """Rows of the embedding (OLMo's ``embedding_size`` where it is set)."""
    sequence_length: int
    num_experts: int = 0
    """0 is dense."""
    top_k: int = 0
    n_kv_heads: int | None = None
    gated: bool = False
    shared_expert: bool = False
    bias: bool = False
    norm_parameters: int = 1
    """Vectors a layer norm learns: 0 without affine, 1 weight, 2 weight and bias."""
    qk_norm_parameters: int = 0
    weight_tying: bool = True
    learned_positions: bool = False
    embedding_norm: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """The shape of an OLMo ``ModelConfig`` (or ours), read by attribute."""
        moe = str(config.block_type) == "moe"
        gated = str(config.activation_type) == "swiglu"
        hidden = config.mlp_hidden_size if config.mlp_hidden_size is not None else config.mlp_ratio * config.d_model
        norm_bias = config.include_bias if config.bias_for_layer_norm is None else config.bias_for_layer_norm
        norm = 1 + int(norm_bias)
        return cls(
            d_model=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.effective_n_kv_heads,
            hidden_size=hidden // 2 if gated else hidden,
            vocab_size=config.embedding_size or config.vocab_size,
            sequence_length=config.max_sequence_length,
            num_experts=config.moe_num_experts if moe else 0,
            top_k=config.moe_top_k if moe else 0,
            gated=gated,
            shared_expert=moe and config.moe_shared_expert,
            bias=config.include_bias,
            norm_parameters=norm if config.layer_norm_with_affine else 0,
            qk_norm_parameters=norm if config.attention_layer_norm and config.attention_layer_norm_with_affine else 0,
            weight_tying=config.weight_tying,
            learned_positions=not (config.rope or config.alibi),
            embedding_norm=config.embedding_layer_norm,
        )

    @property
    def _kv_width(self) -> int:
        return self.d_model // self.n_heads * (self.n_heads if self.n_kv_heads is None else self.n_kv_heads)

    @property
    def _ffn_inputs(self) -> int:
        return self.hidden_size * (2 if self.gated else 1)

    def ffn_params(self) -> int:
        """Of one feed-forward network or one expert: 2·d·hidden, or 3·d·hidden when gated, and its biases."""
        biases = self._ffn_inputs + self.d_model if self.bias else 0
        return self.d_model * (self._ffn_inputs + self.hidden_size) + biases

    def attention_params(self) -> int:
        """Of one layer: 4·d² with as many key-value heads as query heads, and its biases."""
        qkv = self.d_model + 2 * self._kv_width
        return self.d_model * (qkv + self.d_model) + (qkv + self.d_model if self.bias else 0)

    def _layer_params(self, experts: int) -> int:
        norms = 2 * self.norm_parameters * self.d_model + self.qk_norm_parameters * (self.d_model + self._kv_width)
        networks = experts + int(self.shared_expert) if self.num_experts else 1
        router = self.d_model * self.num_experts
        return self.attention_params() + norms + router + networks * self.ffn_params()

    def _params(self, experts: int) -> int:
        ends = self.vocab_size * self.d_model + self.norm_parameters * self.d_model
        if self.learned_positions:
            ends += self.sequence_length * self.d_model
        if self.embedding_norm:
            ends += self.norm_parameters * self.d_model
        if not self.weight_tying:
            ends += self.vocab_size * (self.d_model + int(self.bias))
        return ends + self.n_layers * self._layer_params(experts)

    def total_params(self) -> int:
        """All parameters: V·d + L·(4 + 2E)·d² for the paper's grid, plus norms and routers."""
        return self._params(self.num_experts)

    def active_params(self) -> int:
        """Parameters one token meets: V·d + L·(4 + 2k)·d² for the paper's grid, plus norms and routers."""
        return self._params(self.top_k)

    def non_embedding_params(self) -> int:
        """All parameters but the input (and position) embedding; a tied output matrix is the input embedding."""
        positions = self.sequence_length if self.learned_positions else 0
        return self.total_params() - (self.vocab_size + positions) * self.d_model

    def flops_per_token(self) -> int:
        """Forward and backward FLOPs of one training token: ``6·N + 12·L·d·S`` (PaLM, appendix B).

        N counts the weights of the matrix products that a token meets: attention, router, the k chosen experts (and
        the shared one) and the output matrix, tied or not; no norms, biases or look-ups. Attention is counted over the
        whole sequence, causal or not, as PaLM, Megatron and OLMo do. Backward is twice forward.
        """
        networks = self.top_k + int(self.shared_expert) if self.num_experts else 1
        ffn = self.d_model * (self._ffn_inputs + self.hidden_size)
        attention = self.d_model * (2 * self.d_model + 2 * self._kv_width)
        layer = attention + self.d_model * self.num_experts + networks * ffn
        weights = self.n_layers * layer + self.vocab_size * self.d_model
        return 6 * weights + 12 * self.n_layers * self.d_model * self.sequence_length

    def checkpoint_bytes(self) -> int:
        """Size of a training checkpoint: the weights and AdamW's two moments in float32 (12 bytes a parameter)."""
        return FP32_BYTES * (1 + ADAM_MOMENTS) * self.total_params()
