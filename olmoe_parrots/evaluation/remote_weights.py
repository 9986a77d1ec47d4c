"""Weights on S3: each file that is needed is copied to a temporary folder and compared with the manifest, then read.

A sharded checkpoint's files hold weights and optimizer state together, so that they are read whole, one after the
other; of an unsharded one ``optim.pt`` and ``train.pt`` stay where they are. The temporary folder (``TMPDIR``) needs
room for the largest file.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from .. import olmo_compat, remote
from ..checkpoint import MANIFEST
from ..errors import InputError
from ..shards import sha256_of

SHARDS = "model_and_optim"
_REMEDY = "name another checkpoint"


@contextlib.contextmanager
def whole_file(checkpoint: str, name: str) -> Iterator[str]:
    """The path of a checkpoint's file on disk; of one on S3 a copy that goes with the block.

    :raises InputError: when it is not on S3, or is not the file of the checkpoint's manifest there. Without a manifest
        nothing is compared; on disk :func:`~olmoe_parrots.checkpoint.checkpoint_at` has done that.
    """
    address = remote.join(checkpoint, name)
    if not remote.is_remote(checkpoint):
        yield address
        return
    expected = _listed(checkpoint, name)
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(remote.local_copy(address))
        except FileNotFoundError:
            raise InputError(address, "the checkpoint is damaged: this file is missing", _REMEDY) from None
        if expected is not None and (Path(path).stat().st_size, sha256_of(path)) != expected:
            raise InputError(address, f"the checkpoint is damaged: it is not the file of its {MANIFEST}", _REMEDY)
        yield path


def _listed(checkpoint: str, name: str) -> tuple[int, str] | None:
    """Size and sum of a file by the manifest; ``None`` where there is no manifest."""
    address = f"{checkpoint}/{MANIFEST}"
    try:
        told = json.loads(remote.read_bytes(address))["files"][name]
        return int(told["bytes"]), str(told["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(address, f"the checkpoint is damaged: so is its manifest ({error})", _REMEDY) from None


class RemoteReader(olmo_compat.SafeFileSystemReader):
    """Reads the shards of a checkpoint on S3, given its address, from whole files."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(f"{checkpoint}/{SHARDS}")
        self.checkpoint = checkpoint
        self._copy = ""

    def read_metadata(self) -> Metadata:
        if self._metadata is None:
            with whole_file(self.checkpoint, f"{SHARDS}/.metadata") as path:
                self._metadata = olmo_compat.SafeFileSystemReader(Path(path).parent).read_metadata()
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """OLMo's, for the items of one file after the other."""
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in sorted(by_file.items()):
            with whole_file(self.checkpoint, f"{SHARDS}/{name}") as self._copy:
                super().read_data(dataclasses.replace(plan, items=items), planner)
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done

    def _get_bytes(self, relative_path: str, offset: int, length: int) -> bytes:
        with open(self._copy, "rb") as file:
            file.seek(offset)
            return file.read(length)
