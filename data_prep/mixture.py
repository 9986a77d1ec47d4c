"""Mixtures: which sources a dataset is made of, in which shares, and how they are read; one YAML file each.

A mixture is data: `data_prep/mixtures/*.yaml` are the shipped ones, and a copy of one of them is the way to change a
share. Loading is strict, so that a misspelt key is an error and not a default.

Shares: those of the sources without an `enabled` key add up to 1. A source with that key is an option: with
`enabled: false` it is left out, with `enabled: true` its share comes on top of the others' 1, and all shares are
divided by their sum. In place of shares, every source may name `tokens`, or none of them either: then each is taken
whole, once.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from olmoe_parrots.errors import InputError

SHIPPED = Path(__file__).parent / "mixtures"
Kind = Literal["dataset", "folder", "python_docs"]
Mode = Literal["off", "report", "drop"]


@dataclass(frozen=True)
class Draw:
    """Training items that are listed for the generalization gap: `counts` of each value of the column `column`."""

    column: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Validation:
    """What is held out: `sequences` of `sequence_length` tokens by the sources' shares, or a `share` of the documents.

    Exactly one of `sequences` and `share` is given.
    """

    sequences: int | None = None
    sequence_length: int = 2048
    share: float | None = None


@dataclass(frozen=True)
class Decontamination:
    """Documents that share a run of `ngram` words with a test item: kept unseen (off), reported, or dropped.

    Args:
        tasks: the tasks whose test items are looked for; None for all.
    """

    mode: Mode = "off"
    ngram: int = 13
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """One source of a mixture: how much of it is wanted, where it lies, and how a row becomes a document.

    Args:
        name: letters a-z, digits and underscores; shards and local folders carry it.
        share: of the mixture's tokens, after division by the sum of all shares; None where `tokens` is given.
        tokens: asked in training; None where a share is given. With neither, the source is taken whole, once.
        epochs: how many times its documents may be used to reach what is asked.
        kind: "dataset" (the hub's, or local files of its schema), "folder" (of .txt, .md, .jsonl) or "python_docs".
        dataset: a hub id, or the path of a local folder laid out like a hub repository.
        config, split, revision: as the hub names them; several configs are read as one source.
        columns: the columns read; the template's own must be among them, the others go into the metadata.
        template: a key of `data_prep.templates.TEMPLATES`.
        path: of a folder, or a group of python_docs.
        draw: what is listed for the generalization gap.
        files: glob patterns below the repository or folder; those files are then read without the hub's loader.
        id_column: the column with the hub's own id, unique in the source; without it ids are SOURCE/FILE:ROW.
    """

    name: str
    share: float | None = None
    tokens: int | None = None
    epochs: int = 1
    kind: Kind = "dataset"
    dataset: str | None = None
    config: str | tuple[str, ...] | None = None
    split: str = "train"
    revision: str | None = None
    columns: tuple[str, ...] = ()
    template: str = "text"
    path: str | None = None
    draw: Draw | None = None
    files: tuple[str, ...] = ()
    id_column: str | None = None

    @property
    def configs(self) -> tuple[str | None, ...]:
        """The configs to read, at least one; (None,) for a dataset without configs."""
        return self.config if isinstance(self.config, tuple) else (self.config,)


@dataclass(frozen=True)
class Mixture:
    """A mixture as loaded: the enabled sources, with shares that add up to 1 where shares are given."""

    name: str
    tokens: int | None
    seed: int
    tokenizer: str
    validation: Validation
    shard_megabytes: float
    decontamination: Decontamination
    sources: tuple[Source, ...]

    def budgets(self) -> dict[str, int | None]:
        """Training tokens asked of each source, which add up to the mixture's; None for a source taken whole."""
        shares = {source.name: source.share for source in self.sources if source.share is not None}
        if self.tokens is None or not shares:
            return {source.name: source.tokens for source in self.sources}
        return dict(largest_remainder(self.tokens, shares))

    def validation_sequences(self) -> dict[str, int]:
        """Sequences to hold out of each source by its share; {} where a share of documents is held out."""
        if self.validation.sequences is None:
            return {}
        return largest_remainder(self.validation.sequences, self._weights())

    def scaled(self, tokens: int) -> Mixture:
        """The same mixture with `tokens` training tokens; the hold-out stays as it is.

        Raises InputError for a mixture without budgets.
        """
        if tokens <= 0:
            raise InputError("--tokens", f"{tokens} is not positive", "give a number above 0")
        budgets = {name: budget for name, budget in self.budgets().items() if budget is not None}
        if not budgets:
            raise InputError("--tokens", f"the sources of {self.name} are taken whole", "leave it out")
        if all(source.share is not None for source in self.sources):
            return replace(self, tokens=tokens)
        asked = largest_remainder(tokens, {name: float(budget) for name, budget in budgets.items()})
        return replace(self, tokens=tokens, sources=tuple(replace(s, tokens=asked[s.name]) for s in self.sources))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types under the keys of a mixture file, defaults included: as YAML, it loads as this mixture."""
        plain: dict[str, Any] = _plain(asdict(self))
        for source in plain["sources"]:
            source["id"] = source.pop("id_column")
        if any(source.tokens is not None for source in self.sources):
            plain["tokens"] = None  # the sum of the sources' own
        return plain

    def _weights(self) -> dict[str, float]:
        return {s.name: s.share if s.share is not None else float(s.tokens or 0) for s in self.sources}


def largest_remainder(total: int, weights: dict[str, float]) -> dict[str, int]:
    """Split `total` into whole parts in proportion to the weights; the parts add up to it.

    Every part is its exact share rounded down, or that plus one for the largest remainders, ties by order.
    """
    whole = math.fsum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: parts[name] - exact[name])
    for name in by_remainder[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def shipped_mixtures() -> list[str]:
    """The names of the mixtures that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_mixture(path_or_name: str) -> Mixture:
    """Read a mixture file, or a shipped one by its name.

    Raises InputError naming file, key and value for anything that is not as described in docs/data.md.
    """
    from data_prep.mixture_file import parse_mixture

    path = Path(path_or_name)
    if path_or_name in shipped_mixtures():
        path = SHIPPED / f"{path_or_name}.yaml"
    elif not path.is_file():
        remedy = f"name a mixture file, a folder or one of {', '.join(shipped_mixtures())}"
        raise InputError(path, "there is no such file or mixture", remedy)
    return parse_mixture(path)


def folder_mixture(
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: str = "mistral-v1",
    validation: Validation | None = None,
    shard_megabytes: float = 16.0,
    decontamination: Decontamination | None = None,
) -> Mixture:
    """A mixture of a folder's documents: a source for each folder on its first level, taken whole, once.

    Files directly in `folder` are the source "documents". A folder's name becomes a source's by lower case and
    underscores. Raises InputError if the folder does not exist or holds no documents.
    """
    from data_prep.units import document_files

    paths = document_files(folder, ("**/*",))
    if not paths:
        raise InputError(folder, "it holds no documents", "put .txt, .md, .jsonl or .jsonl.gz files into it")
    sources: dict[str, Source] = {}
    for top in sorted({Path(path).parts[0] if len(Path(path).parts) > 1 else "" for path in paths}):
        stem = re.sub(r"[^a-z0-9]+", "_", top.lower()).strip("_") or ("folder" if top else "documents")
        name = stem
        while name in sources:
            name = f"{stem}_{sum(other.startswith(stem) for other in sources) + 1}"
        files = () if top else ("*",)
        sources[name] = Source(name, kind="folder", path=str(folder / top), files=files)
    return Mixture(
        name="folder",  # not its own, so that the same files elsewhere are the same mixture
        tokens=None,
        seed=seed,
        tokenizer=tokenizer,
        validation=validation or Validation(share=0.02),
        shard_megabytes=shard_megabytes,
        decontamination=decontamination or Decontamination(),
        sources=tuple(sources.values()),
    )
