"""Memory of a training step on one device, in closed formulas from a model's shape alone; torch is not needed.

Counted tensor by tensor in what autograd keeps of OLMo's block (olmo/model.py:722), of the threaded experts
(moe/threaded.py) and of the chunked loss (loss.py): training in float32 on the CPU, with RMS norms, rotary positions
and no dropout.

Symbols: T tokens of a micro-batch, d width, w width of all keys (or values), H heads, E experts, k experts per token.
"""

from .accounting import ADAM_MOMENTS, FP32_BYTES, ModelShape

INDEX_BYTES = 8
LOSS_CHUNK = 512
"""Positions whose logits loss.py has at a time."""


def state_bytes(shape: ModelShape) -> int:
    """Weights, their gradients and AdamW's two moments: 16 bytes a parameter."""
    return FP32_BYTES * (2 + ADAM_MOMENTS) * shape.total_params()


def activation_bytes(
    shape: ModelShape,
    sequences: int,
    sequence_length: int,
    *,
    checkpointing: bool = False,
    chunked_loss: bool = True,
) -> int:
    """Bytes of one micro-batch's activations, when they are most: what is kept for the backward pass, and the logits.

    Without checkpointing that is when the loss is computed. All layers keep their parts (:func:`layer_bytes`), the last
    norm its own, and the loss the gradient of its input; one chunk of logits comes to that. The gradient of the output
    matrix, which the loss keeps too, is counted with the parameters. With checkpointing, layers keep their inputs
    alone, and all of one layer may take the place of the loss.

    Args:
        sequences: of a micro-batch.
        sequence_length: in tokens.
        checkpointing: of whole layers (OLMo's ``whole_layer``).
        chunked_loss: as on the CPU in float32; else OLMo's own (olmo/train.py:720), with all logits thrice: as they
            come, without each sequence's last, and their log-softmax.
    """
    tokens, labels = sequences * sequence_length, sequences * (sequence_length - 1)
    boundary = FP32_BYTES * tokens * shape.d_model
    norm = FP32_BYTES * tokens * _norm_floats(shape)
    ends = INDEX_BYTES * tokens + norm + boundary  # token numbers, the last norm and its output
    if shape.embedding_norm:
        ends += norm
    if chunked_loss:
        loss = FP32_BYTES * (labels * shape.d_model + min(LOSS_CHUNK, labels) * shape.vocab_size)
    else:
        loss = FP32_BYTES * (tokens + 2 * labels) * shape.vocab_size
    layer = layer_bytes(shape, sequences, sequence_length)
    if checkpointing:
        return shape.n_layers * boundary + ends + max(loss, layer - boundary)
    return shape.n_layers * layer + ends + loss


def layer_bytes(shape: ModelShape, sequences: int, sequence_length: int) -> int:
    """What one layer keeps for its backward pass, its input among it, its output not.

    In floats a token: 6·d + 2 for both norms with their inputs and outputs, of which the normalized values are apart
    from the outputs by the norms' weights; 2·d + 3·w for queries, keys and values as projected together, and queries
    and keys as turned; d + H for the attention's output and logsumexps; and the feed-forward network.
    """
    width, heads = shape.d_model, shape.n_heads
    kv_width = width // heads * (heads if shape.n_kv_heads is None else shape.n_kv_heads)
    projected, turned = width + 2 * kv_width, width + kv_width
    if kv_width < width:  # keys and values are repeated for each query head, and of neither the original is needed
        projected, turned = 0, 3 * width
    if shape.qk_norm_parameters:
        projected = width + 2 * kv_width
        turned += width + kv_width + 2
    norms = 2 * (_norm_floats(shape) + width)  # and their outputs
    tokens = sequences * sequence_length
    ends_of_experts = FP32_BYTES * shape.num_experts
    return (
        tokens * (FP32_BYTES * (norms + projected + turned + width + heads) + _network_bytes(shape)) + ends_of_experts
    )


def _norm_floats(shape: ModelShape) -> int:
    """Of an RMS norm, a token, without its output: input, 1/RMS and, where a weight follows, the normalized input."""
    return shape.d_model * (2 if shape.norm_parameters else 1) + 1


def _network_bytes(shape: ModelShape) -> int:
    """Of the feed-forward network, a token, without its input."""
    input_width = shape.hidden_size * (2 if shape.gated else 1)
    # what goes into the activation, and what comes out; gated: SiLU of the gate, and its product
    dense = input_width + shape.hidden_size * (2 if shape.gated else 1)
    if not shape.num_experts:
        return FP32_BYTES * dense
    # logits, probabilities, logsumexp; weights of the chosen experts, and their input projections
    floats = 2 * shape.num_experts + 1 + shape.top_k * (1 + input_width)
    if shape.shared_expert:
        floats += dense
    # of an assignment: its expert, and the four tensors of moe.ordering.Order
    return FP32_BYTES * floats + INDEX_BYTES * 5 * shape.top_k
