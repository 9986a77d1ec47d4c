"""The story of `python -m data_prep`: a mixture, its inputs, the dataset folder; what is there already is kept."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.build import Builder, BuiltSource, forget_texts
from data_prep.documents import FOLDER, RECIPE, Skipped
from data_prep.file_array import asked_of, find_all_units, load_list
from data_prep.mixture import Mixture
from data_prep.output_folder import PREPARED, SETTINGS, locked, told_when_full
from data_prep.prepared import PreparedFiles, known_sums
from data_prep.sources import Unit, describe_units, load_sums
from data_prep.tokenization import versions
from data_prep.tokenizers import write_tokenizer
from data_prep.workers import Workers
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import (
    MANIFEST,
    TOKENIZER,
    Manifest,
    ReportFile,
    TokenizerInfo,
    sha256_of,
    smallest_dtype,
    write_atomically,
)

TEST_ITEMS = f"{FOLDER}/test_items.npy"
INPUTS = f"{FOLDER}/inputs.json"
PROBLEMS = "generalization_gap.jsonl"


def prepare(
    mixture: Mixture,
    output: Path,
    *,
    local: str | None = None,
    test_items: str | None = None,
    eos: int | None = None,
    pad: int | None = None,
    processes: int = 1,
) -> Manifest:
    """Make the dataset folder `output` of a mixture, or go on with one that was begun. Writes the manifest last.

    Args:
        local: a folder (or `s3://` address) with a folder of files for each source, in place of the hub.
        test_items: the same for the tasks whose test items decontamination looks for.
        eos, pad: token ids, for a mixture whose tokenizer is a tokenizer.json.
        processes: worker processes; any number gives the same bytes.

    Raises InputError for unusable input, a folder of other settings, another run in it, or a full disk.
    """
    with locked(output) as scratch, told_when_full(output), Workers(processes) as workers:
        units = find_all_units(mixture, local, output)
        if not (output / MANIFEST).exists():
            workers.start()
        pinned = _pinned(output, asked_of(mixture, local, test_items, eos, pad))
        index = contamination_index(mixture, scratch, test_items, pinned)
        tokenizer = write_tokenizer(mixture.tokenizer, scratch / TOKENIZER, eos=eos, pad=pad)
        settings = _settings(mixture, _inputs(units, output, scratch), tokenizer, index)
        manifest = _refuse_other_settings(output, settings)
        if manifest is not None and _is_whole(output, manifest):
            print("nothing to do: the dataset is finished", file=sys.stderr)
            return manifest
        (output / FOLDER).mkdir(exist_ok=True)
        write_atomically(output / SETTINGS, json.dumps(settings, indent=1).encode())
        os.replace(scratch / TOKENIZER, output / TOKENIZER)
        if index is not None:
            os.replace(index, output / TEST_ITEMS)
        if (scratch / Path(INPUTS).name).exists():
            os.replace(scratch / Path(INPUTS).name, output / INPUTS)
        return _build(mixture, units, settings, tokenizer, output, scratch, workers)


def _pinned(output: Path, asked: dict[str, Any]) -> Path | None:
    """The test items that source files were prepared with by the same command."""
    listed = load_list(output)
    same = listed is not None and listed.asked == asked and listed.test_items_sha256 is not None
    return output / PREPARED / Path(TEST_ITEMS).name if same else None


def contamination_index(
    mixture: Mixture, scratch: Path, test_items: str | None, pinned: Path | None = None
) -> Path | None:
    """Write the index of the test items that a mixture looks for into `scratch`; None where it looks for none.

    Args:
        test_items: as of `prepare`.
        pinned: an index to be taken as it is.

    Raises InputError for test items that cannot be had.
    """
    decontamination = mixture.decontamination
    if decontamination.mode == "off":
        return None
    path = scratch / Path(TEST_ITEMS).name
    if pinned is not None and pinned.is_file():
        shutil.copyfile(pinned, path)
        return path
    from data_prep.decontamination import build_index, load_test_items

    build_index(load_test_items(decontamination.tasks, test_items), decontamination.ngram, path)
    return path


def _inputs(units: dict[str, list[Unit]], output: Path, scratch: Path) -> dict[str, Any]:
    """What identifies the input of each source; files whose size and time an earlier run knew are not read again."""
    sums = scratch / Path(INPUTS).name
    known = load_sums(output / INPUTS)
    for name, found in units.items():
        if prepared := known_sums(output, found):
            known[name] = {**known.get(name, {}), **prepared}
    if known:
        sums.write_text(json.dumps(known), encoding="utf-8")
    return {name: describe_units(found, sums) for name, found in units.items()}


def _settings(mixture: Mixture, inputs: dict[str, Any], tokenizer: TokenizerInfo, index: Path | None) -> dict[str, Any]:
    """Everything that decides the shards' bytes, and nothing of where the folders lie."""
    described = mixture.as_dict()
    for source in described["sources"]:
        if source["kind"] == "folder":
            source["path"] = None
    return {
        "recipe": RECIPE,
        "mixture": described,
        "inputs": inputs,
        "tokenizer": asdict(tokenizer),
        "test_items_sha256": sha256_of(index) if index is not None else None,
    }


def _refuse_other_settings(output: Path, settings: dict[str, Any]) -> Manifest | None:
    """The manifest of a finished dataset of the same settings; InputError if the folder is of other ones."""
    manifest = _load_manifest(output)
    if manifest is not None:
        earlier = manifest.mixture
    else:
        try:
            earlier = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    there, here = _flat(earlier), _flat(json.loads(json.dumps(settings)))
    different = [key for key in here if there.get(key) != here[key]]
    if different and manifest is None and all(key.startswith("inputs.") for key in different):
        # As when a damaged file was replaced. Parts are known by their content, units are not.
        print("the inputs have changed: they are read again, and what is the same is kept", file=sys.stderr)
        forget_texts(output)
    elif different:
        told = ", ".join(f"{key} {there.get(key)} there and {here[key]} here" for key in different[:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        unfinished = ", which is unfinished" if manifest is None else ""
        remedy = f"choose another --output, or remove this folder{unfinished}"
        raise InputError(output, f"it was begun from other inputs or settings ({told}{more})", remedy)
    return manifest


def _load_manifest(output: Path) -> Manifest | None:
    if not (output / MANIFEST).exists():
        return None
    try:
        return Manifest.load(output)
    except InputError as error:
        remedy = "remove this file and run again: what is sound in the folder is kept"
        raise InputError(error.where, error.what, remedy) from None


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in entries:
        named = isinstance(settings, list) and isinstance(value, dict) and "name" in value
        name = value["name"] if named else key
        nested = isinstance(value, (dict, list)) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _is_whole(output: Path, manifest: Manifest) -> bool:
    """Whether every file that the manifest lists has the content that it says; read by threads."""
    expected = {TOKENIZER: manifest.tokenizer.sha256}
    for file in manifest.files:
        expected[file.path] = file.sha256
        if file.boundaries is not None:
            expected[file.boundaries] = str(file.boundaries_sha256)
    expected |= {report.path: report.sha256 for report in manifest.reports}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = threads.map(lambda name: sha256_of(output / name), expected)
            return all(digest == wanted for digest, wanted in zip(found, expected.values(), strict=True))
    except OSError:
        return False


def _build(
    mixture: Mixture,
    units: dict[str, list[Unit]],
    settings: dict[str, Any],
    tokenizer: TokenizerInfo,
    output: Path,
    scratch: Path,
    workers: Workers,
) -> Manifest:
    index = output / TEST_ITEMS if settings["test_items_sha256"] else None
    built: dict[str, BuiltSource] = {}
    prepared = PreparedFiles(output, tokenizer, settings["test_items_sha256"], load_sums(output / INPUTS))
    builder = Builder(mixture, tokenizer, output, scratch, workers, prepared, index)
    try:
        for source in mixture.sources:
            built[source.name] = builder.build(source, units[source.name])
        reports = _reports(mixture, builder, built, output, index)
    finally:
        builder.close(finished=False)
    left_out, long_documents = Skipped(), {}
    for name, source_built in built.items():
        left_out.update({f"{name}: {file}": counts for file, counts in source_built.left_out.items()})
        if source_built.long_documents:
            long_documents[name] = source_built.long_documents
    manifest = Manifest(
        tokenizer=tokenizer,
        dtype=smallest_dtype(tokenizer.vocabulary_size),
        files=sorted((f for n, b in built.items() for f in b.shards(n)), key=lambda file: file.path),
        mixture=settings | {"left_out": left_out.as_dict(), "long_documents": long_documents},
        seed=mixture.seed,
        versions=versions(),
        asked=_asked(mixture, built),
        reports=reports,
    )
    manifest.save(output)
    builder.close(finished=True)
    shutil.rmtree(output / PREPARED, ignore_errors=True)
    return manifest


def _asked(mixture: Mixture, built: dict[str, BuiltSource]) -> dict[str, dict[str, Any]]:
    budgets = mixture.budgets()
    return {
        source.name: {
            "tokens": budgets[source.name],
            "share": source.share,
            "epochs": source.epochs,
            "passes": built[source.name].files.passes,
        }
        for source in mixture.sources
    }


def _reports(
    mixture: Mixture, builder: Builder, built: dict[str, BuiltSource], output: Path, index: Path | None
) -> list[ReportFile]:
    """Write the list of drawn problems and the report on contamination, where the mixture asks for them."""
    names: list[str] = []
    drawn = [source for source in mixture.sources if source.draw is not None]
    if drawn:
        from data_prep.problems import draw_problems, shortfalls

        rows: list[dict[str, Any]] = []
        for source in drawn:
            assert source.draw is not None
            found = draw_problems(builder.training_documents(source, built[source.name]), source.draw, mixture.seed)
            for group, (got, asked) in shortfalls(found, source.draw).items():
                print(f"warning: {source.name}: {got} {group} problems drawn of {asked} asked for", file=sys.stderr)
            rows += [{"source": source.name, **row} for row in found]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(output / PROBLEMS, content.encode())
        names.append(PROBLEMS)
    if index is not None:
        from data_prep.decontamination import REPORT, REPORT_ROWS, Index, write_report

        parts = [(s.name, part) for s in mixture.sources for part in builder.parts_of(s, built[s.name])]
        looked_at = {name: sum(p.looked_at for n, p in parts if n == name) for name in built}
        found_rows = (row for _, part in parts for row in part.contaminated)
        write_report(output, found_rows, looked_at, Index.open(index), mixture.decontamination.mode)
        names += [REPORT, REPORT_ROWS]
    return [ReportFile(name, (output / name).stat().st_size, sha256_of(output / name)) for name in names]
