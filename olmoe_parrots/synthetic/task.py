"""What the two tasks have in common: vocabulary, rows, test queries, measurements.

Shapes: R rows, Q queries, T tokens.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from olmoe_parrots.errors import InputError

Integers = npt.NDArray[Any]
PAD, EOS = 0, 1
SPECIAL = ("<pad>", "<eos>")
QUERIES = "test/queries.npz"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a task, by token id. The first two are `<pad>` and `<eos>`."""

    words: tuple[str, ...]

    def decode(self, ids: Integers) -> str:
        """The words of a row of token ids, joined by spaces."""
        return " ".join(self.words[int(i)] for i in ids)

    def tokenizer_json(self) -> bytes:
        """The vocabulary as a tokenizer.json of the `tokenizers` library: words split at spaces.

        It has no unknown token, so text with other words is refused and never encoded wrongly.
        """
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [{"id": number, "content": word, **flags} for number, word in enumerate(SPECIAL)]
        model = {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(self.words)},
            "unk_token": "<unk>",
        }
        whole = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": model,
        }
        return json.dumps(whole, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class Rows:
    """Training examples: `tokens_RT` (uint16), `learned_RT` (bool: this token is a label), `counts` for the report."""

    tokens_RT: Integers
    learned_RT: Integers
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Queries:
    """Test queries: `prompts_QT`, all of one length, and their `answers_QT`, padded after EOS."""

    prompts_QT: Integers
    answers_QT: Integers

    def save(self, path: Path) -> None:
        """Write both arrays to `path`, a .npz file; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, prompts=self.prompts_QT, answers=self.answers_QT)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Queries:
        """Read the queries of a data set folder. Raises InputError where they are missing or damaged."""
        path = folder / QUERIES
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["prompts"], arrays["answers"])
        except FileNotFoundError:
            raise InputError(path, "the file is missing", "name a folder of a synthetic task") from None
        except (OSError, ValueError, KeyError, EOFError) as error:
            remedy = "generate the data set again with `python -m olmoe_parrots.synthetic`"
            raise InputError(path, f"it cannot be read ({error})", remedy) from None


@dataclass(frozen=True)
class Measurement:
    """A mean over `examples` test queries; `standard_error` is that of the mean over queries."""

    metric: str
    value: float
    standard_error: float
    examples: int

    @classmethod
    def of(cls, metric: str, values_Q: Integers) -> Measurement:
        """The mean of one value a query, there being at least one."""
        values = np.asarray(values_Q, dtype=np.float64)
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        return cls(metric, float(values.mean()), error, len(values))


class Task(Protocol):
    """A task with its options. Everything depends on the options, the seed and the place of a row alone."""

    @property
    def name(self) -> str:
        """Of the task, its files and its source in the manifest."""
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def needed_length(self) -> int:
        """Tokens of the longest row, EOS included."""
        ...

    @property
    def row_length(self) -> int:
        """Tokens of every row: the option `sequence_length`, or `needed_length` without it."""
        ...

    @property
    def answer_length(self) -> int:
        """How many tokens to decode after a prompt."""
        ...

    @property
    def rows_per_shard(self) -> int: ...

    def settings(self) -> dict[str, Any]:
        """The options as plain data; `type(task)(**settings)` is the task again."""
        ...

    def check(self, size: int, test_size: int, seed: int) -> None:
        """Raise InputError for options that cannot be met."""
        ...

    def test_queries(self, size: int, test_size: int, seed: int) -> tuple[Queries, Counter[str]]:
        """The test queries, and counts for the report."""
        ...

    def rows(self, first: int, count: int, seed: int, test: Queries) -> Rows:
        """Training examples `first` to `first + count`. `first` is a multiple of `rows_per_shard`."""
        ...

    def score(self, queries: Queries, decoded_QT: Integers) -> list[Measurement]:
        """Score what was decoded greedily after each prompt, `answer_length` tokens as a rule: (Q, T)."""
        ...


def check_length(task: Task, sequence_length: int | None) -> None:
    """Raise InputError where the rows of a task do not fit the sequence length asked for."""
    if sequence_length is not None and sequence_length < task.needed_length:
        what = f"{sequence_length} tokens do not hold a row of {task.name}, which needs up to {task.needed_length}"
        raise InputError("--sequence-length", what, f"give at least {task.needed_length}, or make the task smaller")


def padded(decoded_QT: Integers, length: int) -> Integers:
    """What was decoded, cut or padded with PAD to `length` tokens: (Q, length) int64."""
    found = np.full((len(decoded_QT), length), PAD, dtype=np.int64)
    kept = np.asarray(decoded_QT)[:, :length]
    found[:, : kept.shape[1]] = kept
    return found
