"""The paper's grid of models as data: `python -m olmoe_parrots.grid` prints it, `--json` lists it, `--write DIR`
writes one config a model. Each number carries the mark of ``docs/paper.md``: seed, derived or assumed.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .accounting import ModelShape

LAYERS = 20  # seed
DENSE_WIDTHS = (256, 512, 1024, 2048, 4096)  # seed
MOE_WIDTHS = (256, 512, 1024)  # seed
EXPERTS = (8, 16, 32, 64)  # seed
LARGEST = (256, 256)  # seed (a second source): d=256 with 256 experts, near dense d=2048 in size
TOP_K = 2  # seed (a second source)
VOCABULARY = 32_000  # derived
HEAD_SIZE = 64  # assumed
SEQUENCE_LENGTH = 2_048  # seed
BATCH_SIZE = 512  # seed
STEPS = 60_000  # seed
WARMUP_SHARE = 0.2  # seed
LEARNING_RATE = 1.0e-3  # seed
WEIGHT_DECAY = 0.1  # seed


@dataclass(frozen=True)
class Run:
    """A model and what its config says of its training."""

    name: str
    width: int
    experts: int = 0
    """0 is dense."""
    hidden_size: int | None = None
    """Intermediate width, d unless told otherwise (seed: d, not 4d)."""
    layers: int = LAYERS
    head_size: int = HEAD_SIZE
    sequence_length: int = SEQUENCE_LENGTH
    batch_size: int = BATCH_SIZE
    steps: int = STEPS
    micro_batch: int = 8
    eval_batch: int = 8
    learning_rate: float = LEARNING_RATE
    data_folder: str = "data/natural_language"
    log_every: int = 10
    eval_every: int = 1_000
    save_every: int = 1_000
    tasks: tuple[str, ...] = ()
    """Labels of OLMo's evaluation harness, run at each evaluation beside validation perplexity."""
    task_batches: int | None = None
    of_paper: bool = True

    def shape(self) -> ModelShape:
        """What the accounting needs."""
        return ModelShape(
            d_model=self.width,
            n_layers=self.layers,
            n_heads=self.width // self.head_size,
            hidden_size=self.hidden_size or self.width,
            vocab_size=VOCABULARY,
            sequence_length=self.sequence_length,
            num_experts=self.experts,
            top_k=TOP_K if self.experts else 0,
        )

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.steps * self.batch_size * self.sequence_length


def grid() -> list[Run]:
    """The models of section 5, dense ones first."""
    dense = [Run(f"dense_d{width}", width) for width in DENSE_WIDTHS]
    moe = [Run(f"moe_d{width}_e{experts}", width, experts) for width in MOE_WIDTHS for experts in EXPERTS]
    width, experts = LARGEST
    moe.append(Run(f"moe_d{width}_e{experts}", width, experts))
    return [*dense, *sorted(moe, key=lambda run: (run.width, run.experts))]


def quickstart() -> list[Run]:
    """A small MoE and its dense twin of equal active parameters, for a few minutes on two CPU cores (assumed).

    The twin's FFN is as wide as the two experts that a token visits; the router's d·E weights a layer are all that
    the MoE has more.
    """
    moe = Run(
        "quickstart_moe",
        width=128,
        experts=8,
        layers=4,
        head_size=32,
        sequence_length=256,
        batch_size=8,
        steps=160,
        micro_batch=8,
        eval_batch=8,
        learning_rate=3.0e-3,
        data_folder="data/quickstart",
        log_every=1,
        eval_every=80,
        save_every=40,
        of_paper=False,
        tasks=("piqa",),
        task_batches=25,
    )
    return [moe, replace(moe, name="quickstart_dense", experts=0, hidden_size=TOP_K * moe.width)]


def rows() -> list[dict[str, Any]]:
    """The grid's counts, one mapping a model, under the keys that ``--json`` prints."""
    return [
        {
            "name": run.name,
            "width": run.width,
            "experts": run.experts,
            "total_params": run.shape().total_params(),
            "active_params": run.shape().active_params(),
            "non_embedding_params": run.shape().non_embedding_params(),
            "flops_per_token": run.shape().flops_per_token(),
            "tokens": run.tokens,
            "checkpoint_bytes": run.shape().checkpoint_bytes(),
        }
        for run in grid()
    ]


def print_table() -> None:
    """Print the grid for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The paper's grid: 20 layers, intermediate dimension d, top-2, vocabulary 32,000 tied")
    for heading in ("name", "width", "experts", "total", "active", "non-emb.", "GFLOP/token", "tokens", "checkpoint"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    for row in rows():
        millions = [f"{row[key] / 1e6:,.1f}M" for key in ("total_params", "active_params", "non_embedding_params")]
        costs = [f"{row['flops_per_token'] / 1e9:.3f}", f"{row['tokens'] / 1e9:.1f}B"]
        size = f"{row['checkpoint_bytes'] / 1e9:.1f} GB"
        table.add_row(row["name"], str(row["width"]), str(row["experts"] or "-"), *millions, *costs, size)
    # a pipe has no width of its own: rows must not be cut there
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m olmoe_parrots.grid", description="The paper's grid of models.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="print a list of objects instead of the table")
    choice.add_argument("--write", metavar="DIR", type=Path, help="write one config a model into DIR")
    args = parser.parse_args(argv)
    if args.json:
        print(json.dumps(rows(), indent=2))
    elif args.write:
        from .config_files import write_configs

        for path in write_configs(args.write):
            print(path)
    else:
        print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
