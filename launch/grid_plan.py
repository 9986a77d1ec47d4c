"""`plan` of a grid of configs: what each run takes, and all of them together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.config_grid import ConfigGrid, GridJob
from launch.costs import Cost, cost_of
from launch.rates import read_rates
from launch.tables import print_table, table_of

SOURCES = {"given": "", "measured": "m", "benchmark": "b", "assumed": "~", "unknown": ""}
"""Marks of hours by where the rate comes from."""


def print_grid_plan(grid: ConfigGrid, as_json: bool, rates: Path | None = None) -> None:
    """Print what the runs cost. Raises InputError for a run that cannot be.

    Args:
        rates: a benchmark's file in place of the grid's.
    """
    file = rates or grid.rates
    measured = None if file is None else read_rates(file)
    costs = [(job, cost_of(job, grid.gpu, measured)) for job in grid.jobs]
    if as_json:
        print(json.dumps([described(job, cost) for job, cost in costs], indent=1))
        return
    table = table_of(f"{grid.name}: {len(costs)} runs; output {grid.output}")
    headings = ("run", "total", "active", "steps", "tokens", "FLOPs", "GPUs", "hours", "GPU hours", "memory", "disk")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for job, cost in costs:
        table.add_row(*_cells(job, cost, grid))
    table.caption = "\n".join([*_notes(grid, costs), *_about_rates(file, costs)])
    print_table(table)


def described(job: GridJob, cost: Cost) -> dict[str, Any]:
    """A run for `plan --json`."""
    about = {"name": job.name, "config": str(job.source), "overrides": dict(job.overrides)}
    return {**about, "nodes": job.nodes, "gpus_per_node": job.gpus_per_node, **asdict(cost)}


def _cells(job: GridJob, cost: Cost, grid: ConfigGrid) -> list[str]:
    mark = SOURCES[cost.rate_source]
    gpus = f"{job.nodes} x {job.gpus_per_node}" if job.gpus_per_node else f"{job.nodes} x CPU"
    return [
        job.name,
        f"{cost.total_params / 1e6:,.1f}M",
        f"{cost.active_params / 1e6:,.1f}M",
        f"{cost.steps:,}",
        f"{cost.tokens / 1e9:,.2f}B",
        f"{cost.flops:.2e}",
        gpus,
        "-" if cost.hours is None else f"{mark}{cost.hours:,.1f}",
        "-" if cost.gpu_hours is None else f"{mark}{cost.gpu_hours:,.0f}",
        f"{cost.memory_bytes / 1e9:,.1f} GB" + ("!" if _is_too_large(cost, grid) else ""),
        f"{cost.disk_bytes / 1e9:,.1f} GB",
    ]


def _about_rates(file: Path | None, costs: list[tuple[GridJob, Cost]]) -> list[str]:
    if file is None:
        return []
    if any(cost.rate_source == "benchmark" for _, cost in costs):
        return [f"b benchmark: {file}"]
    return [f"no hours are of {file}: it has no row of these configs on this GPU, or better is known of them"]


def _is_too_large(cost: Cost, grid: ConfigGrid) -> bool:
    return grid.gpu is not None and cost.memory_bytes > grid.gpu.memory_bytes


def _notes(grid: ConfigGrid, costs: list[tuple[GridJob, Cost]]) -> list[str]:
    flops, disk = sum(cost.flops for _, cost in costs), sum(cost.disk_bytes for _, cost in costs)
    known = [cost.gpu_hours for _, cost in costs if cost.gpu_hours is not None]
    hours = f"{sum(known):,.0f} GPU hours" if known else "hours not known"
    if 0 < len(known) < len(costs):
        hours += f" for the {len(known)} of {len(costs)} runs whose rate is known"
    notes = [f"in all {flops:.2e} FLOPs, {hours}, {disk / 1e12:,.2f} TB of checkpoints"]
    if any(cost.rate_source == "assumed" for _, cost in costs) and (gpu := grid.gpu) is not None:
        shares = sorted({job.mfu or gpu.mfu for job, cost in costs if cost.rate_source == "assumed"})
        told = ", ".join(f"{share:g}" for share in shares)
        notes.append(
            f"~ assumed: MFU {told} of {gpu.peak_flops / 1e12:,.0f} TFLOP/s ({gpu.name}); nothing was measured"
        )
    if any(cost.rate_source == "measured" for _, cost in costs):
        notes.append("m measured: the rate that the run itself logged last")
    if grid.gpu is not None and any(_is_too_large(cost, grid) for _, cost in costs):
        notes.append(
            f"! more than the {grid.gpu.memory_bytes / 1e9:g} GB of a GPU: smaller micro-batches, or more GPUs"
        )
    notes.append("memory is that of one GPU, derived; hours leave out starts, evaluations and checkpoints")
    return notes
