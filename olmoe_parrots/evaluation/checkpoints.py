"""The model of a checkpoint of ours, whole on one device, ready to be measured.

A checkpoint is untrusted input: weights are loaded as data alone, and the metadata of a sharded one by the restricted
unpickler of :mod:`olmoe_parrots.olmo_compat`. What is read is compared with the checkpoint's manifest: on disk all of
it, on S3 by :mod:`.remote_weights`.
"""

import logging
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint
import yaml
from olmo.config import DistributedStrategy
from olmo.exceptions import OLMoCheckpointError, OLMoConfigurationError
from torch.distributed.checkpoint.api import CheckpointException

from .. import olmo_compat, remote
from ..checkpoint import (
    DAMAGED,
    MANIFEST,
    NAME,
    SHARDED_FILES,
    UNSHARDED_FILES,
    Checkpoint,
    checkpoint_at,
    checkpoints_in,
)
from ..config import TrainConfig, load_train_config
from ..errors import InputError
from ..model import ParrotsOLMo, build_model
from .remote_weights import SHARDS, RemoteReader, whole_file

if TYPE_CHECKING:
    from .task_tokenizer import TaskTokenizer

log = logging.getLogger("olmoe_parrots")
CONFIG, WEIGHTS = "config.yaml", "model.pt"
PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
_KINDS = "step{N} (sharded) or step{N}-unsharded"
_UNREADABLE = (
    CheckpointException,
    EOFError,
    KeyError,
    OLMoCheckpointError,
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class FoundCheckpoint:
    """A whole checkpoint: ``path`` is its folder, absolute where it is on disk."""

    path: str
    step: int
    sharded: bool

    @property
    def told(self) -> str:
        """Which one of its model it is, in two words."""
        return f"step {self.step}"

    def check_asked(self, more_than_tasks: bool) -> None:
        """Raises InputError where ``more_than_tasks`` cannot be measured: generated answers, or held-out text."""

    def config(self) -> TrainConfig:
        """See :func:`read_config`."""
        return read_config(self)

    def load(self, cfg: TrainConfig, device: torch.device | None = None) -> "LoadedModel":
        """See :func:`load_found`."""
        return load_found(self, cfg, device)

    def tokenizer(self, cfg: TrainConfig, given: str | None = None) -> "TaskTokenizer":
        """See :func:`~olmoe_parrots.evaluation.task_tokenizer.load_tokenizer`."""
        from .task_tokenizer import load_tokenizer

        return load_tokenizer(cfg, self.path, given)

    def facts(self) -> dict[str, Any] | None:
        """What rows say of a model that no run of ours trained; ``None`` for ours, whose config says it."""
        return None


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model in eval mode, and the config of its run."""

    model: ParrotsOLMo
    cfg: TrainConfig
    step: int
    path: str


def load_model(path: str, device: torch.device | None = None, precision: str | None = None) -> LoadedModel:
    """The model of a checkpoint, on ``device`` (the CPU when ``None``).

    :param path: a run folder (its newest whole checkpoint counts), or a checkpoint folder; local or ``s3://``.
    :param precision: see :func:`prepare_config`.
    :raises InputError: when there is no whole checkpoint of ours.
    """
    found = find_checkpoint(path)
    return load_found(found, prepare_config(read_config(found), device or torch.device("cpu"), precision), device)


def find_checkpoint(path: str) -> FoundCheckpoint:
    """The checkpoint that ``path`` names, or the newest whole one of the run that it names.

    :raises InputError: when there is none, or it is not whole; says which file is missing.
    """
    olmo_compat.apply()  # what it is measured on may be on S3
    if remote.is_remote(path):
        return _find_remote(path.rstrip("/"))
    folder = Path(path)
    if NAME.fullmatch(folder.resolve().name) or not folder.is_dir():
        named = _named(folder)
        return FoundCheckpoint(str(named.path), named.step, named.sharded)
    refused = []
    for held in reversed(checkpoints_in(folder)):
        try:
            whole = checkpoint_at(held.path)
        except InputError as error:
            refused.append(f"{held.path.name}: {error.what}")
            continue
        for told in refused:
            log.warning("%s is passed over", told)
        return FoundCheckpoint(str(whole.path), whole.step, whole.sharded)
    raise _none_whole(path, refused)


def _named(folder: Path) -> Checkpoint:
    try:
        return checkpoint_at(folder)
    except InputError as error:  # whose remedy is that of training
        remedy = "name another checkpoint" if folder.is_dir() else f"name a run's save folder or a checkpoint, {_KINDS}"
        raise InputError(error.where, error.what, remedy) from None


def _find_remote(path: str) -> FoundCheckpoint:
    """Those with a manifest come first: of ours it is the last file that arrives, and OLMo's own have none."""
    names = [address.removeprefix(f"{path}/") for address in remote.list_files(path)]
    last = path.rpartition("/")[2]
    if NAME.fullmatch(last):
        held = {last: set(names)} if names else {}
        path = path.rpartition("/")[0]
    else:
        held = {}
        for name in names:
            folder, _, file = name.partition("/")
            if NAME.fullmatch(folder):
                held.setdefault(folder, set()).add(file)
    sealed: list[FoundCheckpoint] = []
    unsealed: list[FoundCheckpoint] = []
    refused: list[str] = []
    for folder, files in held.items():
        match = NAME.fullmatch(folder)
        assert match is not None
        sharded = match[2] is None
        if missing := [file for file in (SHARDED_FILES if sharded else UNSHARDED_FILES) if file not in files]:
            refused.append(f"{folder} lacks {', '.join(missing)}")
        elif MANIFEST not in files and f"{DAMAGED}{MANIFEST}" in files:
            refused.append(f"{folder} was set aside as damaged")
        else:
            found = FoundCheckpoint(f"{path}/{folder}", int(match[1]), sharded)
            (sealed if MANIFEST in files else unsealed).append(found)
    if not (sealed or unsealed):
        raise _none_whole(path, refused)
    if not sealed:
        log.warning("%s: no checkpoint has a %s: it is loaded without verification", path, MANIFEST)
    return max(sealed or unsealed, key=lambda found: (found.step, found.sharded))


def _none_whole(path: str, refused: list[str]) -> InputError:
    if not refused:
        return InputError(path, f"there is no checkpoint of ours, {_KINDS}", "name a run's save folder or a checkpoint")
    return InputError(path, f"there is no whole checkpoint: {'; '.join(refused)}", "name another checkpoint")


def read_config(found: FoundCheckpoint) -> TrainConfig:
    """The config that was saved with a checkpoint.

    :raises InputError: when it is not one of our training configs.
    """
    address = remote.join(found.path, CONFIG)
    with whole_file(found.path, CONFIG) as path:
        try:
            return load_train_config(path, validate_paths=False)
        except (OLMoConfigurationError, TypeError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = f"this is no config of a training run of ours ({reason})"
            raise InputError(address, what, "name a checkpoint that olmoe_parrots.train wrote") from None


def prepare_config(cfg: TrainConfig, device: torch.device, precision: str | None = None) -> TrainConfig:
    """The config, changed to what this device computes in.

    :param precision: of PRECISIONS; when ``None``, the run's own on CUDA and fp32 elsewhere, as in training.
    """
    if precision is None:
        precision = cfg.precision if device.type == "cuda" and cfg.precision else "fp32"
    cfg.precision = cfg.model.precision = precision
    cfg.model.init_device = "cpu"
    cfg.compile = None
    if cfg.model.moe_mlp_impl == "megablocks" and device.type != "cuda":
        cfg.model.moe_mlp_impl = "auto"  # the same function and the same parameters
    return cfg


def load_found(found: FoundCheckpoint, cfg: TrainConfig, device: torch.device | None = None) -> LoadedModel:
    """The model of a checkpoint that was found, by a config from :func:`prepare_config`.

    Its weights have the type with which training computes: FSDP keeps them in 16 bits for the forward pass.

    :raises InputError: when the files are torn, or do not hold the weights of the config's model.
    """
    olmo_compat.apply()
    model = build_model(cfg.model, init_params=False)
    try:
        if found.sharded:
            _load_shards(model, found.path)
        else:
            _load_whole(model, found.path)
    except _UNREADABLE as error:
        if (refused := _refusal_behind(error)) is not None:
            raise refused from None
        place = remote.join(found.path, SHARDS if found.sharded else WEIGHTS)
        raise InputError(place, f"the weights cannot be read ({_reason(error)})", "name another checkpoint") from None
    precision = cfg.fsdp_precision if cfg.distributed_strategy == DistributedStrategy.fsdp and cfg.fsdp else None
    dtype = precision.param_dtype if precision is not None else None
    return LoadedModel(model.to(device=device, dtype=dtype).eval(), cfg, found.step, found.path)


def _load_shards(model: ParrotsOLMo, path: str) -> None:
    state = {"model": model.state_dict()}
    on_disk = olmo_compat.SafeFileSystemReader(remote.join(path, SHARDS))
    reader = RemoteReader(path) if remote.is_remote(path) else on_disk
    reader.read_metadata()  # whose errors torch would pass over
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank loads the whole model
        torch.distributed.checkpoint.load(state, storage_reader=reader, no_dist=True)
    model.load_state_dict(state["model"])


def _load_whole(model: ParrotsOLMo, path: str) -> None:
    with whole_file(path, WEIGHTS) as file:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        model.load_state_dict(model._make_state_dict_compatible(state)[0])


def _refusal_behind(error: BaseException) -> InputError | None:
    """The InputError that torch wrapped on its way out."""
    failures = error.failures.values() if isinstance(error, CheckpointException) else ()
    return next((failure for failure, _ in failures if isinstance(failure, InputError)), None)


def _reason(error: BaseException) -> str:
    """The last line of an error, which for those of torch's checkpoints is the cause at their end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).partition(". ")[0][:200]
