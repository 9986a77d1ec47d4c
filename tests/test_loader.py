"""The loader that holds small data sets in memory: OLMo's batches, in OLMo's order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL, TINY_RUN, write_shards
from olmo.data import build_train_dataloader
from olmo.data.iterable_dataset import IterableDataset
from synthetic_data import make_data

import olmoe_parrots.loader
from olmoe_parrots.config import TrainConfig
from olmoe_parrots.loader import Batches, build_train_loader

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def make_config(folder: Path, save_folder: Path, length: int, masks: bool = False, **data: Any) -> TrainConfig:
    files = sorted(str(path) for path in folder.glob("train/*.npy"))
    section: dict[str, Any] = {"paths": files, "drop_last": True, **data}
    if masks:
        section["label_mask_paths"] = [file.replace(".npy", ".label_mask") for file in files]
    model = {**TINY_MODEL, "max_sequence_length": length}
    config = {**TINY_RUN, "model": model, "data": section, "save_folder": str(save_folder), "save_overwrite": True}
    cfg = TrainConfig.new(**config)
    cfg.device_train_batch_size = cfg.global_train_batch_size
    return cfg


def batches_of(dataset: Any, loader: Any) -> list[dict[str, Any]]:
    """An epoch from the start, the rest of one, and the next epoch."""
    found = list(loader)
    dataset.start_index = 16
    found += list(loader)
    dataset.start_index = 0
    dataset.reshuffle(1)
    return found + list(loader)


@pytest.mark.parametrize("name", ["text", "phone_book", "shortest_path"])
def test_batches_are_those_of_olmo(tmp_path: Path, name: str) -> None:
    """Of text the last tokens fill no sequence, and the last sequences no batch."""
    if name == "text":
        folder, length = write_shards(tmp_path / "data", tokens=1650), 16
    else:
        folder, length = make_data(tmp_path / "data", name, size=101, test_size=8), {"phone_book": 9}.get(name, 60)
    # a folder each, as the order of an epoch is a file in it
    configs = [make_config(folder, tmp_path / run, length, masks=name != "text") for run in ("ours", "theirs")]
    ours, theirs = build_train_loader(configs[0]), build_train_dataloader(configs[1])
    assert isinstance(ours.dataset, Batches) and not isinstance(theirs.dataset, Batches)
    assert ours.dataset.total_size == theirs.dataset.total_size
    found, expected = batches_of(ours.dataset, ours), batches_of(theirs.dataset, theirs)
    sequences = 1650 // 16 if name == "text" else 101
    assert len(found) == 2 * (sequences // 8) + (sequences - 16) // 8
    assert len({tuple(batch["index"].tolist()) for batch in found}) > 2 * (sequences // 8) - 1
    for batch, wanted in zip(found, expected, strict=True):
        assert list(batch) == list(wanted)
        for key, value in wanted.items():
            assert batch[key].dtype == value.dtype and torch.equal(batch[key], value), key


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_take_what_olmo_gives_them(tmp_path: Path, ranks: int) -> None:
    cfg = make_config(make_data(tmp_path / "data", "phone_book", size=101, test_size=8), tmp_path / "run", 9)
    dataset: Any = build_train_loader(cfg).dataset
    seen = []
    for rank in range(ranks):
        dataset.rank, dataset.world_size, dataset.device_batch_size = rank, ranks, 8 // ranks
        theirs = IterableDataset(dataset.dataset, 8, seed=1, drop_last=True, world_size=ranks, rank=rank)
        dataset.total_size = theirs.total_size
        order = [item["index"] for item in theirs]
        found = [place for batch in dataset for place in batch["index"].tolist()]
        assert found == order[: len(order) // (8 // ranks) * (8 // ranks)]
        seen += found
    assert len(seen) == len(set(seen)) == 96


def test_a_random_number_is_drawn_where_olmo_draws_one(tmp_path: Path) -> None:
    """torch's loader draws one an epoch; dropout has to fall as with OLMo's."""
    cfg = make_config(write_shards(tmp_path / "data"), tmp_path / "run", 16)
    states = []
    for build in (build_train_loader, build_train_dataloader):
        torch.manual_seed(3)
        list(build(cfg))
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_large_data_and_other_options_are_left_to_olmo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_shards(tmp_path / "data", tokens=1600)
    for option in ({"generate_attention_mask": True}, {"generate_doc_lengths": True}, {"num_workers": 1}):
        loader = build_train_loader(make_config(data, tmp_path / "run", 16, **option))
        assert not isinstance(loader.dataset, Batches)
    for limit, ours in ((3199, False), (3200, True)):
        monkeypatch.setattr(olmoe_parrots.loader, "IN_MEMORY_BYTES", limit)
        loader = build_train_loader(make_config(data, tmp_path / "run", 16))
        assert isinstance(loader.dataset, Batches) is ours
