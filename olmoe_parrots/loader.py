"""The training data, a batch at a time: OLMo's order and OLMo's batches, without its work for each single sequence.

OLMo opens a file for each sequence, and its collator pads each (olmo/data/memmap_dataset.py:153, collator.py:23): some
0.1 ms of Python each, more than a small model takes to train on a short one. Small data sets on disk are therefore read
once and cut into batches at a stroke. Others, and those with options that need OLMo's loader, are left to it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olmo.data import build_memmap_dataset, build_train_dataloader
from olmo.data.iterable_dataset import IterableDataset
from torch.utils.data import DataLoader

from .config import TrainConfig

IN_MEMORY_BYTES = 1 << 31
"""The largest data set, tokens and label masks together, that each rank holds in memory."""


class Batches(IterableDataset):
    """OLMo's order of sequences, as whole batches of this rank."""

    tokens_NS: np.ndarray
    """All sequences, of S tokens, in their files' type."""
    learned_NS: np.ndarray | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = self.get_global_indices()[self.start_index :][self.rank : self.total_size : self.world_size]
        size = self.device_batch_size
        for start in range(0, len(order) - size + 1, size):
            yield self._batch(np.asarray(order[start : start + size], dtype=np.int64))

    def _batch(self, places_B: np.ndarray) -> dict[str, Any]:
        """What OLMo's collator makes of these sequences."""
        batch = {"input_ids": torch.from_numpy(self.tokens_NS[places_B].astype(np.int64))}
        if self.learned_NS is not None:
            batch["label_mask"] = torch.from_numpy(self.learned_NS[places_B])
        return batch | {"index": torch.from_numpy(places_B)}


def build_train_loader(cfg: TrainConfig) -> DataLoader[Any]:
    """The loader of a run's training data; its ``dataset`` is OLMo's :class:`IterableDataset`."""
    if not _fits_in_memory(cfg):
        return build_train_dataloader(cfg)
    sequences: Any = build_memmap_dataset(cfg, cfg.data, include_instance_metadata=False)
    # as OLMo builds its own (olmo/data/__init__.py:106)
    batches = Batches(
        sequences,
        cfg.global_train_batch_size,
        seed=cfg.data.seed if cfg.data.seed is not None else cfg.seed,
        epoch=cfg.epoch or 0,
        drop_last=cfg.data.drop_last,
        work_dir=Path(cfg.save_folder) / "train_data",
    )
    length = cfg.model.max_sequence_length
    batches.tokens_NS = _rows(cfg.data.paths or [], sequences.dtype, length)
    if cfg.data.label_mask_paths:
        batches.learned_NS = _rows(cfg.data.label_mask_paths, np.bool_, length)
    return DataLoader(batches, batch_size=None, pin_memory=cfg.data.pin_memory)


def _fits_in_memory(cfg: TrainConfig) -> bool:
    data = cfg.data
    if data.num_workers or data.instance_filter or data.generate_attention_mask or data.generate_doc_lengths:
        return False
    paths = [str(path) for path in [*(data.paths or []), *(data.label_mask_paths or [])]]
    if data.datasets or not paths or any("://" in path for path in paths):
        return False
    return sum(Path(path).stat().st_size for path in paths) <= IN_MEMORY_BYTES


def _rows(paths: list[str], dtype: Any, length: int) -> np.ndarray:
    """Each file's whole sequences, one file after the other: (N, length)."""
    files = [np.fromfile(path, dtype=dtype) for path in paths]
    return np.concatenate([file[: len(file) // length * length].reshape(-1, length) for file in files])
