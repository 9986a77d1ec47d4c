"""How well a model predicts held-out text: nats a token, perplexity, bits a byte, by source and in all.

The sequences are those of training's own evaluator of the same files, in its order and cut to the same length, and the
loss of each comes from the same forward pass. Shapes: B sequences of S tokens, N of them in all.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from olmo.config import DataConfig
from olmo.data import DataCollator, build_memmap_dataset
from olmo.torch_util import get_global_rank, get_world_size
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset

from .. import remote
from ..config import TrainConfig
from ..errors import InputError
from ..shard_checks import check_training_shards
from ..shards import TOKENIZER, Manifest, ShardFile
from .harness import Score
from .task_tokenizer import TaskTokenizer, load_tokenizer

EvalBatch = Callable[[dict[str, Any]], Tensor]
"""Takes a batch, gives the mean loss of each of its sequences in nats a token: (B,)."""


@dataclass(frozen=True)
class HeldOutText:
    """The validation split of a dataset folder, as its manifest lists it."""

    folder: str
    manifest: Manifest
    files: list[ShardFile]

    @property
    def paths(self) -> list[str]:
        """The token files, in the order in which training's configs name them."""
        return [remote.join(self.folder, file.path) for file in self.files]

    def tokenizer(self, cfg: TrainConfig, say: Callable[[str], None]) -> TaskTokenizer | None:
        """The folder's own, to count bytes by; ``None`` where it cannot be read, of which ``say`` tells."""
        try:
            return load_tokenizer(cfg, given=remote.join(self.folder, TOKENIZER))
        except InputError as error:
            say(f"no bits per byte: {error.where}: {error.what}")
            return None


@dataclass(frozen=True)
class SequenceLoss:
    """One held-out sequence of S tokens: its source, its mean loss over S - 1 tokens, the bytes that those spell."""

    source: str
    nats_per_token: float
    bytes: int | None


def find_held_out(folder: str, cfg: TrainConfig, *, first_rank: bool = True) -> HeldOutText:
    """The held-out text of a folder that data_prep made, compared with its manifest and with the model.

    :param first_rank: the one that reads files whole to compare them.
    :raises InputError: when there is none, it is damaged, its examples have label masks, or its tokenizer is another.
    """
    manifest = Manifest.load(folder)
    files = sorted((file for file in manifest.files if file.split == "validation"), key=lambda file: file.path)
    if not files:
        remedy = "hold sequences out with data_prep's --validation-sequences"
        raise InputError(folder, "it has no validation files", remedy)
    if any(file.label_mask for file in files):
        remedy = "synthetic tasks are scored in training, by an evaluator of the type synthetic"
        raise InputError(folder, "only part of its tokens is to be learned", remedy)
    found = HeldOutText(folder, manifest, files)
    sequences = check_training_shards(
        found.paths,
        vocab_size=cfg.model.vocab_size,
        eos_token_id=cfg.model.eos_token_id,
        pad_token_id=cfg.model.pad_token_id,
        dtype=manifest.dtype,
        sequence_length=cfg.model.max_sequence_length,
        verification="auto" if first_rank else "sizes",
    )
    if not sequences:
        what = f"no validation file has {cfg.model.max_sequence_length} tokens, the length of the model's sequences"
        raise InputError(folder, what, "hold out more text")
    return found


def sequence_losses(
    eval_batch: EvalBatch,
    cfg: TrainConfig,
    text: HeldOutText,
    tokenizer: TaskTokenizer | None,
    *,
    batch_size: int,
    limit: int | None = None,
    progress: Callable[[Any], Iterable[Any]] = iter,
) -> list[SequenceLoss]:
    """The loss of each held-out sequence, on each rank alike, in the order in which training's evaluator takes them.

    :param tokenizer: to count bytes by; without it they are ``None``.
    :param limit: only so many sequences, the first ones of that order, which is random and follows from the seed.
    :param progress: wraps the batches of this rank.
    """
    dataset = build_memmap_dataset(cfg, DataConfig(paths=text.paths, memmap_dtype=text.manifest.dtype))
    # as OLMo's evaluator orders them (olmo/data/__init__.py:65), on one rank
    whole: Iterable[int] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=cfg.seed)
    mine = list(whole)[:limit][get_global_rank() :: get_world_size()]
    collator = DataCollator(pad_direction=cfg.data.pad_direction, pad_token_id=cfg.model.pad_token_id)
    loader: Any = DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collator)
    sources = {path: file.source for path, file in zip(text.paths, text.files, strict=True)}
    losses = []
    for batch in progress(loader):
        for ids_S, metadata, loss in zip(
            batch["input_ids"].tolist(), batch["metadata"], eval_batch(batch).tolist(), strict=True
        ):
            size = None if tokenizer is None else predicted_bytes(tokenizer, ids_S)
            losses.append(SequenceLoss(sources[metadata["path"]], loss, size))
    return _over_ranks(losses)


def _over_ranks(mine: list[SequenceLoss]) -> list[SequenceLoss]:
    """The losses of all ranks in their order, which were dealt out one by one."""
    if get_world_size() == 1:
        return mine
    parts: list[Any] = [None] * get_world_size()
    dist.all_gather_object(parts, mine)
    return [part[place] for place in range(len(parts[0])) for part in parts if place < len(part)]


def predicted_bytes(tokenizer: TaskTokenizer, ids_S: Sequence[int]) -> int:
    """UTF-8 bytes of the text that all tokens but the first spell; EOS spells none.

    A character that is cut at the beginning or end of the sequence counts as the replacement character, three bytes.
    """
    documents: list[list[int]] = [[]]
    for token in ids_S:
        if token == tokenizer.eos_token_id:
            documents.append([])
        else:
            documents[-1].append(token)
    first, *texts = tokenizer.decode_batch([documents[0][:1], *documents])
    return sum(len(text.encode()) for text in texts) - len(first.encode())


def scores(losses: Sequence[SequenceLoss], sequence_length: int) -> list[Score]:
    """What the losses of sequences come to, there being at least one; ``bits_per_byte`` where bytes are known.

    Standard errors are over sequences: of the mean; of its exponential to first order; of the ratio of sums to first
    order.
    """
    nats = Score.mean("nats_per_token", [one.nats_per_token for one in losses])
    perplexity = math.exp(nats.value)
    error = None if nats.standard_error is None else perplexity * nats.standard_error
    told = [nats, Score("perplexity", perplexity, error, len(losses))]
    sizes = np.array([one.bytes or 0 for one in losses], dtype=np.float64)
    if sizes.sum() > 0:
        bits = np.array([one.nats_per_token for one in losses]) * (sequence_length - 1) / math.log(2)
        ratio = bits.sum() / sizes.sum()
        spread = bits - ratio * sizes
        count = len(losses)
        error = float(np.sqrt(count / (count - 1) * (spread**2).sum()) / sizes.sum()) if count > 1 else None
        told.append(Score("bits_per_byte", float(ratio), error, count))
    return told


def by_source(losses: Sequence[SequenceLoss]) -> dict[str, list[SequenceLoss]]:
    """The losses of each source, sorted by name."""
    return {
        source: [one for one in losses if one.source == source] for source in sorted({one.source for one in losses})
    }
