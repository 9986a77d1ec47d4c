"""`python -m launch plan|local|status SWEEP.yaml`: many training runs from one file (docs/sweeps.md)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from olmoe_parrots.errors import InputError, report_and_exit

COMMANDS = {
    "plan": "print what would run, with parameters and FLOPs; starts nothing",
    "local": "run what is missing on this machine, one process a core; may be stopped and started again at any time",
    "status": "print how the runs stand",
}


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="such as launch/sweeps/miniature.yaml")
        command.add_argument("--output", type=Path, metavar="DIR", help="in place of the sweep's own output folder")
        if name == "plan":
            command.add_argument("--json", action="store_true", help="print the runs that are known as a list")
        else:
            help_text = "runs at a time (one a core: %(default)s)"
            command.add_argument("--processes", type=int, default=_cores(), metavar="N", help=help_text)
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Raises InputError for bad input."""
    options = build_parser().parse_args(arguments)
    if options.command != "plan" and options.processes < 1:
        raise InputError("--processes", f"{options.processes} is not positive", "give a number above 0")
    from launch.sweep_file import load_sweep

    sweep = load_sweep(options.sweep, options.output)
    if options.command == "local":
        from launch.local import LocalRunner

        return LocalRunner(sweep, options.processes).run()
    from launch.tables import print_plan, print_status

    if options.command == "plan":
        print_plan(sweep, options.json)
    else:
        print_status(sweep, options.processes)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
