"""`python -m data_prep SOURCE --output DIR`: documents in, a dataset folder of token shards out.

SOURCE is a folder of .txt, .md, .jsonl and .jsonl.gz files, or the word python-docs for the text that this Python
installation carries.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.documents import (
    FOLDER,
    INDEX,
    INPUTS,
    Document,
    DocumentFile,
    Skipped,
    describe_folder,
    find_files,
    load_index,
    read_folder,
    write_documents,
)
from data_prep.tokenizers import write_tokenizer
from olmoe_parrots.errors import InputError, report_and_exit
from olmoe_parrots.shards import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    TokenizerInfo,
    sha256_of,
    smallest_dtype,
    write_atomically,
)

PYTHON_DOCS = "python-docs"
SETTINGS = f"{FOLDER}/settings.json"
SCRATCH = ".partial"
# To be raised when a change here makes other bytes of the same input and settings.
RECIPE = 1


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help=f"a folder of documents, or {PYTHON_DOCS}")
    add("--output", type=Path, required=True, metavar="DIR", help="the dataset folder to make")
    add("--tokenizer", default="mistral-v1", metavar="NAME", help="mistral-v1 (default), olmo or a tokenizer.json")
    add("--eos", type=int, metavar="ID", help="with a tokenizer.json: its end-of-document token")
    add("--pad", type=int, metavar="ID", help="with a tokenizer.json: its padding token (default: --eos)")
    add("--validation-share", type=float, default=0.02, metavar="X", help="share of documents held out (%(default)s)")
    add("--seed", type=int, default=0, help="of split and order (%(default)s)")
    add(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="(%(default)s); any N: same bytes",
    )
    add("--max-characters", type=int, metavar="N", help=f"cap on {PYTHON_DOCS} (40000000)")
    add("--file-size", type=float, default=16.0, metavar="MB", help="documents a shard is made of, in MB (%(default)s)")
    return parser


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.validation_share < 1:
        what = f"{options.validation_share} is not a share"
        raise InputError("--validation-share", what, "give a number from 0 to below 1")
    for name in ("processes", "file_size", "max_characters"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}", f"{value} is not positive", "give a number above 0")
    if options.source == PYTHON_DOCS:
        options.max_characters = options.max_characters or 40_000_000
    elif options.max_characters is not None:
        raise InputError("--max-characters", f"it caps {PYTHON_DOCS} only", "leave it out")


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Hold the dataset folder against another run; yields a scratch folder that is removed afterwards."""
    if output.exists() and not output.is_dir():
        raise InputError(output, "it is not a folder", "choose another --output")
    begun = (output / MANIFEST).exists() or (output / SETTINGS).exists()
    if output.is_dir() and not begun and any(entry.name != SCRATCH for entry in output.iterdir()):
        raise InputError(output, "it holds other files and no dataset", "choose another --output or empty it")
    output.mkdir(parents=True, exist_ok=True)
    lock = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(output, "another run is writing there", "wait for it or choose another --output") from None
        scratch = output / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(lock)


def _refuse_other_settings(output: Path, settings: dict[str, Any]) -> Manifest | None:
    """The manifest of a finished dataset of the same settings; InputError if the folder is of other ones."""
    manifest = Manifest.load(output) if (output / MANIFEST).exists() else None
    if manifest is not None:
        earlier = manifest.mixture
    elif (output / INDEX).exists():  # before it is written, nothing was made that other settings could spoil
        earlier = _read_settings(output)
    else:
        return None
    there, here = _flat(earlier), _flat(settings)
    different = [key for key in here if there.get(key) != here[key]]
    if different:
        told = ", ".join(f"{key} {there.get(key)} there and {here[key]} here" for key in different)
        remedy = "choose another --output, or remove the folder"
        raise InputError(output, f"it was begun from other inputs or settings ({told})", remedy)
    return manifest


def _read_settings(output: Path) -> dict[str, Any]:
    try:
        settings = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
        return settings if isinstance(settings, dict) else {}
    except (OSError, ValueError):
        return {}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _is_whole(output: Path, manifest: Manifest) -> bool:
    try:
        sizes = all((output / file.path).stat().st_size == file.bytes for file in manifest.files)
        return sizes and sha256_of(output / TOKENIZER) == manifest.tokenizer.sha256
    except OSError:
        return False


def _documents(options: argparse.Namespace, files: list[Path], skipped: Skipped) -> Iterable[Document]:
    from tqdm import tqdm

    if options.source == PYTHON_DOCS:
        from data_prep.python_docs import read_python_docs

        documents = read_python_docs(options.max_characters, options.processes)
    else:
        documents = read_folder(Path(options.source), files, skipped)
    return tqdm(documents, desc="documents", unit=" documents", unit_scale=True)


def _tokenize(
    output: Path, scratch: Path, files: list[DocumentFile], tokenizer: TokenizerInfo, processes: int
) -> list[dict[str, Any]]:
    from tqdm import tqdm

    from data_prep.tokenization import tokenize_documents

    records, tokens = [], 0
    with tqdm(total=sum(f.documents for f in files), desc="tokenization", unit=" documents", unit_scale=True) as bar:
        for record in tokenize_documents(output, scratch, files, tokenizer, processes=processes):
            records.append(record)
            tokens += record["shard"]["tokens"]
            bar.set_postfix(tokens=f"{tokens:,}", files=f"{len(records)}/{len(files)}", refresh=False)
            bar.update(record["shard"]["documents"])
    return records


def prepare(options: argparse.Namespace) -> Manifest:
    """Make the dataset folder `options.output` from the parsed arguments, or go on with one that was begun.

    Writes the manifest last. Raises InputError for unusable input or a folder of other settings.
    """
    _check(options)
    output: Path = options.output
    files = [] if options.source == PYTHON_DOCS else find_files(Path(options.source), output)
    with _locked(output) as scratch:
        tokenizer = write_tokenizer(options.tokenizer, scratch / TOKENIZER, eos=options.eos, pad=options.pad)
        settings = _settings(options, files, tokenizer, scratch)
        manifest = _refuse_other_settings(output, settings)
        if manifest is not None and _is_whole(output, manifest):
            print("nothing to do: the dataset is finished", file=sys.stderr)
            return manifest
        (output / FOLDER).mkdir(exist_ok=True)
        write_atomically(output / SETTINGS, json.dumps(settings, indent=1).encode())
        for name, target in ((TOKENIZER, TOKENIZER), (Path(INPUTS).name, INPUTS)):
            if (scratch / name).exists():
                os.replace(scratch / name, output / target)
        return _build(options, files, settings, tokenizer, scratch)


def _settings(
    options: argparse.Namespace, files: list[Path], tokenizer: TokenizerInfo, scratch: Path
) -> dict[str, Any]:
    """Everything that decides the shards' bytes."""
    if options.source == PYTHON_DOCS:
        from data_prep.python_docs import describe_python_docs

        source = describe_python_docs(options.max_characters)
    else:
        source = describe_folder(Path(options.source), files, options.output / INPUTS, scratch / Path(INPUTS).name)
    return {
        "recipe": RECIPE,
        "source": source,
        "tokenizer": asdict(tokenizer),
        "validation_share": options.validation_share,
        "seed": options.seed,
        "file_size": options.file_size,
    }


def _build(
    options: argparse.Namespace, files: list[Path], settings: dict[str, Any], tokenizer: TokenizerInfo, scratch: Path
) -> Manifest:
    from data_prep.tokenization import merge_records, versions

    output: Path = options.output
    document_files, skipped = load_index(output) or ([], Skipped())
    if not document_files:
        for split in SPLITS:  # what a run that ended early left there
            shutil.rmtree(output / FOLDER / split, ignore_errors=True)
        document_files = write_documents(
            _documents(options, files, skipped),
            output,
            scratch,
            seed=options.seed,
            validation_share=options.validation_share,
            file_size=int(options.file_size * 1e6),
            skipped=skipped,
        )
    shards, sources = merge_records(_tokenize(output, scratch, document_files, tokenizer, options.processes))
    mixture = settings | {"left_out": skipped.as_dict()}
    dtype = smallest_dtype(tokenizer.vocabulary_size)
    manifest = Manifest(tokenizer, dtype, shards, sources, mixture, options.seed, versions())
    manifest.save(output)
    for line in skipped.lines():
        print(f"warning: {line}", file=sys.stderr)
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises InputError for bad input."""
    options = build_parser().parse_args(arguments)
    manifest = prepare(options)
    from data_prep.verify import show_table

    show_table(manifest, f"dataset in {options.output}")
    if not manifest.totals("validation")[1]:
        print("warning: no document was held out for validation; raise --validation-share", file=sys.stderr)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
