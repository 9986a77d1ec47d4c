"""A mixture to a dataset folder: every source read, tokenized, held out from and cut, then the manifest."""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.assembly import assemble_part
from data_prep.documents import FOLDER, Skipped
from data_prep.duplicates import SeenTexts
from data_prep.hold_out import Budget, SourceFiles, SourceFinisher, read_boundaries
from data_prep.mixture import Mixture, Source
from data_prep.parts import Part, PartJob, Recipe, load_part, make_part, read_documents
from data_prep.pieces import LeftOut
from data_prep.prepared import PreparedFiles
from data_prep.reader import Slice, SourceReader, save_unit, unit_name
from data_prep.sources import Unit
from data_prep.tokenization import TokenFile
from data_prep.workers import Workers
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import ShardFile, TokenizerInfo, write_atomically

SEEN = f"{FOLDER}/seen.sqlite"


@dataclass(frozen=True)
class BuiltSource:
    """A finished source: its shards, how many parts they come from, and what was left out of it."""

    files: SourceFiles
    parts: int
    left_out: LeftOut = field(default_factory=dict)
    long_documents: int = 0

    def shards(self, source: str) -> list[ShardFile]:
        """Its token files as the manifest lists them."""
        split_files = [("train", self.files.train), ("validation", self.files.validation)]
        return [
            ShardFile(f.path, split, source, f.bytes, f.sha256, f.tokens, f.documents, f.boundaries_sha256)
            for split, files in split_files
            for f in files
        ]


class Builder:
    """Builds the sources of a mixture one after another, so that which of two duplicates stays does not depend on
    timing; the parts of a source are worked on side by side.

    Args:
        output: the dataset folder; what an earlier run finished there is kept.
        scratch: an existing folder for unfinished files, on the same file system.
        prepared: source files that were read and tokenized before.
        contamination_index: of data_prep.decontamination; None to look for no test items.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: TokenizerInfo,
        output: Path,
        scratch: Path,
        workers: Workers,
        prepared: PreparedFiles,
        contamination_index: Path | None = None,
    ) -> None:
        self._prepared = prepared
        self._mixture, self._tokenizer = mixture, tokenizer
        self._output, self._scratch, self._workers = output, scratch, workers
        self._contamination_index = contamination_index
        if not (output / SEEN).exists():
            forget_texts(output)
        self._seen = SeenTexts(output / SEEN)

    def close(self, finished: bool) -> None:
        """Leave the texts seen so far for the run that goes on, or remove them after the last one."""
        if finished:
            self._seen.remove()
        else:
            self._seen.close()

    def build(self, source: Source, units: list[Unit]) -> BuiltSource:
        """Make the shards of one source, or what is missing of them. Raises InputError for unusable input."""
        (self._output / FOLDER / source.name).mkdir(parents=True, exist_ok=True)
        built = self._load(source)
        if built is not None:
            return built
        budget = budget_of(self._mixture, source)
        finisher = SourceFinisher(self._output, self._scratch, source.name, self._mixture.seed, self._tokenizer)
        parts, used = self._parts(source, units, budget, finisher)
        left_out = Skipped()
        for slice_ in used:
            left_out.update(slice_.left_out)
        if not any(part.documents for part in parts):
            reasons = f" ({'; '.join(left_out.lines()[:5])})" if left_out.counts else ""
            remedy = "mend its files, columns, id or template, or take it out of the mixture"
            raise InputError(source.name, f"no row of it is a document{reasons}", remedy)
        files = finisher.finish(parts, budget)
        built = BuiltSource(files, len(parts), left_out.as_dict(), sum(s.long_documents for s in used))
        self._remove_parts_from(source, len(parts))
        self._seen.commit()
        self._save(source, built)
        return built

    def _parts(
        self, source: Source, units: list[Unit], budget: Budget, finisher: SourceFinisher
    ) -> tuple[list[Part], list[Slice]]:
        """The parts up to the budget, and the slices they come from."""
        size = int(self._mixture.shard_megabytes * 1e6)
        reader = SourceReader(source, units, self._seen, self._prepared, self._output, self._scratch, size)
        recipe = Recipe(
            self._output,
            self._scratch,
            source.name,
            self._mixture.seed,
            self._tokenizer,
            budget.threshold(),
            self._contamination_index,
            self._mixture.decontamination.mode == "drop",
        )
        parts: list[Part] = []
        used: list[Slice] = []
        ahead: deque[Slice] = deque()
        by_name = {unit_name(unit): unit for unit in units}
        train = candidates = 0
        results = self._workers.map(_work, self._jobs(reader, recipe, ahead))
        with _Progress(source.name, budget) as bar:
            for slice_, part in results:
                ahead.popleft()
                if part is not None:
                    slice_ = replace(slice_, lines_sha256=part.lines_sha256)
                used.append(slice_)
                if part is not None:
                    parts.append(part)
                    train += part.train.tokens
                    candidates += part.candidates.tokens
                    bar.add(part)
                if slice_.ends:
                    self._seen.commit()
                    save_unit(self._output, [s for s in used if s.unit == slice_.unit])
                    self._prepared.remove(by_name[slice_.unit])
                if budget.is_met(train, candidates) and finisher.has_enough(parts, budget):
                    break
            results.close()
        for slice_ in ahead:
            self._seen.forget(slice_.digests)
        return parts, used

    def _jobs(
        self, reader: SourceReader, recipe: Recipe, ahead: deque[Slice]
    ) -> Iterator[tuple[Slice, PartJob | None]]:
        for slice_ in reader.slices():
            ahead.append(slice_)
            job = None
            if slice_.number is not None:
                job = PartJob(recipe, slice_.number, slice_.lines, slice_.lines_sha256, slice_.picked)
            yield slice_, job

    def _remove_parts_from(self, source: Source, number: int) -> None:
        """Remove what was read in vain, beyond the budget, by this run or one that ended early."""
        for path in (self._output / FOLDER / source.name).glob("[0-9]*"):
            if int(path.name.split(".")[0]) >= number:
                path.unlink()

    def _record(self, source: Source) -> Path:
        return self._output / FOLDER / source.name / "source.json"

    def _save(self, source: Source, built: BuiltSource) -> None:
        write_atomically(self._record(source), json.dumps(asdict(built), indent=1).encode())

    def _load(self, source: Source) -> BuiltSource | None:
        """The source as an earlier run finished it, if all of its shards are whole."""
        try:
            record = json.loads(self._record(source).read_text(encoding="utf-8"))
            files = record.pop("files")
            lists = {split: [TokenFile(**file) for file in files[split]] for split in ("train", "validation")}
            built = BuiltSource(SourceFiles(**lists, passes=files["passes"]), **record)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = all(file.is_whole(self._output) for split in lists.values() for file in split)
        return built if whole else None

    def parts_of(self, source: Source, built: BuiltSource) -> Iterator[Part]:
        """The parts of a built source, in order."""
        for number in range(built.parts):
            part = load_part(self._output, source.name, number)
            assert part is not None, f"{source.name}: the record of part {number} is gone"
            yield part

    def training_documents(self, source: Source, built: BuiltSource) -> Iterator[dict[str, Any]]:
        """The documents of a source that are in its training shards, once each, in the order they were read."""
        lines: dict[str, array[int]] = {}
        for file in built.files.train:
            for row in read_boundaries(self._output / file.boundaries):
                lines.setdefault(row[3], array("L")).append(int(row[4]))
        for path in sorted(lines):
            wanted = set(lines[path])
            for number, document in enumerate(read_documents(self._output / path), start=1):
                if number in wanted:
                    yield document


def _work(job: PartJob | None) -> Part | None:
    if job is None:
        return None
    return make_part(job) if job.picked is None else assemble_part(job)


def budget_of(mixture: Mixture, source: Source) -> Budget:
    """What the mixture asks of one of its sources."""
    validation, train = mixture.validation, mixture.budgets()[source.name]
    if validation.sequences is None:
        return Budget(train, source.epochs, None, validation.share or 0.0)
    sequences = mixture.validation_sequences()[source.name]
    return Budget(train, source.epochs, sequences * validation.sequence_length)


def forget_texts(output: Path) -> None:
    """Have all units and sources read anew; the parts of them that come out the same are kept."""
    for pattern in ("seen.sqlite*", "*/unit-*.json", "*/source.json"):
        for path in (output / FOLDER).glob(pattern):
            path.unlink()


class _Progress:
    """A bar of a source's tokens, with their rate and the time that is left where a budget tells it."""

    def __init__(self, name: str, budget: Budget) -> None:
        from tqdm import tqdm

        total = None if budget.train is None else budget.train + (budget.held_out or 0)
        self._bar = tqdm(total=total, desc=name, unit=" tokens", unit_scale=True)
        self._parts = self._documents = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, part: Part) -> None:
        """Count a finished part."""
        self._parts += 1
        self._documents += part.documents
        self._bar.set_postfix(documents=f"{self._documents:,}", parts=self._parts, refresh=False)
        self._bar.update(part.train.tokens + part.candidates.tokens)
