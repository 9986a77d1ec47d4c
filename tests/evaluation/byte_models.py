"""Tiny models on bytes, and the tokenizer file that makes bytes of text."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from olmoe_parrots.config import TrainConfig
from olmoe_parrots.evaluation.checkpoints import LoadedModel
from olmoe_parrots.model import build_model, initialize

EOS, PAD = 256, 257
VOCABULARY = 258
MOE = {"block_type": "moe", "moe_num_experts": 4, "moe_top_k": 2, "moe_dropless": True}


def write_tokenizer(path: Path) -> Path:
    """A token for each byte, then EOS and PAD."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {character: number for number, character in enumerate(alphabet)} | {"<eos>": EOS, "<pad>": PAD}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    tokenizer.save(str(path))
    return path


def make_loaded(tokenizer: Path, kind: str, **options: Any) -> LoadedModel:
    """A dense or MoE model in eval mode, with weights large enough for it to say something at each place."""
    settings: dict[str, Any] = {
        "d_model": 64,
        "n_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 64,
        "activation_type": "gelu",
        "rope": True,
        "layer_norm_type": "rms",
        "include_bias": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": 96,
        "vocab_size": VOCABULARY,
        "embedding_size": VOCABULARY,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "init_std": 0.3,
    }
    settings |= MOE if kind == "moe" else {}
    run = {"model": {**settings, **options}, "tokenizer": {"identifier": str(tokenizer)}, "precision": "fp32"}
    cfg = TrainConfig.new(**run)
    model = build_model(cfg.model)
    initialize(model, 1)
    return LoadedModel(model.eval(), cfg, 7, "a/checkpoint/step7")
