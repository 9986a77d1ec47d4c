"""What a run of a grid costs, from its config: FLOPs, hours, memory of a GPU, disk. docs/cluster.md has the formulas.

Parameters, FLOPs and checkpoint sizes are exact. Memory is derived from the tensors that the model keeps for its
backward pass. Hours follow from a measured rate, or from an MFU that is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from launch.config_grid import Gpu, GridJob
from launch.metrics_tail import last_row
from launch.rates import Rates
from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.errors import InputError

STATE_BYTES = 16
"""Of a parameter in training: weight, gradient and AdamW's two moments in float32."""

LOGIT_BYTES = {"fp32": 16, "mixed": 12}
"""Of a logit at the peak (assumed): itself in the compute precision, and its log-probability and two gradients."""

RATE = "throughput/device_tokens_per_second"
HYBRID = ("HYBRID_SHARD", "_HYBRID_SHARD_ZERO2")


@dataclass(frozen=True)
class Cost:
    """What a run takes. `rate_source` says where its speed comes from: "given", "measured" in the run,
    "benchmark", "assumed" or "unknown"."""

    total_params: int
    active_params: int
    steps: int
    tokens: int
    flops: int
    device_tokens_per_second: float | None
    rate_source: str
    hours: float | None
    gpu_hours: float | None
    memory_bytes: float
    disk_bytes: int


def cost_of(job: GridJob, gpu: Gpu | None, rates: Rates | None = None) -> Cost:
    """The cost of a run. Raises InputError for a config that OLMo refuses, or that its GPUs cannot share.

    Args:
        gpu: the GPU that is reckoned with.
        rates: of a benchmark.
    """
    cfg = job.check()
    shape = ModelShape.from_config(cfg.model)
    if job.steps is None:
        remedy = "give max_duration in steps (60000) or tokens (63e9T)"
        raise InputError(job.source, f"max_duration={cfg.max_duration}: its steps depend on the data", remedy)
    tokens = job.steps * cfg.global_train_batch_size * cfg.model.max_sequence_length
    flops = tokens * shape.flops_per_token()
    rate, source = _rate(job, gpu, rates, shape)
    hours = tokens / (rate * job.ranks) / 3600 if rate else None
    return Cost(
        total_params=shape.total_params(),
        active_params=shape.active_params(),
        steps=job.steps,
        tokens=tokens,
        flops=flops,
        device_tokens_per_second=rate,
        rate_source=source,
        hours=hours,
        gpu_hours=hours * job.ranks if hours is not None else None,
        memory_bytes=memory_bytes(cfg, shape, job.ranks, job.processes_per_node),
        disk_bytes=disk_bytes(cfg, shape, job.steps),
    )


def _rate(job: GridJob, gpu: Gpu | None, rates: Rates | None, shape: ModelShape) -> tuple[float | None, str]:
    """Tokens/s of one GPU, and where that comes from."""
    if job.device_tokens_per_second is not None:
        return job.device_tokens_per_second, "given"
    if (row := last_row(job.folder, RATE)) is not None:
        return row[RATE], "measured"
    # of the config as it was measured, not of another model
    same_model = job.gpus_per_node and not any(key.split(".")[0] == "model" for key in job.overrides)
    if rates is not None and same_model:
        name = None if gpu is None else gpu.name
        if (rate := rates.of(job.source.stem, name)) is not None:
            return rate, "benchmark"
    if gpu is None or not job.gpus_per_node:
        return None, "unknown"
    return gpu.peak_flops * (job.mfu or gpu.mfu) / shape.flops_per_token(), "assumed"


def memory_bytes(cfg: Any, shape: ModelShape, ranks: int, ranks_per_node: int) -> float:
    """Peak memory of one GPU: state, what FSDP gathers, activations and logits of a micro-batch (docs/cluster.md).

    Args:
        cfg: a :class:`olmoe_parrots.config.TrainConfig`.
        ranks: that share the batch.
        ranks_per_node: that share the state under HYBRID_SHARD.
    """
    parameters = shape.total_params()
    mixed = cfg.precision != "fp32"
    width = 2 if mixed else 4
    layer = (parameters - shape.vocab_size * shape.d_model) / shape.n_layers
    strategy = str(getattr(cfg.fsdp.sharding_strategy, "name", cfg.fsdp.sharding_strategy)) if cfg.fsdp else ""
    sharded = str(cfg.distributed_strategy) == "fsdp" and strategy != "NO_SHARD" and ranks > 1
    if not sharded:
        state = float(STATE_BYTES * parameters)
        gathered = float(width * parameters) if mixed else 0.0
    else:
        shards = min(ranks, ranks_per_node) if strategy in HYBRID else ranks
        state = STATE_BYTES * parameters / shards
        whole = strategy in ("SHARD_GRAD_OP", "_HYBRID_SHARD_ZERO2")
        ends = shape.vocab_size * shape.d_model
        # the block at work and the one that is fetched ahead, or all of them; gradients of the one at work
        gathered = width * ((parameters if whole else 2 * layer + ends) + layer + ends)
    share = cfg.global_train_batch_size // ranks
    tokens = min(cfg.device_train_microbatch_size, share) * shape.sequence_length
    layers = activation_bytes(shape, mixed)
    kept = shape.n_layers * layers
    if str(cfg.activation_checkpointing) == "whole_layer":
        kept = shape.n_layers * width * shape.d_model + layers
    logits = LOGIT_BYTES["mixed" if mixed else "fp32"] * shape.vocab_size
    return state + gathered + tokens * (kept + logits)


def activation_bytes(shape: ModelShape, mixed: bool) -> int:
    """Bytes that one layer keeps of one token for its backward pass, without activation checkpointing.

    In units of the compute precision: attention with its norm and residual 12·d in all; the FFN the 2·h before and
    after its activation (4·h gated); a MoE the same of k experts with its k·d gathered inputs and outputs each. Norms
    and residuals are float32 under mixed precision, and so is the router, of which 4·E float32 numbers stay.
    """
    d = shape.d_model
    hidden = shape.hidden_size * (4 if shape.gated else 2)
    width, ends = (2, 32 * d) if mixed else (4, 48 * d)
    if not shape.num_experts:
        return ends + width * hidden
    networks = shape.top_k + int(shape.shared_expert)
    router = (2 * d if mixed else 0) + 16 * shape.num_experts
    return ends + router + width * (shape.top_k * 2 * d + networks * hidden)


def disk_bytes(cfg: Any, shape: ModelShape, steps: int) -> int:
    """Most disk that the run's checkpoints take at a time: those kept, and the one that is being written."""
    fsdp = str(cfg.distributed_strategy) == "fsdp"
    sharded = _kept(steps, cfg.save_interval if fsdp else None, cfg.save_num_checkpoints_to_keep)
    unsharded = _kept(steps, cfg.save_interval_unsharded, cfg.save_num_unsharded_checkpoints_to_keep)
    every = steps // cfg.keep_checkpoints_every if cfg.keep_checkpoints_every else 0
    return (sharded + unsharded + every + 1) * shape.checkpoint_bytes()


def _kept(steps: int, interval: int | None, kept: int) -> int:
    made = math.ceil(steps / interval) if interval else 0
    return made if kept < 0 else min(made, kept)
