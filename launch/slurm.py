"""A grid's runs as Slurm arrays: scripts from a template, what the queue holds of them, and their end."""

from __future__ import annotations

import getpass
import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from launch.config_grid import ConfigGrid, GridJob
from launch.processes import Lock, is_locked
from launch.run_state import is_done
from launch.slurm_settings import TEMPLATES, SlurmSettings
from olmoe_parrots.errors import InputError, RunError

RUNS = "runs.txt"
"""In OUTPUT/slurm: names of runs, one a line, only ever appended to. A run's index in any array is its line, from 0."""


@dataclass(frozen=True)
class Queued:
    """What the queue says of a run: Slurm's state and reason, and the array's job id."""

    state: str
    reason: str
    job: str


def folder_of(grid: ConfigGrid) -> Path:
    """Scripts, the list of runs and Slurm's own output."""
    return grid.output / "slurm"


def job_name(grid: ConfigGrid) -> str:
    """The name of the grid's jobs, which no sweep with another output folder has."""
    name = re.sub(r"[^\w.-]", "_", grid.name)
    return f"{name}-{hashlib.sha256(str(grid.output.resolve()).encode()).hexdigest()[:8]}"


def submit(grid: ConfigGrid, *, dry_run: bool = False, accept_changes: bool = False, skip_checks: bool = False) -> int:
    """Submit what is neither finished nor in the queue, an array for each group of equal resources; returns 0.

    Args:
        dry_run: print the scripts instead, and write nothing.
        accept_changes: go on with runs whose config decides otherwise than the one that they began with.
        skip_checks: leave what the runs read and write to their own checks, where it is not seen from here.

    Raises InputError for a config that cannot train or was changed, RunError where Slurm refuses.
    """
    for job in grid.jobs:
        job.check()
        if not accept_changes:
            job.refuse_changes()
    if dry_run:
        for jobs in groups(job for job in grid.jobs if not is_done(job)):
            print(script(grid, jobs, _indices(grid, jobs)))
        return 0
    if is_locked(grid.output):
        raise InputError(grid.output, "a launcher is at work there", "wait for it, or end it")
    lock = Lock(grid.output)
    try:
        _submit(grid, skip_checks)
    finally:
        lock.release()
    return 0


def _submit(grid: ConfigGrid, skip_checks: bool) -> None:
    queue = queued(grid)
    done = [job for job in grid.jobs if is_done(job)]
    waiting = [job for job in grid.jobs if job.name in queue and job not in done]
    wanted = [job for job in grid.jobs if job.name not in queue and job not in done]
    print(f"{len(done)} of {len(grid.jobs)} runs are finished, {len(waiting)} are in the queue")
    if not skip_checks:
        _refuse_unready(wanted)
    folder_of(grid).mkdir(parents=True, exist_ok=True)
    for jobs in groups(wanted):
        for job in jobs:
            job.write_config()
        indices = _indices(grid, jobs)
        _append_names(grid, indices)
        path = folder_of(grid) / f"{jobs[0].name}.sh"
        path.write_text(script(grid, jobs, indices), encoding="utf-8")
        number = call("sbatch", "--parsable", str(path)).strip().split(";")[0]
        print(f"submitted array {number}: {', '.join(job.name for job in jobs)}")
    if wanted:
        print(f"python -m launch status shows them; Slurm's own output is in {folder_of(grid)}")


def _refuse_unready(jobs: list[GridJob]) -> None:
    """Raise InputError for runs that would end as soon as they start; all but the last are told here, a line each."""
    problems = []
    for job in jobs:
        try:
            job.check_inputs()
        except InputError as error:
            problems.append(error)
    for problem in problems[:-1]:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        last = problems[-1]
        remedy = f"{last.remedy}. Nothing was submitted; --skip-checks where this machine does not see the data"
        raise InputError(last.where, last.what, remedy)


def groups(jobs: Iterable[GridJob]) -> list[list[GridJob]]:
    """Runs of equal resources and settings, which one array can hold."""

    def key(job: GridJob) -> tuple[int, int, str]:
        return job.nodes, job.gpus_per_node, repr(job.slurm)

    return [list(members) for _, members in groupby(sorted(jobs, key=key), key)]


def _names(grid: ConfigGrid) -> list[str]:
    path = folder_of(grid) / RUNS
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _indices(grid: ConfigGrid, jobs: list[GridJob]) -> dict[str, int]:
    """Each run's line in the list of runs, those that it lacks after its end."""
    names = _names(grid)
    names += [job.name for job in jobs if job.name not in names]
    return {job.name: names.index(job.name) for job in jobs}


def _append_names(grid: ConfigGrid, indices: dict[str, int]) -> None:
    known = len(_names(grid))
    with (folder_of(grid) / RUNS).open("a", encoding="utf-8") as file:
        for name, index in sorted(indices.items(), key=lambda item: item[1]):
            if index >= known:
                file.write(f"{name}\n")


def script(grid: ConfigGrid, jobs: list[GridJob], indices: dict[str, int]) -> str:
    """The job script of runs of equal resources.

    Raises InputError for a template that Jinja2 cannot fill in.
    """
    first = jobs[0]
    return fill_in(
        first.slurm.template_path,
        TEMPLATES[first.slurm.launcher],
        job_name=job_name(grid),
        array=array_of(indices.values(), first.slurm.at_once),
        folder=folder_of(grid),
        nodes=first.nodes,
        gpus_per_node=first.gpus_per_node,
        processes_per_node=first.processes_per_node,
        gpu_type=first.slurm.gpu_type,
        slurm=first.slurm,
        quoted=_quoted(grid, first.slurm),
    )


def fill_in(template: Path, usual: Path, **names: Any) -> str:
    """A template with names filled in. Raises InputError where Jinja2 cannot, with the usual one to compare it with."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(**names)
    except jinja2.TemplateError as error:
        raise InputError(template, f"it cannot be filled in ({error})", f"compare it with {usual}") from None


def _quoted(grid: ConfigGrid, slurm: SlurmSettings) -> dict[str, Any]:
    """What goes into shell commands, quoted for it."""
    python = slurm.python or ("python" if slurm.container else sys.executable)
    return {
        "runs": shlex.quote(str(folder_of(grid) / RUNS)),
        "output": shlex.quote(str(grid.output)),
        "directory": shlex.quote(str(Path.cwd())),
        "python": shlex.quote(python),
        "environment": [(name, shlex.quote(value)) for name, value in slurm.environment],
        "srun": [shlex.quote(option) for option in slurm.srun],
    }


def array_of(indices: Iterable[int], at_once: int | None = None) -> str:
    """Indices as sbatch's `--array` takes them: 0-3,7%2."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"{text}%{at_once}" if at_once else text


def queued(grid: ConfigGrid) -> dict[str, Queued]:
    """The grid's runs that the queue holds, by name. Raises InputError without Slurm, RunError where it fails."""
    listed = call(
        "squeue",
        "--noheader",
        "--array",
        f"--user={getpass.getuser()}",
        f"--name={job_name(grid)}",
        "--format=%F|%K|%T|%r",
    )
    names, found = _names(grid), {}
    for line in listed.splitlines():
        job, index, state, reason = line.strip().split("|", 3)
        if index.isdigit() and int(index) < len(names):
            found[names[int(index)]] = Queued(state, reason, job)
    return found


def cancel(grid: ConfigGrid) -> int:
    """Take the grid's runs, and nothing else, out of the queue, saying which; returns 0."""
    queue = queued(grid)
    arrays = sorted({one.job for one in queue.values()}, key=int)
    if arrays:
        call("scancel", *arrays)
    for name, one in queue.items():
        print(f"cancelled {name}, which was {one.state.lower()}")
    print(f"{len(queue)} runs were in the queue; python -m launch slurm goes on with them")
    return 0


def call(program: str, *arguments: str) -> str:
    """What one of Slurm's commands prints. Raises InputError where it is missing, RunError where it fails."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(program, "there is no such command here", "run this on a machine of a Slurm cluster") from None
    if done.returncode:
        told = next((line for line in done.stderr.splitlines() if line.strip()), f"exit code {done.returncode}")
        raise RunError(program, told, "mend that and run again: what is submitted already is not submitted twice")
    return done.stdout
