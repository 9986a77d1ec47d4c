"""Data preparation as an array of jobs: source files listed once, and each of them prepared by a task of its own.

What comes after them is the ordinary command: it takes what was prepared, in the order that it has without it, and
reads for itself what was not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.build import budget_of
from data_prep.mixture import Mixture, Source
from data_prep.output_folder import FILES, PREPARED, locked, shared, told_when_full
from data_prep.prepared import folder_of, key_of, load_prepared, prepare_file
from data_prep.sources import Unit, find_units
from data_prep.tokenizers import write_tokenizer
from data_prep.workers import Workers
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import MANIFEST, TOKENIZER, TokenizerInfo, sha256_of, write_atomically

TEST_ITEMS = "test_items.npy"
_DUPLICATES = 1.1
"""A file is not prepared when those before it hold so many times what is asked of their source."""


@dataclass(frozen=True)
class FileList:
    """The source files of a mixture as they were listed, source after source, each in the order it is read in.

    Args:
        asked: the mixture and the arguments that decide what is made of the files.
    """

    units: list[Unit]
    asked: dict[str, Any]
    tokenizer: TokenizerInfo
    test_items_sha256: str | None

    def of(self, source: Source) -> list[Unit]:
        """The files of one source."""
        return [unit for unit in self.units if unit.source == source.name]

    def save(self, output: Path) -> None:
        """Write the list."""
        write_atomically(output / FILES, json.dumps(asdict(self), indent=1).encode())


def load_list(output: Path) -> FileList | None:
    """The list of an earlier `list_files`; None where there is none or it cannot be read."""
    try:
        record = json.loads((output / FILES).read_text(encoding="utf-8"))
        units = [Unit(**{**unit, "paths": tuple(unit["paths"])}) for unit in record["units"]]
        tokenizer = TokenizerInfo(**record["tokenizer"])
        return FileList(units, record["asked"], tokenizer, record["test_items_sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_finished(output: Path) -> bool:
    """Whether the dataset in a folder is made already, so that no source file is needed."""
    return (output / MANIFEST).exists()


def asked_of(mixture: Mixture, local: str | None, test_items: str | None, eos: int | None, pad: int | None) -> Any:
    """What a list is for, as JSON has it."""
    asked = {"mixture": mixture.as_dict(), "local": local, "test_items": test_items, "eos": eos, "pad": pad}
    return json.loads(json.dumps(asked))


def find_all_units(mixture: Mixture, local: str | None, output: Path) -> dict[str, list[Unit]]:
    """The units of each source in reading order; those of the hub as they were listed, where they were."""
    pinned = load_list(output)
    earlier = {} if pinned is None else {source["name"]: source for source in pinned.asked["mixture"]["sources"]}
    found = {}
    for source, described in zip(mixture.sources, mixture.as_dict()["sources"], strict=True):
        units = [] if pinned is None else pinned.of(source)
        of_hub = units and units[0].kind in ("stream", "hub_file") and local is None
        same = earlier.get(source.name) == json.loads(json.dumps(described)) and of_hub
        found[source.name] = units if same else find_units(source, local, mixture.seed, output)
    return found


def list_files(
    mixture: Mixture,
    output: Path,
    *,
    local: str | None = None,
    test_items: str | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> FileList:
    """List the source files of a mixture in `output`, with the tokenizer and the test items that their tasks need.

    Files of the hub stay those that were listed first, at the commit that was found then. The arguments are those of
    `prepare`. Raises InputError as `prepare` does before it reads documents.
    """
    from data_prep.prepare import contamination_index

    with locked(output) as scratch, told_when_full(output):
        units = find_all_units(mixture, local, output)
        index = contamination_index(mixture, scratch, test_items)
        tokenizer = write_tokenizer(mixture.tokenizer, scratch / TOKENIZER, eos=eos, pad=pad)
        (output / PREPARED).mkdir(exist_ok=True)
        os.replace(scratch / TOKENIZER, output / PREPARED / TOKENIZER)
        sha256 = None
        if index is not None:
            sha256 = sha256_of(index)
            os.replace(index, output / PREPARED / TEST_ITEMS)
        asked = asked_of(mixture, local, test_items, eos, pad)
        listed = FileList([unit for found in units.values() for unit in found], asked, tokenizer, sha256)
        listed.save(output)
        return listed


def show_list(listed: FileList, output: Path) -> None:
    """Print index, source and name of each file, and whether it is prepared."""
    for index, unit in enumerate(listed.units):
        state = "prepared" if load_prepared(folder_of(output, unit)) is not None else "waiting"
        print(f"{index}\t{unit.source}\t{unit.name}\t{state}")


def prepare_one(mixture: Mixture, output: Path, index: int, asked: dict[str, Any], processes: int) -> None:
    """Prepare the source file of a place in the list; kept where that was done before.

    Args:
        asked: of :func:`asked_of`; that of the list is refused where it differs.
        processes: worker processes.

    Raises InputError for a place or a mixture that the list does not have, and for a file that cannot be read.
    """
    listed = load_list(output)
    if listed is None:
        raise InputError(output, "its source files are not listed", "first give the same command with --list-files")
    if listed.asked != asked:
        different = [key for key in asked if listed.asked.get(key) != asked[key]]
        what = f"its source files were listed for another {' and '.join(different)}"
        raise InputError(output, what, "give the same arguments, or list them again with --list-files")
    if not 0 <= index < len(listed.units):
        raise InputError("--file", f"{index} is none of the {len(listed.units)} files", "see --list-files")
    unit = listed.units[index]
    source = next(source for source in mixture.sources if source.name == unit.source)
    with shared(output), told_when_full(output), Workers(processes) as workers:
        key = key_of(unit, source, listed.tokenizer, listed.test_items_sha256)
        found = load_prepared(folder_of(output, unit))
        if found is not None and found.key == key and _is_current(found.sums, unit) and found.is_whole():
            print(f"nothing to do: {unit.name} of {unit.source} is prepared", file=sys.stderr)
            return
        if (told := _not_needed(mixture, source, listed.of(source), unit, output)) is not None:
            print(told, file=sys.stderr)
            return
        test_items = output / PREPARED / TEST_ITEMS if listed.test_items_sha256 else None
        slice_bytes = int(mixture.shard_megabytes * 1e6)
        made = prepare_file(unit, source, output, key, listed.tokenizer, test_items, slice_bytes, workers)
    documents = sum(piece.documents for piece in made.pieces)
    print(f"{unit.source}: {unit.name} is prepared: {documents:,} documents, {made.tokens:,} tokens", file=sys.stderr)


def _is_current(sums: dict[str, list[Any]], unit: Unit) -> bool:
    """Whether the files that were read are still the same."""
    from data_prep.sources import sums_of

    return {name: found[-1] for name, found in sums_of([unit], sums).items()} == {n: s[-1] for n, s in sums.items()}


def _not_needed(mixture: Mixture, source: Source, units: Sequence[Unit], unit: Unit, output: Path) -> str | None:
    """Why a file is left alone: those before it in reading order hold more than is asked of the source."""
    budget = budget_of(mixture, source)
    if budget.train is None:
        return None
    asked = budget.train + (budget.held_out or 0)
    before = 0
    for earlier in units[: units.index(unit)]:
        found = load_prepared(folder_of(output, earlier))
        before += found.tokens if found is not None else 0
    if before < _DUPLICATES * asked:
        return None
    told = f"the files before it have {before:,} tokens of the {asked:,} asked for"
    return f"{unit.source}: {unit.name} is not needed: {told}"
