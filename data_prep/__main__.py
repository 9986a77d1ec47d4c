"""`python -m data_prep MIXTURE --output DIR`: documents in, a dataset folder of token shards out.

MIXTURE is a mixture file, the name of a shipped one, or a folder of .txt, .md, .jsonl and .jsonl.gz files.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from olmoe_parrots.errors import ArgumentParser, InputError, report_and_exit

if TYPE_CHECKING:
    from data_prep.mixture import Decontamination, Mixture
    from olmoe_parrots.shards import Manifest


def build_parser(add_help: bool = True) -> ArgumentParser:
    """The command's arguments; without help to be part of another command's."""
    from data_prep.mixture import shipped_mixtures

    parser = ArgumentParser(
        prog="python -m data_prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=add_help,
    )
    add = parser.add_argument
    shipped = ", ".join(shipped_mixtures())
    add("mixture", metavar="MIXTURE", help=f"a mixture file, a folder of documents, or one of {shipped}")
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; s3://... with --work")
    add("--work", type=Path, metavar="DIR", help="for an s3:// output: where it is made before it is sent")
    add("--local", metavar="DIR", help="a folder per source, of the hub's files: read instead of the hub")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="(%(default)s); any N: same bytes")
    array = parser.add_argument_group("as an array of jobs, one per source file (docs/data.md)")
    one = array.add_mutually_exclusive_group()
    one.add_argument("--list-files", action="store_true", help="list the source files, for the jobs to take")
    one.add_argument("--file", type=int, metavar="INDEX", help="prepare this one of them, and no dataset yet")
    changes = parser.add_argument_group("in place of what the mixture says")
    add = changes.add_argument
    add("--tokens", type=_count, metavar="N", help="training tokens, the shares as they are; 3e6 is a number too")
    add("--validation-sequences", type=int, metavar="N", help="held-out sequences")
    add("--sequence-length", type=int, metavar="N", help="length of a held-out sequence, in tokens")
    add("--validation-share", type=float, metavar="X", help="of a folder's documents held out (0.02)")
    add("--seed", type=int, help="of order, hold-out and draws")
    add("--shard-megabytes", type=float, metavar="MB", help="documents (as JSON) that a shard is made of")
    add("--tokenizer", metavar="NAME", help="mistral-v1, olmo or the path of a tokenizer.json")
    add("--eos", type=int, metavar="ID", help="with a tokenizer.json: its end-of-document token")
    add("--pad", type=int, metavar="ID", help="with a tokenizer.json: its padding token (default: --eos)")
    add("--decontaminate", choices=("off", "report", "drop"), help="documents that share an n-gram with a test item")
    add("--ngram", type=int, metavar="N", help="words in a row that make a document contaminated (13)")
    add("--tasks", metavar="A,B,...", help="the tasks whose test items are looked for (all)")
    add("--test-items", metavar="DIR", help="a folder per task, for test items that no installed package holds")
    return parser


def _count(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def _check(options: argparse.Namespace) -> None:
    if not options.output or options.local == "":
        raise InputError("--local" if options.output else "--output", "it is empty", "name a folder")
    share = options.validation_share
    if share is not None and not 0 <= share < 1:
        raise InputError("--validation-share", f"{share} is not a share", "give a number from 0 to below 1")
    for name in ("processes", "shard_megabytes", "ngram", "sequence_length"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}", f"{value} is not positive", "give a number above 0")
    sequences = options.validation_sequences
    if sequences is not None and sequences < 0:
        raise InputError("--validation-sequences", f"{sequences} is negative", "give 0 or more")
    if share is not None and sequences is not None:
        raise InputError("--validation-share", "--validation-sequences is given too", "leave one of them out")


def read_mixture(options: argparse.Namespace) -> Mixture:
    """The mixture that the arguments name, with what they change in it. Raises InputError where they don't fit."""
    from data_prep.mixture import folder_mixture, load_mixture

    _check(options)
    if Path(options.mixture).is_dir():
        mixture = folder_mixture(Path(options.mixture))
        _refuse_inside(options)
        remedy = "leave it out, or write a mixture file"
        for name in ("tokens", "validation_sequences", "local"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}", "a folder is taken whole", remedy)
    else:
        mixture = load_mixture(options.mixture)
    if options.tokens is not None:
        mixture = mixture.scaled(options.tokens)
    for name in ("seed", "tokenizer", "shard_megabytes"):
        if getattr(options, name) is not None:
            mixture = replace(mixture, **{name: getattr(options, name)})
    validation = mixture.validation
    if options.validation_share is not None:
        validation = replace(validation, share=options.validation_share, sequences=None)
    if options.validation_sequences is not None:
        validation = replace(validation, sequences=options.validation_sequences, share=None)
    if options.sequence_length is not None:
        validation = replace(validation, sequence_length=options.sequence_length)
    return replace(mixture, validation=validation, decontamination=_decontamination(options, mixture))


def _refuse_inside(options: argparse.Namespace) -> None:
    for name in ("output", "work"):
        value = getattr(options, name)
        if value is None or re.match("[a-z0-9]+://", str(value)):
            continue
        if Path(value).resolve().is_relative_to(Path(options.mixture).resolve()):
            what = f"{value} lies inside the source folder, so its files would be read as documents"
            raise InputError(f"--{name}", what, "choose a folder outside it")


def _decontamination(options: argparse.Namespace, mixture: Mixture) -> Decontamination:
    found = mixture.decontamination
    if options.decontaminate is not None:
        found = replace(found, mode=options.decontaminate)
    if options.ngram is not None:
        found = replace(found, ngram=options.ngram)
    if options.tasks is not None:
        found = replace(found, tasks=tuple(options.tasks.split(",")))
    if found.mode == "off" and (options.ngram or options.tasks or options.test_items):
        raise InputError("--decontaminate", "it is off, and test items are asked for", "give report or drop")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises InputError for bad input."""
    options = build_parser().parse_args(arguments)
    mixture = read_mixture(options)
    if options.list_files or options.file is not None:
        _array_step(mixture, options)
        return 0
    from data_prep.prepare import prepare
    from data_prep.remote_output import sent_to

    with sent_to(options.output, options.work) as output:
        manifest = prepare(
            mixture,
            output,
            local=options.local,
            test_items=options.test_items,
            eos=options.eos,
            pad=options.pad,
            processes=options.processes,
        )
    _tell(manifest, options.output)
    return 0


def work_folder(options: argparse.Namespace) -> Path:
    """The folder on this file system that the dataset is made in. Raises InputError where an S3 output has none."""
    from data_prep.remote_output import folder_of

    return folder_of(options.output, options.work)


def _array_step(mixture: Mixture, options: argparse.Namespace) -> None:
    from data_prep.file_array import asked_of, is_finished, list_files, prepare_one, show_list

    output = work_folder(options)
    given = {name: getattr(options, name) for name in ("local", "test_items", "eos", "pad")}
    if is_finished(output):
        print("nothing to do: the dataset is finished", file=sys.stderr)
    elif options.list_files:
        show_list(list_files(mixture, output, **given), output)
    else:
        prepare_one(mixture, output, options.file, asked_of(mixture, **given), options.processes)


def _tell(manifest: Manifest, output: str) -> None:
    from data_prep.documents import Skipped
    from data_prep.statistics import mixture_warnings
    from data_prep.verify import show_table

    for line in Skipped(manifest.mixture["left_out"]).lines():
        print(f"warning: {line}", file=sys.stderr)
    for source, count in manifest.mixture["long_documents"].items():
        print(
            f"warning: {source}: {count} documents are longer than a shard and have one of their own", file=sys.stderr
        )
    show_table(manifest, f"dataset in {output}")
    for line in mixture_warnings(manifest):
        print(f"warning: {line}", file=sys.stderr)
    if not manifest.totals("validation")[1]:
        print("warning: no document was held out for validation", file=sys.stderr)


def _leave_at_once(*_: object) -> None:
    """End on an interruption as on a kill, which loses nothing; an exception could be lost in an import, or a race."""
    from data_prep.workers import end_all

    end_all()
    os.write(2, b"\ninterrupted: the same command goes on where it was\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave_at_once)
    # transformers only converts a tokenizer here; without this it would import torch, in every process.
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    report_and_exit(main)
