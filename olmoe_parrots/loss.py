"""Cross-entropy of the output matrix without the logits of a whole batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .memory import LOSS_CHUNK


def pays_to_chunk(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :func:`chunked_cross_entropy` is taken: in float32 on the CPU, where a position has more logits than
    features, by a torch that has it (2.13)."""
    if device.type != "cpu" or dtype != torch.float32 or not hasattr(F, "linear_cross_entropy"):
        return False
    return (model.embedding_size or model.vocab_size) > model.d_model


def chunked_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of the cross-entropies of ``hidden @ weight.T``; labels of -100 count nothing.

    torch's own, which computes the gradients of a chunk of positions as soon as it has their logits.
    """
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_CHUNK, acc_policy="compact")
    return F.linear_cross_entropy(hidden_ND, weight_VD, labels_N, reduction="sum", ignore_index=-100, options=options)
