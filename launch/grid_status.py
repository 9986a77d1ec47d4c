"""`status` of a grid: a table of its runs, once or again and again, and the last words of those that failed."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch import slurm
from launch.config_grid import ConfigGrid
from launch.processes import LOG, is_locked, last_lines, last_state
from launch.progress import shown_time
from launch.run_state import RunState, state_of
from launch.tables import print_table, table_of
from olmoe_parrots.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

NAMES = ("done", "running", "queued", "failed", "stopped", "waiting")
AtWork = Mapping[str, tuple[str, str]]


def print_grid_status(grid: ConfigGrid, watch: float | None = None) -> None:
    """Print how the runs stand; with `watch`, again every so many seconds, until nothing is left to wait for."""
    if watch is None:
        states, problem = _states(grid)
        print_table(status_table(grid, states, problem))
    else:
        states = _watch(grid, watch)
    print_failures(states)


def _watch(grid: ConfigGrid, seconds: float) -> list[RunState]:
    from rich.live import Live

    states, problem = _states(grid)
    with Live(status_table(grid, states, problem), auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while problem or any(state.name in ("running", "queued") for state in states):
            time.sleep(seconds)
            states, problem = _states(grid)
            live.update(status_table(grid, states, problem), refresh=True)
    return states


def _states(grid: ConfigGrid) -> tuple[list[RunState], str]:
    """The runs, and why the queue could not be asked, if that is so."""
    try:
        at_work, problem = _at_work(grid), ""
    except InputError as error:
        at_work, problem = {}, f"the queue is not known: {error}"
    return [state_of(job, at_work) for job in grid.jobs], problem


def _at_work(grid: ConfigGrid) -> AtWork:
    """Runs that the queue or a launcher on this machine has."""
    found = {}
    if is_locked(grid.output):
        found = {job.name: ("running", "") for job in grid.jobs if "pid" in last_state(job.folder)}
    if not slurm.folder_of(grid).is_dir() or shutil.which("squeue") is None:
        return found
    for name, one in slurm.queued(grid).items():
        running = one.state in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING")
        found[name] = ("running" if running else "queued", "" if one.state == "RUNNING" else one.reason)
    return found


def status_table(grid: ConfigGrid, states: list[RunState], problem: str = "") -> Table:
    """One row a run."""
    table: Table = table_of(f"{grid.name}: runs in {grid.output}")
    headings = ("run", "state", "step", "loss", "tokens/s", "left", "restarts", "why")
    for heading in headings:
        justify = "left" if heading in ("run", "state", "why") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for state in states:
        table.add_row(
            state.job.name,
            state.name,
            f"{state.step:,}/{state.job.steps or 0:,}",
            "-" if state.loss is None else f"{state.loss:.4f}",
            "-" if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f}",
            shown_time(state.seconds_left),
            str(state.restarts),
            state.reason,
        )
    counts = {name: sum(state.name == name for state in states) for name in NAMES}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    table.caption = f"{told}\n{problem}" if problem else told
    return table


def print_failures(states: list[RunState]) -> None:
    """Print where each failed run's log is and how it ends."""
    for state in states:
        if state.name == "failed":
            place = state.job.folder / LOG
            print(
                "\n  ".join([f"{state.job.name} failed, {state.reason}; {place} ends:", *last_lines(state.job.folder)])
            )
    sys.stdout.flush()
