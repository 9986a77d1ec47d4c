"""From a mixture's YAML file to a Mixture: every key checked, every refusal naming file, key, value and remedy."""

from __future__ import annotations

import math
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from data_prep.mixture import Decontamination, Draw, Kind, Mixture, Mode, Source, Validation
from data_prep.python_docs import GROUPS
from data_prep.templates import TEMPLATES
from olmoe_parrots.errors import InputError
from olmoe_parrots.strict_yaml import Section, read_yaml

TOKENIZERS = ("mistral-v1", "olmo")
TOLERANCE = 1e-6
_NAME = re.compile(r"[a-z0-9_]+")


def parse_mixture(path: Path) -> Mixture:
    """The mixture of a YAML file. Raises InputError for anything that is not as docs/data.md describes."""
    section = Section(read_yaml(path), str(path))
    section.refuse_unknown({field.name for field in fields(Mixture)})
    tokenizer = section.text("tokenizer", "mistral-v1")
    if tokenizer not in TOKENIZERS and not tokenizer.endswith(".json"):
        section.refuse("tokenizer", tokenizer, f"use {', '.join(TOKENIZERS)} or the path of a tokenizer.json")
    entries = section.sections("sources")
    sources: list[tuple[Source, bool]] = []
    optional: set[str] = set()
    for entry in entries:
        enabled = entry.boolean("enabled", True)
        source = _source(entry, path.parent)
        if "enabled" in entry.values:
            optional.add(source.name)
        if source.name in {other.name for other, _ in sources}:
            entry.refuse("name", source.name, "give every source a name of its own")
        sources.append((source, enabled))
    tokens = section.integer("tokens", None, least=1)
    chosen = _with_shares(section, [s for s, _ in sources], optional, {s.name for s, on in sources if on}, tokens)
    if tokens is None and all(source.tokens is not None for source in chosen):
        tokens = sum(source.tokens or 0 for source in chosen)
    mixture = Mixture(
        name=section.text("name", path.stem),
        tokens=tokens,
        seed=section.integer("seed", 0, least=0) or 0,
        tokenizer=tokenizer,
        validation=_validation(section.section("validation")),
        shard_megabytes=section.number("shard_megabytes", 64.0),
        decontamination=_decontamination(section.section("decontamination")),
        sources=chosen,
    )
    if mixture.validation.sequences is not None and tokens is None:
        remedy = "give validation a share, or the sources shares or tokens"
        section.refuse("validation.sequences", mixture.validation.sequences, remedy)
    return mixture


def _with_shares(
    section: Section, sources: list[Source], optional: set[str], enabled: set[str], tokens: int | None
) -> tuple[Source, ...]:
    """The enabled sources, shares divided by their sum. Refuses sums other than 1 and mixed ways of asking."""
    kinds = {"share" if s.share is not None else "tokens" if s.tokens is not None else "neither" for s in sources}
    if len(kinds) > 1 or (not enabled):
        what = "some sources name a share and some tokens or neither" if enabled else "no source is enabled"
        raise InputError(section.where, f"sources: {what}", "give every source a share, or every source tokens")
    chosen = [source for source in sources if source.name in enabled]
    if kinds != {"share"}:
        if tokens is not None:
            section.refuse("tokens", tokens, "leave it out where sources have no shares: the sum of theirs counts")
        return tuple(chosen)
    if tokens is None:
        raise InputError(section.where, "tokens: it is missing, and shares need it", "give the training tokens")
    total = math.fsum(source.share or 0.0 for source in sources if source.name not in optional)
    if abs(total - 1) > TOLERANCE:
        remedy = "make the shares of all sources without an `enabled` key add up to 1"
        raise InputError(section.where, f"sources: the shares add up to {total:.9g}", remedy)
    total = math.fsum(source.share or 0.0 for source in chosen)
    return tuple(replace(source, share=(source.share or 0.0) / total) for source in chosen)


def _source(section: Section, folder: Path) -> Source:
    known = {field.name for field in fields(Source)} - {"id_column"} | {"enabled", "id"}
    section.refuse_unknown(known)
    name = section.text("name")
    if not _NAME.fullmatch(name):
        section.refuse("name", name, "use a-z, 0-9 and underscores only")
    config = section.texts("config", ()) if isinstance(section.values.get("config"), list) else None
    source = Source(
        name=name,
        share=section.number("share", None, most=1.0),
        tokens=section.integer("tokens", None, least=1),
        epochs=section.integer("epochs", 1, least=1) or 1,
        kind=section.choice("kind", get_args(Kind), "dataset"),
        dataset=section.text("dataset", None),
        config=config or section.text("config", None),
        split=section.text("split", "train"),
        revision=section.text("revision", None),
        columns=section.texts("columns", ()),
        template=section.choice("template", tuple(TEMPLATES), "text"),
        path=section.text("path", None),
        draw=_draw(section),
        files=section.texts("files", ()),
        id_column=section.text("id", None),
    )
    return _checked(section, source, folder)


def _checked(section: Section, source: Source, folder: Path) -> Source:
    if source.share is not None and source.tokens is not None:
        section.refuse("tokens", source.tokens, "give a share or tokens, not both")
    for pattern in source.files:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            section.refuse("files", pattern, "use patterns below the dataset's folder")
    needed = {"dataset": "dataset", "folder": "path", "python_docs": "path"}[source.kind]
    if getattr(source, needed) is None:
        raise InputError(section.where, f"{needed}: it is missing", f"a source of kind {source.kind} needs it")
    if source.kind == "python_docs" and source.path not in GROUPS:
        section.refuse("path", source.path, f"use one of {', '.join(GROUPS)}")
    if source.kind == "folder" and not os.path.isabs(source.path or ""):
        return replace(source, path=str(folder / (source.path or "")))
    if source.kind == "dataset" and source.columns:
        missing = [column for column in TEMPLATES[source.template].columns if column not in source.columns]
        if missing:
            section.refuse("columns", list(source.columns), f"add {', '.join(missing)} for template {source.template}")
    return source


def _draw(section: Section) -> Draw | None:
    if section.values.get("draw") is None:
        return None
    draw = section.section("draw")
    draw.refuse_unknown({"column", "counts"})
    counts = draw.section("counts")
    if not counts.values:
        raise InputError(counts.where, "counts: it is missing", "name values of the column with their counts")
    return Draw(draw.text("column"), {key: counts.integer(key, 0, least=0) or 0 for key in counts.values})


def _validation(section: Section) -> Validation:
    section.refuse_unknown({field.name for field in fields(Validation)})
    sequences = section.integer("sequences", None, least=0)
    share = section.number("share", None, most=1.0, positive=False)
    if (sequences is None) == (share is None):
        raise InputError(section.where, "it names both or neither of sequences and share", "give exactly one of them")
    return Validation(sequences, section.integer("sequence_length", 2048, least=1) or 2048, share)


def _decontamination(section: Section) -> Decontamination:
    section.refuse_unknown({field.name for field in fields(Decontamination)})
    tasks = section.texts("tasks", ()) or None
    return Decontamination(
        section.choice("mode", get_args(Mode), "off"), section.integer("ngram", 13, least=1) or 13, tasks
    )
