"""The paper's grids of models as data: `python -m olmoe_parrots.grid` prints that of section 5, `--json` lists it,
`--write DIR` writes one config a model, those of the synthetic tasks (section 4) into DIR/synthetic. Each number
carries the mark of ``docs/paper.md``: seed, derived or assumed.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .accounting import ModelShape
from .errors import ArgumentParser

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

SYNTHETIC = "synthetic"
SYNTHETIC_LAYERS = 12  # a second source
SYNTHETIC_DENSE_WIDTHS = (256, 512, 1024, 2048)  # assumed: twice d=256 and 512, and past ten times the parameters
SYNTHETIC_MOE_WIDTHS = (256, 512)  # assumed: 512 is the published 42M active


@dataclass(frozen=True)
class Run:
    """A model and what its config says of its training."""

    name: str
    width: int
    experts: int = 0
    """0 is dense."""
    hidden_size: int | None = None
    """Intermediate width, d unless told otherwise (seed: d, not 4d)."""
    gated: bool = False
    """Gated SiLU in the FFN and the experts, in place of two plain matrices."""
    top_k: int = TOP_K
    normalize_expert_weights: bool = False
    layers: int = LAYERS
    head_size: int = HEAD_SIZE
    vocabulary: int | None = VOCABULARY
    """None: that of the data."""
    sequence_length: int | None = SEQUENCE_LENGTH
    """None: the length of the data's rows, which are of a synthetic task."""
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
    folder: str = ""
    """Of its config, below that of all configs."""

    @property
    def synthetic(self) -> bool:
        """Whether it trains on a synthetic task, which decides vocabulary and sequence length."""
        return self.folder == SYNTHETIC

    def shape(self, vocabulary: int | None = None, sequence_length: int | None = None) -> ModelShape:
        """What the accounting needs. The arguments are the data's, for a run that leaves them to the data."""
        vocabulary, sequence_length = self.vocabulary or vocabulary, self.sequence_length or sequence_length
        assert vocabulary is not None and sequence_length is not None, "the data's"
        return ModelShape(
            d_model=self.width,
            n_layers=self.layers,
            n_heads=self.width // self.head_size,
            hidden_size=self.hidden_size or self.width,
            vocab_size=vocabulary,
            sequence_length=sequence_length,
            num_experts=self.experts,
            top_k=self.top_k if self.experts else 0,
            gated=self.gated,
        )

    @property
    def tokens(self) -> int:
        """Training tokens."""
        assert self.sequence_length is not None, "the data's"
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


def synthetic_run(name: str, width: int, experts: int = 0, **options: Any) -> Run:
    """A model of section 4: Mistral's shape, or Mixtral's with experts. Further options are those of :class:`Run`."""
    usual: dict[str, Any] = {
        "gated": True,
        # the one weight of top-1 would be 1 whatever the router says, and teach it nothing
        "normalize_expert_weights": options.get("top_k", TOP_K) > 1,
        "layers": SYNTHETIC_LAYERS,
        "vocabulary": None,
        "sequence_length": None,
        "batch_size": 512,
        "steps": 20_000,
        "micro_batch": 128,
        "eval_batch": 250,
        "data_folder": "data/phone_book",
        "log_every": 50,
        "eval_every": 2_000,
        "save_every": 5_000,
        "folder": SYNTHETIC,
    }
    return Run(name, width, experts, **{**usual, **options})


def synthetic_grid() -> list[Run]:
    """The models of section 4, then a small pair for two CPU cores (assumed). Each trains on either task."""
    runs = [synthetic_run(f"dense_d{width}", width) for width in SYNTHETIC_DENSE_WIDTHS]
    runs += [synthetic_run(f"moe_d{width}_e{n}", width, n) for width in SYNTHETIC_MOE_WIDTHS for n in EXPERTS]
    small: dict[str, Any] = {"layers": 2, "head_size": 32, "batch_size": 256, "steps": 2_000, "learning_rate": 3.0e-3}
    small |= {"micro_batch": 256, "eval_batch": 1_000, "eval_every": 500, "save_every": 1_000, "of_paper": False}
    return [*runs, synthetic_run("tiny_dense", 64, **small), synthetic_run("tiny_moe", 64, 8, **small)]


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
    parser = ArgumentParser(prog="python -m olmoe_parrots.grid", description="The paper's grid of models.")
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
