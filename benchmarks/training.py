"""Steps of the trainer for the benchmarks of memory and scaling: a grid config, overrides, random tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from olmoe_parrots.trainer import ParrotsTrainer

CONFIGS = Path(__file__).parent.parent / "configs"


def write_tokens(folder: Path, count: int, vocabulary: int = 32_000) -> Path:
    """A file of random tokens."""
    path = folder / "tokens.npy"
    np.random.default_rng(0).integers(0, vocabulary, count).astype(np.uint16).tofile(path)
    return path


def build(config: str, tokens: Path, run: Path, sequences: int, length: int, *overrides: str) -> ParrotsTrainer:
    """The trainer of a grid config, as the training command builds it on the CPU, in fp32.

    Args:
        config: a name in ``configs/``, such as moe_d256_e8.
        tokens: what to train on.
        run: the save folder.
        sequences, length: of the global batch; one micro-batch a rank, unless overridden.
        overrides: further options of the config.
    """
    import torch
    import torch.distributed as dist
    from olmo.torch_util import get_world_size

    from olmoe_parrots import olmo_compat
    from olmoe_parrots.config import load_train_config
    from olmoe_parrots.distributed import start_process_group
    from olmoe_parrots.guards import FiniteGuard
    from olmoe_parrots.optimizer import fuse_optimizer
    from olmoe_parrots.train import _build_trainer

    olmo_compat.apply()
    device = torch.device("cpu") if dist.is_initialized() else start_process_group()
    options = [
        *(f"save_folder={run}", f"data_folder={tokens.parent}", f"data.paths=[{tokens}]", "evaluators=[]"),
        *("precision=fp32", "max_duration=1000", "scheduler.t_warmup=1", "model.init_device=meta"),
        *(f"global_train_batch_size={sequences}", f"device_train_microbatch_size={sequences}"),
        *(f"model.max_sequence_length={length}", *overrides),
    ]
    cfg = load_train_config(str(CONFIGS / f"{config}.yaml"), options, validate_paths=False)
    cfg.model.precision = cfg.precision
    cfg.device_train_batch_size = cfg.global_train_batch_size // get_world_size()
    cfg.device_train_microbatch_size = min(cfg.device_train_microbatch_size, cfg.device_train_batch_size)
    cfg.device_train_grad_accum = cfg.device_train_batch_size // cfg.device_train_microbatch_size
    trainer = _build_trainer(cfg, device)
    names = {id(parameter): name for name, parameter in trainer.dist_model.named_parameters()}
    trainer._finite = FiniteGuard(trainer.optim, names, run, 0)
    fuse_optimizer(trainer.optim)
    return trainer


def stepper(trainer: ParrotsTrainer) -> Callable[[], None]:
    """What takes one training step each time it is called."""
    batches = iter(trainer.train_loader)

    def step() -> None:
        trainer.global_step += 1
        trainer.train_step(next(batches))

    return step
