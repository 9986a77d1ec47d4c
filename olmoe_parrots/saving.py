"""OLMo's trainer, stopping and saving on any device: when asked to, or when it hangs; by our rule, and verifiably."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from olmo.config import CheckpointType
from olmo.exceptions import OLMoThreadError
from olmo.optim import PARAM_GROUP_FIELDS
from olmo.torch_util import barrier, get_fs_local_rank, get_global_rank, get_world_size, synchronize_flag
from olmo.train import Trainer

from .checkpoint import NAME, remove, seal, sync, sync_one
from .config import TrainConfig
from .errors import RunError
from .remote_checkpoint import Uploads
from .stopping import StopRequest

log = logging.getLogger("olmoe_parrots")

_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
"""Full, or closed to all writing."""
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_UPLOAD_SECONDS = 900.0
"""How long a run waits for a copy of a checkpoint that it is to remove: less than ranks wait for each other."""


@dataclass
class SavingTrainer(Trainer):
    """OLMo's, saving."""

    cfg: TrainConfig
    stop_request: StopRequest | None = None
    stopped_early: bool = False
    """Whether training ended on a signal or at the time limit, with a checkpoint to go on from."""
    uploads: Uploads | None = None
    """Copies to ``remote_save_folder``, on the first rank."""
    _cancel_check_interval: int = 1
    _is_watched: bool = False
    _started_at: float = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Training: stop requests are looked for at each step, and each call of :meth:`watch` is waited for."""
        # OLMo asks check_if_cancelled at these steps only (olmo/train.py:1244); a signal can't wait for the next
        self._cancel_check_interval, self.cfg.canceled_check_interval = self.cfg.canceled_check_interval, 1
        self._is_watched = True
        self._started_at = time.monotonic()
        try:
            yield
        finally:
            self._is_watched = False
            faulthandler.cancel_dump_traceback_later()

    def watch(self) -> None:
        """Wait for the next call: if none comes for `step_timeout`, all stacks are dumped and the process ends."""
        if self._is_watched and self.cfg.step_timeout is not None:
            faulthandler.dump_traceback_later(self.cfg.step_timeout, exit=True, file=2)

    def check_if_cancelled(self) -> tuple[bool, int]:
        """OLMo's at its own interval; at each step, whether a rank was asked to stop: then all stop after this step."""
        here = self.stop_request is not None and self.stop_request.signal is not None
        asked = torch.tensor(int(here), device=self.device)
        if get_world_size() > 1:
            dist.all_reduce(asked)
        if asked.item():
            self.stopped_early = True
            return True, 0
        if self.global_step % self._cancel_check_interval != 0:
            return False, 0
        limit = self.cfg.time_limit
        at_limit = limit is not None and time.monotonic() - self._started_at >= limit
        # OLMo (olmo/train.py:1050) takes this from the time of day, which may be set meanwhile
        self._start_time = -math.inf if at_limit else math.inf
        cancelled, extra_steps = super().check_if_cancelled()
        self.stopped_early = cancelled and synchronize_flag(at_limit, self.device)
        return cancelled, extra_steps

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

    def restore_unsharded_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """OLMo's, which under DDP (olmo/checkpoint.py:773) takes from the checkpoint what is of the run: whether it is
        sharded, which decides how gradient norms are summed over the ranks, and by what they are clipped."""
        own = [{name: group[name] for name in PARAM_GROUP_FIELDS} for group in self.optim.param_groups]
        super().restore_unsharded_checkpoint(*args, **kwargs)
        for group, fields in zip(self.optim.param_groups, own, strict=True):
            group.update(fields)

    def _save_checkpoint(self, checkpointer: Any, checkpoint_type: Any) -> Any:
        """OLMo's, with a manifest in the checkpoint before it is renamed into place."""
        self.watch()
        # OLMo makes the checkpointer anew for each save and renames inside this context (olmo/checkpoint.py:550)
        checkpointer._temporary_wd = _sealing(checkpointer._temporary_wd)
        # OLMo would copy each file as it is written (olmo/util.py:399): half a checkpoint could be seen
        checkpointer.save_checkpoint = _without_upload(checkpointer.save_checkpoint)
        saved = super()._save_checkpoint(checkpointer, checkpoint_type)
        if self.uploads is not None and checkpoint_type != CheckpointType.sharded_ephemeral:
            self.uploads.add(Path(saved[1] or saved[0]))
        return saved

    def _is_kept(self, checkpoint: Path) -> bool:
        every, match = self.cfg.keep_checkpoints_every or 0, NAME.fullmatch(checkpoint.name)
        return every > 0 and match is not None and int(match[1]) % every == 0

    def _remove_ahead(self, checkpoint: Path) -> bool:
        """Remove a checkpoint before OLMo would (olmo/train.py:526,570), file by file and under its name; False where
        it has to stay, as S3 is still taking it."""
        if self.cfg.remote_save_folder is not None:
            self.watch()
            seconds = min(_UPLOAD_SECONDS, (self.cfg.step_timeout or math.inf) / 2)
            copied = self.uploads is None or self.uploads.wait_for(checkpoint, seconds)
            self.watch()
            if not synchronize_flag(copied, self.device):
                return False
        barrier()
        if get_fs_local_rank() == 0:
            remove(checkpoint)
        return True

    def _remove_sharded_checkpoint(self, idx: int, checkpoints: list[Path]) -> None:
        kept = checkpoints is not self.ephemeral_checkpoints and self._is_kept(checkpoints[idx])
        if kept or not self._remove_ahead(checkpoints[idx]):
            checkpoints.pop(idx)  # OLMo forgets it, the disk does not
        else:
            super()._remove_sharded_checkpoint(idx, checkpoints)

    def remove_unsharded_checkpoint(self, idx: int = 0) -> None:
        if self._is_kept(self.unsharded_checkpoints[idx]) or not self._remove_ahead(self.unsharded_checkpoints[idx]):
            self.unsharded_checkpoints.pop(idx)
        else:
            super().remove_unsharded_checkpoint(idx)

    def __exit__(self, kind: Any, error: Any, at: Any) -> None:
        """OLMo's, which closes files: on the disk that ended the run that fails again, and is no other error."""
        try:
            super().__exit__(kind, error, at)
        except OSError as again:
            if not isinstance(error, RunError) or _why_unwritable(again, self.cfg.save_folder) is None:
                raise


def _without_upload(save: Callable[..., None]) -> Callable[..., None]:
    def without_upload(*args: Any, upload_to: str | None = None, **kwargs: Any) -> None:
        save(*args, **kwargs)

    return without_upload


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
    """Tell of a full or closed disk, and of data that cannot be read any more, in one line.

    Raises RunError: the checkpoints of before are as they were.
    """
    try:
        yield
    except OLMoThreadError as error:  # of the threads by which OLMo's loader reads ahead (olmo/util.py:820)
        raise (error.__cause__ if isinstance(error.__cause__, RunError) else error) from None
    except (OSError, RuntimeError) as error:
        if (reason := _why_unwritable(error, folder)) is None:
            raise
        remedy = "earlier checkpoints are whole: mend that and run again with --try_load_latest_save=true"
        told = RunError(getattr(error, "filename", None) or folder, f"it cannot be written ({reason})", remedy)
        if get_global_rank() != 0:
            log.error("%s", told)  # only the first rank's last line is shown
        raise told from error


def _why_unwritable(error: BaseException, folder: str) -> str | None:
    """The system's word for a full or closed disk behind an error; torch's writer (a RuntimeError) hides its number."""
    if isinstance(error, OSError):
        in_folder = Path(str(error.filename)).absolute().is_relative_to(Path(folder).absolute())
        closed = error.errno in _CLOSED or (error.errno in _FORBIDDEN and error.filename is not None and in_folder)
        return error.strerror if closed else None
    of_torch = any(name in str(error) for name in ("PytorchStreamWriter", "inline_container"))
    return "torch's writer failed: is the disk full?" if of_torch else None
