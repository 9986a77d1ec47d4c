"""Draw runs as they went: ``python -m olmoe_parrots.curves RUN... --output FILE``.

Left, the training loss of each run over its tokens, with its held-out loss as points; right, for the first run that has
experts, each expert's share of the tokens in each layer at its last logged step.
"""

from pathlib import Path
from typing import Any

from .errors import ArgumentParser, InputError, report_and_exit
from .metrics import read_metrics, rows_by_step

LOSS, HELD_OUT = "train/CrossEntropyLoss", "eval/validation/CrossEntropyLoss"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
MARKERS = "osD^vP"


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The metrics rows of a run folder.

    :raises InputError: when it has none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(folder, "there is no metrics.jsonl in it", "name a folder that a run was saved to")
    rows = read_metrics(path)
    if not rows_by_step(rows):
        raise InputError(path, "it holds no trained step", "train the run first")
    return rows


def draw(folders: list[Path], output: Path) -> None:
    """Draw the runs into ``output``, whose ending says how (png, svg, pdf)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = {folder.name: read_run(folder) for folder in folders}
    loads = next((name for name, rows in runs.items() if any("routing" in row for row in rows)), None)
    figure, axes = pyplot.subplots(1, 2 if loads else 1, figsize=(11 if loads else 6, 4), squeeze=False)
    _draw_losses(axes[0][0], runs)
    if loads:
        _draw_loads(axes[0][1], figure, loads, runs[loads])
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def _draw_losses(axes: Any, runs: dict[str, list[dict[str, Any]]]) -> None:
    for i, (name, rows) in enumerate(runs.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        trained = [row for _, row in sorted(rows_by_step(rows, LOSS).items())]
        axes.plot([row["tokens"] for row in trained], [row[LOSS] for row in trained], color=color, label=name)
        held_out = [row for _, row in sorted(rows_by_step(rows, HELD_OUT).items())]
        points = [row["tokens"] for row in held_out], [row[HELD_OUT] for row in held_out]
        if held_out:
            axes.plot(*points, marker, color=color, markeredgecolor="black", label=f"{name}, held out")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_loads(axes: Any, figure: Any, name: str, rows: list[dict[str, Any]]) -> None:
    step, last = max((step, row) for step, row in rows_by_step(rows).items() if "routing" in row)
    shares = [layer["share"] for layer in last["routing"]]
    image = axes.imshow(shares, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_yticks(range(len(shares)))
    axes.set_title(f"{name}: share of tokens per expert, step {step} (even: {1 / len(shares[0]):.3f})", fontsize=9)
    figure.colorbar(image, ax=axes)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m olmoe_parrots.curves", description="Draw runs as they went.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder that a run was saved to")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a png, svg or pdf file")
    args = parser.parse_args(argv)
    if args.output.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--output {args.output}", "no such format", "end it in .png, .svg or .pdf")
    draw(args.runs, args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
