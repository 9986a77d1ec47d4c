"""The one place that works round OLMo. Every entry names the OLMo line it stands in for, and why.

Line numbers are of ai2-olmo 0.6.0; :func:`apply` refuses any other version, so that none of this is ever applied to
code it was not written for.
"""

import io
import logging
import pickle
import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import PosixPath
from typing import Any

import numpy as np
import olmo.checkpoint
import olmo.util
import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from . import remote_data
from .errors import InputError
from .remote import SCHEME

OLMO_VERSION = "0.6.0"
METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath"},
}
TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def apply() -> None:
    """Apply every workaround; calling it again changes nothing.

    :raises InputError: when another version of OLMo is installed.
    """
    installed = version("ai2-olmo")
    if installed != OLMO_VERSION:
        remedy = f"pip install ai2-olmo=={OLMO_VERSION}"
        raise InputError("ai2-olmo", f"version {installed} is installed, this code fits {OLMO_VERSION}", remedy)
    _load_trainer_state_weights_only()
    _keep_state_on_the_cpu()
    _read_sharded_checkpoints()
    _read_optimizers_of_ddp()
    _read_s3_by_our_client()
    _silence_warnings()


def _load_trainer_state_weights_only() -> None:
    """olmo/checkpoint.py:316 calls ``torch.load`` on ``train.pt``, whose checkpoint lists and numpy random state are
    not among the types that torch loads from untrusted files. These four hold plain data."""
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    dtypes = [type(np.dtype(np.uint32))]
    torch.serialization.add_safe_globals([PosixPath, reconstruct, np.ndarray, np.dtype, *dtypes])


def _keep_state_on_the_cpu() -> None:
    """olmo/checkpoint.py:133,177,638,694 ask FSDP to offload state to the CPU; with the model already there torch
    crashes (``_state_dict_utils``) on two ranks."""
    if torch.cuda.is_available():
        return
    for name in (
        "FullStateDictConfig",
        "FullOptimStateDictConfig",
        "ShardedStateDictConfig",
        "ShardedOptimStateDictConfig",
    ):
        original = getattr(olmo.checkpoint, name)
        if isinstance(original, type):
            setattr(olmo.checkpoint, name, _without_offload(original))


def _without_offload(config_class: type) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        return config_class(*args, **{**kwargs, "offload_to_cpu": False})

    return build


def _read_sharded_checkpoints() -> None:
    """olmo/checkpoint.py:409: the reader lacks two methods that torch made abstract since, and unpickles."""
    olmo.checkpoint.RemoteFileSystemReader = SafeFileSystemReader  # type: ignore[misc]


def _read_optimizers_of_ddp() -> None:
    """olmo/checkpoint.py:822 brings the parameter names of an unsharded checkpoint's optimizer to those of the model,
    and takes FSDP's part out of them, but not the ``module.`` that DDP puts before: under FSDP every parameter would
    be missing."""
    setattr(olmo.checkpoint.FullCheckpointer, "_make_optim_state_dict_compatible", _with_names_of_the_model)  # noqa: B010


_OLMO_NAMES = olmo.checkpoint.FullCheckpointer._make_optim_state_dict_compatible


def _with_names_of_the_model(checkpointer: Any, state: dict[str, Any], names: dict[str, set[str]]) -> dict[str, Any]:
    for group in state["param_groups"]:
        group["param_names"] = [name.removeprefix("module.") for name in group["param_names"]]
    return _OLMO_NAMES(checkpointer, state, names)


def _read_s3_by_our_client() -> None:
    """olmo/util.py:612,629 read data on S3 with few tries, and no end of patience where a connection is silent."""
    olmo.util._s3_file_size = _file_size
    olmo.util._s3_get_bytes_range = _bytes_range


_OLMO_FILE_SIZE, _OLMO_BYTES_RANGE = olmo.util._s3_file_size, olmo.util._s3_get_bytes_range


def _file_size(scheme: str, bucket_name: str, key: str, max_attempts: int = 3) -> int:
    if scheme != "s3":  # Cloudflare's and AI2's own
        return _OLMO_FILE_SIZE(scheme, bucket_name, key, max_attempts)
    return remote_data.file_size(f"{SCHEME}{bucket_name}/{key}")


def _bytes_range(
    scheme: str, bucket_name: str, key: str, bytes_start: int, num_bytes: int, max_attempts: int = 3
) -> bytes:
    if scheme != "s3":
        return _OLMO_BYTES_RANGE(scheme, bucket_name, key, bytes_start, num_bytes, max_attempts)
    return remote_data.read_range(f"{SCHEME}{bucket_name}/{key}", bytes_start, num_bytes)


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), TORCH_CONSTANTS):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"a checkpoint's metadata may not refer to {module}.{name}")


class SafeFileSystemReader(olmo.checkpoint.RemoteFileSystemReader):
    """OLMo's reader of sharded checkpoints for current torch, which runs no code that a checkpoint names."""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Part of torch's ``StorageReader`` since 2.3: forget what was read."""
        self.storage_data = {}
        if checkpoint_id is not None:
            self.path = str(checkpoint_id).rstrip("/")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Part of torch's ``StorageReader`` since 2.3: any path or URL that OLMo reads will do."""
        return isinstance(checkpoint_id, (str, PosixPath))

    def read_metadata(self) -> Metadata:
        """The ``.metadata`` file, admitting only the types that torch writes there."""
        if self._metadata is None:
            path = olmo.checkpoint.resource_path(self.path, ".metadata", local_cache=self.cache)
            with path.open("rb") as file:
                self._metadata = _MetadataUnpickler(file).load()
        return self._metadata

    def _get_content_for_read(self, read_item: ReadItem) -> tuple[ReadItem, bytes]:
        item, content = super()._get_content_for_read(read_item)
        if item.type == LoadItemType.BYTE_IO:
            # torch's planner unpickles these freely: what passes here holds plain data only
            torch.load(io.BytesIO(content), weights_only=True)
        return item, content


def _silence_warnings() -> None:
    """Warnings that a user can do nothing about: of the torch interfaces that OLMo's checkpointers use, of FSDP on one
    rank, and of ``torch.autocast("cuda")``, which olmo/train.py:799,903 enter on every device, to no effect. The
    autocast that counts is entered in :meth:`olmoe_parrots.trainer.ParrotsTrainer.model_forward`."""
    for message in (
        "User provided device_type of 'cuda'",
        "In CUDA autocast",
        "CUDA is not available or torch_xla is imported",
        "When using ``NO_SHARD``",
        "FSDP is switching to use `NO_SHARD`",
        "The `NO_SHARD` sharding strategy is deprecated",
        "`torch.distributed.checkpoint",
        "FSDP.state_dict_type",
        "FSDP.set_state_dict_type",
        "Please use DTensor instead",
        "Multiple backends are registered",
        "`_get_pg_default_device` will be deprecated",
        "`load_state_dict` is deprecated",
        "`save_state_dict` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=re.escape(message))
    logging.getLogger("torch.distributed.fsdp").setLevel(logging.ERROR)
