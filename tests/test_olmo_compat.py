"""The workrounds: each still needed, each doing what it says."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import olmo.checkpoint
import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from olmoe_parrots import olmo_compat
from olmoe_parrots.errors import InputError


class RunsCode:
    """Unpickled, it would make a folder."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def test_another_olmo_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(olmo_compat, "OLMO_VERSION", "9.9.9")
    with pytest.raises(InputError, match=r"9\.9\.9"):
        olmo_compat.apply()


def test_apply_may_be_called_twice() -> None:
    olmo_compat.apply()
    first = olmo.checkpoint.FullStateDictConfig
    olmo_compat.apply()
    assert olmo.checkpoint.FullStateDictConfig is first


def test_trainer_state_loads_weights_only(tmp_path: Path) -> None:
    olmo_compat.apply()
    state = {"checkpoints": [Path("runs/x/step1")], "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    torch.save(state, tmp_path / "train.pt")
    loaded = torch.load(tmp_path / "train.pt", weights_only=True)
    assert loaded["checkpoints"] == state["checkpoints"]
    assert np.array_equal(loaded["numpy"][1], state["numpy"][1])


def test_a_metadata_file_runs_no_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(RunsCode(witness)))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        olmo_compat.SafeFileSystemReader(tmp_path).read_metadata()
    assert not witness.exists()


def test_no_dotted_name_leads_out_of_an_admitted_module(tmp_path: Path) -> None:
    """Protocol 4 lets a name be a path: the filesystem module imports ``os``."""
    witness = tmp_path / "witness"
    command = f"mkdir {witness}".encode()
    module = b"torch.distributed.checkpoint.filesystem"
    program = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, b"os.system"))
    program += b"\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    (tmp_path / ".metadata").write_bytes(program)
    with pytest.raises(pickle.UnpicklingError, match=r"os\.system"):
        olmo_compat.SafeFileSystemReader(tmp_path).read_metadata()
    assert not witness.exists()


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    metadata = Metadata(state_dict_metadata={"a": BytesStorageMetadata()})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert olmo_compat.SafeFileSystemReader(tmp_path).read_metadata() == metadata


def test_an_object_in_a_shard_runs_no_code(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

    witness = tmp_path / "witness"
    buffer = io.BytesIO()
    torch.save(RunsCode(witness), buffer)
    (tmp_path / "__0_0.distcp").write_bytes(buffer.getvalue())
    index = MetadataIndex("optim.param_groups")
    reader = olmo_compat.SafeFileSystemReader(tmp_path)
    reader.storage_data = {index: _StorageInfo("__0_0.distcp", 0, len(buffer.getvalue()))}
    none = torch.Size([0])
    item = ReadItem(LoadItemType.BYTE_IO, index, none, index, none, none)
    with pytest.raises(pickle.UnpicklingError):
        reader._get_content_for_read(item)
    assert not witness.exists()
