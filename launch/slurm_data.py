"""`python -m launch slurm-data MIXTURE --output DIR`: data preparation as Slurm jobs, one for each source file.

All arguments but --slurm, --slurm-file, --assembly and --dry-run are those of `python -m data_prep`.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.slurm_settings import SlurmSettings, read_slurm
from olmoe_parrots.errors import InputError
from olmoe_parrots.strict_yaml import Section, read_yaml

if TYPE_CHECKING:
    from data_prep.sources import Unit

TEMPLATE = Path(__file__).parent / "templates" / "slurm_data.sh"
_NUMBERS = ("cpus_per_task", "at_once", "warning_seconds", "max_restarts", "max_failures")
_LISTS = ("sbatch", "srun", "modules", "setup")
_USUAL_ARRAY = 1001
"""Slurm's own MaxArraySize, which the largest index has to be below."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes besides the arguments of `python -m data_prep`."""
    add = parser.add_argument_group("Slurm").add_argument
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="a setting of docs/cluster.md, of all jobs")
    add("--slurm-file", type=Path, metavar="FILE", help="a sweep file whose `slurm` section is taken")
    add("--assembly", action="append", default=[], metavar="KEY=VALUE", help="the same of the last job alone")
    add("--dry-run", action="store_true", help="print the job scripts; write and submit nothing")


def main(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """Submit the array and the job after it; returns 0.

    Args:
        arguments: as given, `options` as parsed.

    Raises InputError for what `python -m data_prep` refuses before it reads documents, and for settings that cannot be.
    """
    from data_prep.__main__ import read_mixture, work_folder
    from data_prep.file_array import find_all_units, is_finished, list_files

    if options.file is not None or options.list_files:
        raise InputError("--file" if options.file is not None else "--list-files", "the jobs do that", "leave it out")
    tasks, assembly = _settings(options, []), _settings(options, options.assembly)
    mixture, output = read_mixture(options), work_folder(options)
    words = _words(arguments)
    if options.dry_run:
        found = find_all_units(mixture, options.local, output)
        units = [unit for listed in found.values() for unit in listed]
        print("\n".join([*_array_scripts(units, range(len(units)), tasks, output, words, _USUAL_ARRAY), ""]), end="")
        print(_script(assembly, output, words))
        return 0
    if is_finished(output):
        print(f"the dataset in {output} is finished; python -m data_prep.verify checks it")
        return 0
    if queue := _queued(output):
        print(f"{len(queue)} of its jobs are in the queue, and nothing was submitted: {', '.join(queue)}")
        return 0
    given = {name: getattr(options, name) for name in ("local", "test_items", "eos", "pad")}
    listed = list_files(mixture, output, **given)
    _submit(listed.units, tasks, assembly, output, words)
    return 0


def _submit(units: Sequence[Unit], tasks: SlurmSettings, assembly: SlurmSettings, output: Path, words: str) -> None:
    from data_prep.prepared import folder_of, load_prepared
    from launch.slurm import call

    waiting = [i for i, unit in enumerate(units) if load_prepared(folder_of(output, unit)) is None]
    print(f"{len(units) - len(waiting)} of {len(units)} source files are prepared")
    folder = folder_of_jobs(output)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = []
    for part, text in enumerate(_array_scripts(units, waiting, tasks, output, words, _largest_array())):
        path = folder / f"files-{part}.sh"
        path.write_text(text, encoding="utf-8")
        numbers.append(call("sbatch", "--parsable", str(path)).strip().split(";")[0])
        print(f"submitted array {numbers[-1]}: source files")
    path = folder / "assembly.sh"
    path.write_text(_script(assembly, output, words), encoding="utf-8")
    after = [f"--dependency=afterok:{':'.join(numbers)}", "--kill-on-invalid-dep=yes"] if numbers else []
    number = call("sbatch", "--parsable", *after, str(path)).strip().split(";")[0]
    print(f"submitted job {number}: the dataset, {'once all of them are done' if numbers else 'at once'}")
    print(f"python -m data_prep {words} --list-files shows which files are prepared; Slurm's output is in {folder}")
    print(f"scancel {' '.join([*numbers, number])} ends them; the same command goes on")


def folder_of_jobs(output: Path) -> Path:
    """Scripts and Slurm's own output."""
    return output / "slurm"


def job_name(output: Path) -> str:
    """The name of the jobs, which no dataset in another folder has."""
    name = re.sub(r"[^\w.-]", "_", output.name)
    return f"data-{name}-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:8]}"


def _settings(options: argparse.Namespace, more: Sequence[str]) -> SlurmSettings:
    """The file's, those of the command line in their place; a training template is none for data."""
    values: dict[str, Any] = {}
    if options.slurm_file is not None:
        section = Section(read_yaml(options.slurm_file), str(options.slurm_file)).section("slurm")
        read_slurm(section)
        values = {key: value for key, value in section.values.items() if key not in ("template", "launcher")}
    for option, pairs in (("--slurm", options.slurm), ("--assembly", more)):
        given: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not value:
                raise InputError(option, f"{pair!r} does not read KEY=VALUE", "write partition=cpu, say")
            if key.startswith("environment."):
                given.setdefault("environment", {})[key.removeprefix("environment.")] = value
            elif key in _LISTS:
                given.setdefault(key, []).append(value)
            else:
                given[key] = int(value) if key in _NUMBERS and value.isdigit() else value
        read_slurm(Section(given, option))
        values |= given
    return read_slurm(Section(values, "--slurm"))


def _words(arguments: Sequence[str]) -> str:
    """The arguments of data_prep among those given, quoted for the shell."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_arguments(parser)
    return shlex.join(parser.parse_known_args(list(arguments))[1])


def _array_scripts(
    units: Sequence[Unit], indices: Sequence[int], slurm: SlurmSettings, output: Path, words: str, largest: int
) -> list[str]:
    """A script for each array; an array's indices count from a multiple of what Slurm takes."""
    from launch.slurm import array_of

    scripts = []
    for first in range(0, len(units), largest):
        own = [index - first for index in indices if first <= index < first + largest]
        if own:
            scripts.append(_script(slurm, output, words, array_of(own, slurm.at_once), first))
    return scripts


def _script(slurm: SlurmSettings, output: Path, words: str, array: str = "", first: int = 0) -> str:
    from launch.slurm import fill_in

    python = slurm.python or ("python" if slurm.container else sys.executable)
    quoted = {
        "directory": shlex.quote(str(Path.cwd())),
        "python": shlex.quote(python),
        "arguments": words,
        "environment": [(name, shlex.quote(value)) for name, value in slurm.environment],
    }
    names = {"job_name": job_name(output), "array": array, "first": first, "folder": folder_of_jobs(output).absolute()}
    return fill_in(Path(slurm.template) if slurm.template else TEMPLATE, TEMPLATE, slurm=slurm, quoted=quoted, **names)


def _largest_array() -> int:
    from launch.slurm import call

    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else _USUAL_ARRAY


def _queued(output: Path) -> list[str]:
    from launch.slurm import call

    listed = call("squeue", "--noheader", f"--user={getpass.getuser()}", f"--name={job_name(output)}", "--format=%i %T")
    return [line.strip() for line in listed.splitlines() if line.strip()]
