"""How long commands take to answer, and training to make its first step.

    python benchmarks/start_up.py

`--help` of every command, each time in a process of its own; and the time from starting the training command to the end
of its first step, with a tiny mixture of experts on a tiny data set, beside a process that only imports OLMo's trainer.
All take turns, with modules compiled by a round that does not count, as an installation has them. Rows go to
start_up.jsonl beside this file, and the report to start_up.md.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rounds import append_rows, ask_in_turns, spread, write_report

from olmoe_parrots.cli import COMMANDS

REPOSITORY = Path(__file__).parent.parent
HELP_GOAL, STEP_GOAL = 1.5, 5.0

SUBCOMMANDS = {
    "launch": ("plan", "local", "slurm", "slurm-data", "status", "cancel"),
    "synthetic": ("phone_book", "shortest_path"),
    "results": ("table", "gap"),
}
"""By command, what has a help of its own."""

ALONE, IMPORT, STEP = "python alone", "import olmo.train", "first step"


@functools.cache
def environment() -> dict[str, str]:
    """This one's variables, with a folder for compiled modules, whatever this one says of them."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}


def run(*arguments: str) -> float:
    """Seconds of a Python process; raises CalledProcessError when it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - start


def helps() -> dict[str, list[str]]:
    """The arguments of Python that ask each command for its help, by the command's words."""
    found = {"parrots": ["-m", "olmoe_parrots.cli", "--help"]}
    for command, module in COMMANDS.items():
        for words in ((), *((word,) for word in SUBCOMMANDS.get(command, ()))):
            found[" ".join(["parrots", command, *words])] = ["-m", module, *words, "--help"]
    return found


def first_step(folder: Path, data: Path, number: int) -> float:
    """Seconds from starting the training command to its first step's row, which has the time of day."""
    run_folder = folder / f"run{number}"
    options = [f"--data_folder={data}", f"--save_folder={run_folder}", "--max_duration=1", "--evaluators=[]"]
    options += ["--scheduler.t_warmup=1", "--precision=fp32", "--console_log_interval=1"]
    start = time.time()
    run("-m", "olmoe_parrots.train", str(REPOSITORY / "configs/synthetic/tiny_moe.yaml"), *options)
    (row,) = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return row["time"] - start


def measure_first_step(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by contender: the import alone, and the first step."""
    data, number = folder / "data", itertools.count()
    run("-m", "olmoe_parrots.synthetic", "phone_book", "--size=512", "--test-size=16", f"--output={data}")
    contenders = {IMPORT: lambda: run("-c", "import olmo.train"), STEP: lambda: first_step(folder, data, next(number))}
    return ask_in_turns(contenders, rounds)


def measure_helps(rounds: int) -> dict[str, list[float]]:
    """Seconds by command, and of a process that does nothing."""
    contenders: dict[str, Callable[[], float]] = {ALONE: lambda: run("-c", "pass")}
    for name, arguments in helps().items():
        contenders[name] = lambda arguments=arguments: run(*arguments)  # type: ignore[misc]
    return ask_in_turns(contenders, rounds)


def report_of_helps(found: dict[str, list[float]]) -> str:
    by_time = sorted(found, key=lambda name: statistics.median(found[name]), reverse=True)
    slow = [name for name in by_time if statistics.median(found[name]) >= HELP_GOAL]
    verdict = f"not met by {', '.join(slow)}" if slow else "met by all"
    lines = ["## `--help`", "", f"Goal: under {HELP_GOAL} seconds: {verdict}. The slowest first.", ""]
    lines += ["| | seconds |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {spread(found[name])} |" for name in by_time)]) + "\n"


def report_of_first_step(found: dict[str, list[float]]) -> str:
    more = [step - alone for step, alone in zip(found[STEP], found[IMPORT], strict=True)]
    verdict = "met" if statistics.median(more) <= STEP_GOAL else "not met"
    return f"""## From command to first step

Goal: at most {STEP_GOAL:.0f} seconds more than a process that only imports OLMo's trainer: {verdict}. The
difference is that of the same round.

| | seconds |
|---|---:|
| `python -c "import olmo.train"` | {spread(found[IMPORT])} |
| command to first step | {spread(found[STEP])} |
| more than the import | {spread(more)} |
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="of the report")
    parser.add_argument("parts", nargs="*", default=["help", "first_step"], help="of help and first_step (both)")
    options = parser.parse_args(argv)
    script, sections = str(options.output / Path(__file__).name), []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            helping = part == "help"
            found = measure_helps(options.rounds) if helping else measure_first_step(Path(folder), options.rounds)
            append_rows(script, [{"part": part, "name": name, "seconds": seconds} for name, seconds in found.items()])
            sections.append(report_of_helps(found) if helping else report_of_first_step(found))
            print(sections[-1], flush=True)
    command = " ".join(["python benchmarks/start_up.py", *(sys.argv[1:] if argv is None else argv)])
    print(write_report(script, command, HEAD + "\n".join(sections)))


HEAD = """# Start-up

Each time in a process of its own, with files in the page cache and modules compiled. Medians (smallest to
largest) over rounds in which all take turns.

"""


if __name__ == "__main__":
    main()
