"""Small data sets of both synthetic tasks, and models for them."""

from pathlib import Path
from typing import Any

from olmoe_parrots.config import ModelConfig
from olmoe_parrots.model import ParrotsOLMo, build_model, initialize
from olmoe_parrots.synthetic.build import build
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath
from olmoe_parrots.synthetic.task import EOS, PAD, Task

TASKS: dict[str, Task] = {
    "phone_book": PhoneBook(name_length=3, number_length=4),
    "shortest_path": ShortestPath(vertices=10),
}
KINDS = ("dense", "moe")


def make_data(folder: Path, name: str, size: int = 256, test_size: int = 200, seed: int = 0) -> Path:
    """A data set folder of a task."""
    build(TASKS[name], size, test_size, seed, folder, 1)
    return folder


def make_model(kind: str, task: Task, **options: Any) -> ParrotsOLMo:
    """A model in eval mode whose weights are random and large enough for it to say something at each place."""
    words = len(task.vocabulary.words)
    settings: dict[str, Any] = {
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 64,
        "activation_type": "swiglu",
        "rope": True,
        "layer_norm_type": "rms",
        "include_bias": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": task.row_length,
        "vocab_size": words,
        "embedding_size": words,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "init_std": 0.3,
    }
    if kind == "moe":
        settings |= {"block_type": "moe", "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": True}
    model = build_model(ModelConfig.new(**{**settings, **options}))
    initialize(model, 1)
    return model.eval()
