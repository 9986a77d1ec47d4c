"""`plan` and `status`: what a sweep will run, and how it stands, as tables."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from launch.capacity import most_tries
from launch.jobs import Job, describe
from launch.processes import is_locked, last_state
from launch.progress import shown_run, shown_time, time_left
from launch.studies import Results, Study, studies_of
from launch.sweep import Sweep
from olmoe_parrots.results import read_rows
from olmoe_parrots.stopping import REQUEUE

WIDTH = 150
"""Columns of a table that goes into a pipe, which has no width of its own."""


def planned_jobs(study: Study) -> list[Job]:
    """The runs of a study that are known before the first result; of a search, those that it begins with."""
    jobs = study.rate_jobs()
    if study.task.capacity is None:
        rate = study.task.learning_rates[0]
        jobs += [study.job(size, rate, seed) for seed in study.task.seeds for size in study.task.sizes]
    return list({job.name: job for job in jobs}.values())


def run_counts(study: Study) -> tuple[int, int]:
    """The fewest and the most runs that a study takes."""
    if study.task.capacity is None:
        return (len(planned_jobs(study)),) * 2
    rungs, guess = len(study.task.sizes), study.task.sizes.index(study.first_size)
    rates, seeds = len(study.task.learning_rates), len(study.task.seeds)
    most = most_tries(max(guess, rungs - 1 - guess)), most_tries(rungs - 1)
    # an answer at an end of the ladder shows in one run, any other in two
    least = 1 if rungs == 1 or guess in (0, rungs - 1) else 2
    return rates - 1 + least + (seeds - 1), rates - 1 + min(rungs, most[0]) + (seeds - 1) * min(rungs, most[1])


def print_plan(sweep: Sweep, as_json: bool) -> None:
    """Print every study with its models' parameters and what its runs cost."""
    studies = studies_of(sweep)
    if as_json:
        print(json.dumps([describe(job) for study in studies for job in planned_jobs(study)], indent=1))
        return
    table = table_of(f"{sweep.name}: {len(studies)} studies (a model on a task); output {sweep.output}")
    headings = ("task", "model", "total", "active", "size", "rates x seeds", "runs", "steps a run", "FLOPs a run")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("task", "model") else "right", no_wrap=True)
    least = most = 0
    for study in studies:
        shape, job = study.task.shape(study.model), study.job(study.first_size, study.task.learning_rates[0], 0)
        low, high = run_counts(study)
        least, most = least + low, most + high
        several = study.task.capacity is None and len(study.task.sizes) > 1
        size = f"{job.size:,}" + (" ..." if several else " ?" if study.task.capacity else "")
        table.add_row(
            study.task.label,
            study.model.name,
            f"{shape.total_params():,}",
            f"{shape.active_params():,}",
            size,
            f"{len(study.task.learning_rates)} x {len(study.task.seeds)}",
            str(low) if low == high else f"{low}-{high}",
            f"{job.steps:,}",
            f"{job.flops:.2e}",
        )
    table.caption = f"{least} to {most} runs; ? is where the search for a capacity begins"
    print_table(table)


@dataclass(frozen=True)
class State:
    """How a run stands: "done", "running", "failed", "stopped" (it has begun) or "waiting"."""

    job: Job
    name: str


def states(sweep: Sweep, studies: list[Study], results: Results) -> list[State]:
    """Every run that has begun or that is wanted next."""
    locked, found = is_locked(sweep.output), {}
    for study in studies:
        task = study.task
        known = [study.job(size, r, s) for size in task.sizes for r in task.learning_rates for s in task.seeds]
        pending = {job.name for job in study.pending(results)}
        for job in known:
            if results.of(job) is not None:
                found[job.name] = State(job, "done")
            elif job.folder.is_dir():
                found[job.name] = State(job, _begun(job, locked))
            elif job.name in pending:
                found[job.name] = State(job, "waiting")
    return list(found.values())


def _begun(job: Job, locked: bool) -> str:
    state = last_state(job.folder)
    if code := state.get("exit_code"):
        return "failed" if code > 0 and code != REQUEUE else "stopped"
    return "running" if locked and "pid" in state else "stopped"


def print_status(sweep: Sweep, processes: int) -> None:
    """Print the runs and the studies of a sweep, from its folder alone."""
    studies = studies_of(sweep)
    results = Results(read_rows(sweep.results) if sweep.results.exists() else ())
    found = states(sweep, studies, results)
    table = table_of(f"{sweep.name}: runs in {sweep.output}")
    for heading in ("run", "state", "step", "loss", "left", "result"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", no_wrap=True)
    for state in found:
        job, row = state.job, results.of(state.job)
        begun = _started(job) if state.name == "running" else None
        shown = shown_run(job, begun) if row is None else (f"{job.steps}/{job.steps}", _loss(row.details), "-")
        table.add_row(job.name, state.name, *shown, f"{row.value:.3f}" if row else "-")
    counts = {name: sum(state.name == name for state in found) for name in ("done", "running", "failed", "stopped")}
    decided = sum(not study.pending(results) for study in studies)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    left = shown_time(time_left(studies, results, processes))
    table.caption = f"{told}; {decided} of {len(studies)} studies decided; about {left} left on {processes} processes"
    print_table(table)


def _started(job: Job) -> float | None:
    try:
        return (job.folder / "process.json").stat().st_mtime  # written when it was started
    except OSError:
        return None


def _loss(details: dict[str, object]) -> str:
    loss = details.get("training_loss")
    return f"{loss:.4f}" if isinstance(loss, float) else "-"


def table_of(title: str):  # type: ignore[no-untyped-def]
    """An empty table."""
    from rich.table import Table

    return Table(title=title, title_justify="left", caption_justify="left")


def print_table(table: object) -> None:
    """Print a table, in full where it goes into a pipe."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
