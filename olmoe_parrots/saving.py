"""OLMo's trainer, saving on any device: checkpoints are sealed before they get their name, and kept by our rule."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olmo.torch_util import barrier, get_fs_local_rank, get_global_rank, get_world_size
from olmo.train import Trainer

from .checkpoint import NAME, seal, sync, sync_one
from .config import TrainConfig
from .errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclass
class SavingTrainer(Trainer):
    """OLMo's, saving."""

    cfg: TrainConfig

    # olmo/train.py:335 and 433 name CUDA.

    def trainer_state_dict(self) -> dict[str, Any]:
        if self.device.type == "cuda":
            return super().trainer_state_dict()
        return {
            "epoch": self.epoch or 0,
            "global_step": self.global_step,
            "global_train_examples_seen_this_epoch": self.global_train_examples_seen_this_epoch,
            "global_train_tokens_seen": self.global_train_tokens_seen,
            "world_size": get_world_size(),
            "checkpoints": self.checkpoints,
            "unsharded_checkpoints": self.unsharded_checkpoints,
            "ephemeral_checkpoints": self.ephemeral_checkpoints,
            "rng": {
                "python": random.getstate(),
                "numpy": np.random.get_state(),
                "torch": torch.random.get_rng_state(),
            },
        }

    def restore_rng_state(self, rng_state: dict[str, Any]) -> None:
        if self.device.type == "cuda" and "cuda" in rng_state:
            super().restore_rng_state(rng_state)
            return
        random.setstate(rng_state["python"])
        np.random.set_state(rng_state["numpy"])
        torch.set_rng_state(rng_state["torch"])

    def _save_checkpoint(self, checkpointer: Any, checkpoint_type: Any) -> Any:
        """OLMo's, with a manifest in the checkpoint before it is renamed into place."""
        self.watch()
        # OLMo makes the checkpointer anew for each save and renames inside this context (olmo/checkpoint.py:550)
        checkpointer._temporary_wd = _sealing(checkpointer._temporary_wd)
        return super()._save_checkpoint(checkpointer, checkpoint_type)

    def _is_kept(self, checkpoint: Path) -> bool:
        every, match = self.cfg.keep_checkpoints_every or 0, NAME.fullmatch(checkpoint.name)
        return every > 0 and match is not None and int(match[1]) % every == 0

    def _remove_sharded_checkpoint(self, idx: int, checkpoints: list[Path]) -> None:
        if checkpoints is not self.ephemeral_checkpoints and self._is_kept(checkpoints[idx]):
            checkpoints.pop(idx)  # OLMo forgets it, the disk does not
        else:
            super()._remove_sharded_checkpoint(idx, checkpoints)

    def remove_unsharded_checkpoint(self, idx: int = 0) -> None:
        if self._is_kept(self.unsharded_checkpoints[idx]):
            self.unsharded_checkpoints.pop(idx)
        else:
            super().remove_unsharded_checkpoint(idx)

    def watch(self) -> None:
        """Begin to wait for the next call: if none comes for `step_timeout`, stacks are dumped and the process ends."""
        if self.cfg.step_timeout is not None:
            faulthandler.dump_traceback_later(self.cfg.step_timeout, exit=True, file=2)


def _sealing(temporary: Callable[..., AbstractContextManager[Path]]) -> Callable[..., AbstractContextManager[Path]]:
    @contextlib.contextmanager
    def sealed(folder: Any) -> Iterator[Path]:
        with temporary(folder) as scratch:
            yield scratch
            barrier()  # every rank has written its files
            if get_global_rank() == 0:
                seal(scratch)
            elif get_fs_local_rank() == 0:
                sync(scratch)
        if get_fs_local_rank() == 0:
            sync_one(Path(folder).parent)  # which holds the new name

    return sealed


@contextlib.contextmanager
def told_when_unwritable(folder: str) -> Iterator[None]:
    """Tell of a full or closed disk in one line. Raises RunError: the checkpoints of before are as they were."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (reason := _why_unwritable(error)) is None:
            raise
        remedy = "earlier checkpoints are whole: mend that and run again with --try_load_latest_save=true"
        raise RunError(
            getattr(error, "filename", None) or folder, f"it cannot be written ({reason})", remedy
        ) from error


def _why_unwritable(error: BaseException) -> str | None:
    """The system's word for a full or closed disk behind an error; torch's writer (a RuntimeError) hides its number."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _FULL else None
    return "torch's writer failed: is the disk full?" if "PytorchStreamWriter" in str(error) else None
