"""`python -m launch plan|local|slurm|status|cancel SWEEP.yaml`: many training runs from one file (docs/sweeps.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from olmoe_parrots.errors import ArgumentParser, InputError, report_and_exit

if TYPE_CHECKING:
    import argparse

COMMANDS = {
    "plan": "print what would run and what it takes; starts nothing",
    "local": "run what is missing on this machine; may be stopped and started again at any time",
    "slurm": "submit what is neither finished nor in the queue as Slurm arrays (a grid of configs)",
    "status": "print how the runs stand",
    "cancel": "take the sweep's runs out of the Slurm queue (a grid of configs)",
}


DATA = "submit data preparation to Slurm: an array with a task for each source file, then the dataset"


def build_parser() -> ArgumentParser:
    """The command's arguments."""
    from data_prep.__main__ import build_parser as data_parser

    parser = ArgumentParser(prog="python -m launch", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    from launch.slurm_data import add_arguments

    data = commands.add_parser(
        "slurm-data", help=DATA, description=DATA, parents=[data_parser(add_help=False)], conflict_handler="resolve"
    )
    add_arguments(data)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="such as launch/sweeps/miniature.yaml")
        command.add_argument("--output", type=Path, metavar="DIR", help="in place of the sweep's own output folder")
        if name == "plan":
            command.add_argument("--json", action="store_true", help="print the runs that are known as a list")
            help_text = "a benchmark's measured rates, in place of the sweep's (a grid of configs)"
            command.add_argument("--rates", type=Path, metavar="FILE", help=help_text)
        if name in ("local", "status"):
            help_text = "runs at a time (one a core, or 1 for a grid of configs)"
            command.add_argument("--processes", type=int, metavar="N", help=help_text)
        if name == "status":
            help_text = "again every so many seconds (10), until all have ended (a grid of configs)"
            command.add_argument("--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help=help_text)
        if name == "slurm":
            command.add_argument(
                "--dry-run", action="store_true", help="print the job scripts; write and submit nothing"
            )
            help_text = "submit without a look at data, tokenizer and save folder, where they are not seen from here"
            command.add_argument("--skip-checks", action="store_true", help=help_text)
        if name in ("local", "slurm"):
            help_text = "go on with runs of a grid whose config was changed since they began"
            command.add_argument("--accept-changes", action="store_true", help=help_text)
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Raises InputError for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser().parse_args(given)
    if options.command == "slurm-data":
        from launch import slurm_data

        return slurm_data.main(given[given.index("slurm-data") + 1 :], options)
    for name in ("processes", "watch"):
        if (number := getattr(options, name, None)) is not None and number <= 0:
            raise InputError(f"--{name}", f"{number} is not positive", "give a number above 0")
    from launch.config_grid_file import is_grid

    return _on_grid(options) if is_grid(options.sweep) else _on_sweep(options)


def _on_grid(options: argparse.Namespace) -> int:
    from launch.config_grid_file import load_grid

    grid = load_grid(options.sweep, options.output)
    if options.command == "plan":
        from launch.grid_plan import print_grid_plan

        print_grid_plan(grid, options.json, options.rates)
    elif options.command == "status":
        from launch.grid_status import print_grid_status

        print_grid_status(grid, options.watch)
    elif options.command == "local":
        from launch.grid_local import run_grid

        return run_grid(grid, options.processes or 1, options.accept_changes)
    else:
        from launch import slurm

        if options.command == "cancel":
            return slurm.cancel(grid)
        given = {name: getattr(options, name) for name in ("dry_run", "accept_changes", "skip_checks")}
        return slurm.submit(grid, **given)
    return 0


def _on_sweep(options: argparse.Namespace) -> int:
    from launch.sweep_file import load_sweep

    sweep = load_sweep(options.sweep, options.output)
    for_grids = [f"--{name}" for name in ("watch", "accept_changes", "rates") if getattr(options, name, None)]
    if options.command in ("slurm", "cancel"):
        for_grids.append(options.command)
    if for_grids:
        what = f"{for_grids[0].replace('_', '-')} is for grids of configs, and this sweep decides its runs as it goes"
        raise InputError(options.sweep, what, "use python -m launch local, and status without it")
    processes = getattr(options, "processes", None) or _cores()
    if options.command == "local":
        from launch.local import LocalRunner

        return LocalRunner(sweep, processes).run()
    from launch.tables import print_plan, print_status

    if options.command == "plan":
        print_plan(sweep, options.json)
    else:
        print_status(sweep, processes)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
