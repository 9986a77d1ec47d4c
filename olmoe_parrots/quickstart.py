"""The quickstart: real text to a trained mixture of experts beside its dense twin, by the commands a user would type.

What exists already is kept: a data set that is there is not built again, and a run goes on from its last checkpoint.
"""

import subprocess
import sys
import time
from pathlib import Path

from .errors import ArgumentParser, report_and_exit
from .metrics import read_metrics, rows_by_step

DATA = Path("data/quickstart")
RUNS = [Path("runs/quickstart_moe"), Path("runs/quickstart_dense")]
PICTURE = Path("runs/quickstart.png")
TASK = "eval/downstream/piqa_len_norm"


def commands(steps: int | None = None) -> list[list[str]]:
    """The modules to run, with their arguments, in order; ``steps`` shortens (or lengthens) the training."""
    prepare = ["data_prep", "quickstart", "--output", str(DATA)]
    options = ["--try_load_latest_save=true", *([f"--max_duration={steps}"] if steps else [])]
    train = [["olmoe_parrots.train", f"configs/{run.name}.yaml", *options] for run in RUNS]
    draw = ["olmoe_parrots.curves", *map(str, RUNS), "--output", str(PICTURE)]
    return [*([] if (DATA / "manifest.json").exists() else [prepare]), *train, draw]


def print_summary() -> None:
    """Print the twins' sizes, held-out perplexity and accuracy on one task of OLMo's evaluation harness."""
    from rich.console import Console
    from rich.table import Table

    from .grid import quickstart

    title = "A mixture of experts beside its dense twin of equal active parameters"
    table = Table(title=title, caption="PIQA: share right of a few questions out of two answers each; chance is 0.5")
    for heading in ("run", "total", "active", "tokens", "held-out ppl", "PIQA"):
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for run, folder in zip(quickstart(), RUNS, strict=True):
        rows = read_metrics(folder / "metrics.jsonl")
        last = max(rows_by_step(rows, "eval/validation/Perplexity").items())[1]
        task = max(rows_by_step(rows, TASK).items())[1][TASK]
        sizes = [f"{count / 1e6:.2f}M" for count in (run.shape().total_params(), run.shape().active_params())]
        perplexity = f"{last['eval/validation/Perplexity']:.1f}"
        table.add_row(run.name, *sizes, f"{last['tokens']:,}", perplexity, f"{task:.3f}")
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m olmoe_parrots.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="training steps of each run, instead of the configs'")
    args = parser.parse_args(argv)
    started = time.monotonic()
    for command in commands(args.steps):
        print("\n$ python -m " + " ".join(command), flush=True)
        done = subprocess.run([sys.executable, "-m", *command], check=False)
        if done.returncode:
            return done.returncode
    print_summary()
    minutes = (time.monotonic() - started) / 60
    print(f"data: {DATA}  runs: {RUNS[0]}, {RUNS[1]}  picture: {PICTURE}  ({minutes:.1f} minutes)")
    return 0


if __name__ == "__main__":
    report_and_exit(main)
