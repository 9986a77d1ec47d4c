"""Ranks and devices: one process or many, CPU with gloo or CUDA with nccl, DDP or FSDP."""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from olmo.config import DDPGradSyncMode, DistributedStrategy
from olmo.torch_util import get_local_rank, get_local_world_size, get_world_size
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel

from .allocator import keep_freed_memory
from .config import TrainConfig
from .model import ParrotsOLMo, initialize

log = logging.getLogger(__name__)
TIMEOUT = timedelta(minutes=30)


def start_process_group() -> torch.device:
    """Join torchrun's process group, or make one of this process alone; returns this rank's device.

    Where that is the CPU, freed memory is kept for what is allocated next.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if cuda:
        torch.cuda.set_device(get_local_rank())
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=TIMEOUT, store=dist.HashStore(), rank=0, world_size=1)
    return torch.device("cuda", get_local_rank()) if cuda else torch.device("cpu")


def agreed(value: Any) -> Any:
    """The first rank's `value`, on every rank."""
    if get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wrap(model: ParrotsOLMo, cfg: TrainConfig, device: torch.device) -> nn.Module:
    """Put a model on its device, initialized from ``cfg.seed`` alone, and wrap it for the configured strategy.

    The initial weights do not depend on the strategy, the number of ranks or ``init_device``: they are drawn for the
    whole model, before DDP copies or while FSDP gathers them.
    """
    if cfg.distributed_strategy == DistributedStrategy.ddp:
        return _wrap_ddp(model, cfg, device)
    wrapped = _wrap_fsdp(model, cfg, device)
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=True):
        initialize(model, cfg.seed)
    return wrapped


def _wrap_ddp(model: ParrotsOLMo, cfg: TrainConfig, device: torch.device) -> nn.Module:
    if any(p.is_meta for p in model.parameters()):
        model.to_empty(device=device)
    model.to(device)
    initialize(model, cfg.seed)
    find_unused = cfg.ddp is not None and cfg.ddp.find_unused_params
    if find_unused and cfg.ddp is not None and cfg.ddp.grad_sync_mode != DDPGradSyncMode.micro_batch:
        log.warning("ddp.find_unused_params needs ddp.grad_sync_mode=micro_batch; using that")
        cfg.ddp.grad_sync_mode = DDPGradSyncMode.micro_batch
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=find_unused)


def _wrap_fsdp(model: ParrotsOLMo, cfg: TrainConfig, device: torch.device) -> nn.Module:
    assert cfg.fsdp is not None
    strategy = cfg.fsdp.sharding_strategy
    mesh: Any = None
    if get_world_size() == 1:
        strategy = ShardingStrategy.NO_SHARD  # what FSDP would switch to, with a warning
    elif strategy in (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2):
        replicas = cfg.fsdp.hybrid_sharding_num_model_replicas or get_world_size() // get_local_world_size()
        mesh = init_device_mesh(device.type, (replicas, get_world_size() // replicas))
    return FullyShardedDataParallel(
        model,
        sharding_strategy=strategy,
        device_mesh=mesh,
        mixed_precision=cfg.fsdp_precision,
        auto_wrap_policy=model.get_fsdp_wrap_policy(cfg.fsdp.wrapping_strategy),
        use_orig_params=cfg.fsdp.use_orig_params,
        limit_all_gathers=True,
        device_id=device,
        param_init_fn=lambda module: module.to_empty(device=device, recurse=False),  # type: ignore[arg-type,return-value]
    )
