"""Our models as lm-evaluation-harness's: log-likelihoods and greedy generation for any task of that library.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from olmo.torch_util import get_global_rank, get_world_size
from torch import Tensor
from tqdm import tqdm

from olmoe_parrots.config import BlockType
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.checkpoints import LoadedModel
from olmoe_parrots.evaluation.task_tokenizer import TaskTokenizer, load_tokenizer
from olmoe_parrots.generation import continue_greedily

log = logging.getLogger(__name__)
_DEFAULT_LENGTH = 256
# Prompts of a batch differ by no more tokens than this, each of which is a step of decoding.
_SPREAD = 32


class ParrotsLM(TemplateLM):
    """A checkpoint's model for lm-evaluation-harness.

    Documents are tokenized as in training, by the run's tokenizer and without special tokens; a text without context
    stands after EOS, as documents do in training. What does not fit into the model's context is cut off on the left
    and counted in ``truncated``. Results do not depend on the batch size, but where experts have a capacity
    (``moe_dropless: false``): a warning then says so.

    Each rank of several must hold the whole model; the library shares the documents out.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 16, tokenizer: TaskTokenizer | None = None) -> None:
        """
        Args:
            batch_size: sequences in a forward pass.
            tokenizer: the run's own when None.
        """
        super().__init__()
        self.model, self.cfg, self.batch_size = loaded.model, loaded.cfg, batch_size
        self.max_length = loaded.cfg.model.max_sequence_length
        self.tokenizer: Any = tokenizer or load_tokenizer(loaded.cfg, loaded.path)
        self.truncated = 0
        """Sequences that were cut off, of all calls."""
        self._device: Any = next(loaded.model.parameters()).device
        self._rank, self._world_size = get_global_rank(), get_world_size()
        model = loaded.cfg.model
        if model.block_type == BlockType.moe and model.moe_dropless is False:
            log.warning("the experts have a capacity: which tokens they drop, and so the scores, depend on the batch")

    @property
    def eot_token_id(self) -> int:
        return self.cfg.model.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.cfg.tokenizer.identifier

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; OLMo's EOS is never added, as no text here is a whole document."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        return ids

    # Between ranks; lm-evaluation-harness calls these when there are several.

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, stacked."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks on rank ``dst``, None on the others."""
        parts: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, parts, dst=dst)
        return parts

    def barrier(self) -> None:
        dist.barrier()

    # What a task asks.

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would say the same) of each continuation.

        Raises InputError for a continuation that is longer than the model's context.
        """
        pairs = [(list(context), list(continuation)) for _, context, continuation in requests]
        for context, continuation in pairs:
            if len(continuation) > self.max_length:
                what = f"a continuation has {len(continuation):,} tokens and the model's context {self.max_length:,}"
                raise InputError("loglikelihood", what, "leave the task out")
            self.truncated += len(context) + len(continuation) > self.max_length + 1
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        lengths = [sum(map(len, pair)) for pair in pairs]
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm or self.rank > 0) as progress:
            for places in _batches(lengths, self.batch_size):
                for place, score in zip(places, self._score([pairs[i] for i in places]), strict=True):
                    scores[place] = score
                progress.update(len(places))
        for (strings, _, _), score in zip(requests, scores, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, score)
        return scores

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of a batch. Padding stands on the right, where nothing that counts sees it."""
        rows = [(context + continuation)[-self.max_length - 1 :] for context, continuation in pairs]
        longest = max(len(row) for row in rows) - 1
        inputs_BT = torch.full((len(rows), longest), self.cfg.model.pad_token_id)
        for place, row in enumerate(rows):
            inputs_BT[place, : len(row) - 1] = torch.tensor(row[:-1])
        with torch.no_grad(), self._autocast():
            logits_BTV = self.model(input_ids=inputs_BT.to(self.device)).logits
        scores = []
        for row, (_, continuation), logits_TV in zip(rows, pairs, logits_BTV, strict=True):
            count = len(continuation)
            asked_TV = logits_TV[len(row) - 1 - count : len(row) - 1].float().log_softmax(dim=-1)
            wanted_T = torch.tensor(continuation, device=asked_TV.device, dtype=torch.long)
            total = float(asked_TV.gather(1, wanted_T[:, None]).sum())
            scores.append((total, bool((asked_TV.argmax(dim=-1) == wanted_T).all())))
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text in nats, after EOS, in windows of the model's context."""
        totals = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm or self.rank > 0):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each prompt, greedily, up to the first of the stop strings.

        The prompt keeps at least half of the model's context: generation is shorter where ``max_gen_toks`` asks for
        more. Raises InputError for a task that asks for sampling.
        """
        settings = [normalize_gen_kwargs(dict(request.args[1]), _DEFAULT_LENGTH) for request in requests]
        if any(setting["do_sample"] for setting in settings):
            raise InputError("generate_until", "the task asks for sampling", "set do_sample: false, or leave it out")
        stops = [[stop for stop in setting["until"] if stop] for setting in settings]
        lengths = [min(setting["max_gen_toks"], self.max_length // 2) for setting in settings]
        prompts = []
        for request, length in zip(requests, lengths, strict=True):
            prompt = self.tok_encode(request.args[0]) or [self.prefix_token_id]
            self.truncated += len(prompt) > self.max_length - length
            prompts.append(prompt[-(self.max_length - length) :])
        kinds = [(tuple(stop), length) for stop, length in zip(stops, lengths, strict=True)]
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generation", disable=disable_tqdm or self.rank > 0) as progress:
            for kind in dict.fromkeys(kinds):
                mine = [place for place, other in enumerate(kinds) if other == kind]
                for batch in _batches([len(prompts[place]) for place in mine], self.batch_size, _SPREAD):
                    places = [mine[i] for i in batch]
                    for place, text in zip(places, self._continue([prompts[i] for i in places], *kind), strict=True):
                        texts[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    progress.update(len(places))
        return texts

    def _continue(self, prompts: Sequence[list[int]], stops: Sequence[str], length: int) -> Iterator[str]:
        def is_complete(decoded: list[int]) -> bool:
            text = self.tokenizer.decode(decoded)
            return any(stop in text for stop in stops)

        eos = self.eot_token_id
        with self._autocast():
            every = continue_greedily(
                self.model, prompts, length, eos_token_id=eos, device=self.device, is_complete=is_complete
            )
        for decoded in every:
            text = self.tokenizer.decode(decoded[:-1] if decoded[-1:] == [eos] else decoded)
            yield text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.cfg.autocast_precision
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)


def _batches(lengths: Sequence[int], size: int, spread: int | None = None) -> Iterator[list[int]]:
    """Places of sequences, the longest first, at most ``size`` together, whose lengths differ by ``spread`` at most."""

    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        too_short = spread is not None and batch and lengths[batch[0]] - lengths[place] > spread
        if len(batch) == size or too_short:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
