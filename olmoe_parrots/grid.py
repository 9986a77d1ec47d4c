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


AS_OLMOE = "assumed, as OLMoE-1B-7B-0924"
MARKS = {
    "n_heads": "assumed: head size 64",
    "n_layers": "seed",
    "mlp_hidden_size": "seed: d, not 4d",
    "activation_type": "derived: not gated",
    "rope": "derived",
    "include_bias": "derived",
    "weight_tying": "derived",
    "max_sequence_length": "seed",
    "vocab_size": "derived",
    "embedding_size": "derived",
    "moe_num_experts": "seed",
    "moe_top_k": "seed (a second source)",
    "moe_dropless": "seed (dMoE)",
    "name": "seed",
    "learning_rate": "seed",
    "weight_decay": "seed",
    "t_warmup": "seed: 20% of the steps",
    "alpha_f": "assumed: decays to zero",
    "warmup_min_lr": "assumed: warms up from zero",
    "max_duration": "seed",
    "global_train_batch_size": "seed",
    "distributed_strategy": "seed",
    **dict.fromkeys(("layer_norm_type", "layer_norm_with_affine", "attention_layer_norm"), "assumed"),
    **dict.fromkeys(("attention_dropout", "residual_dropout", "embedding_dropout"), "assumed"),
    **dict.fromkeys(("precision", "wrapping_strategy", "sharding_strategy", "moe_lbl_in_fp32"), "assumed"),
    **dict.fromkeys(("init_fn", "init_std", "init_cutoff_factor", "betas", "eps", "max_grad_norm"), AS_OLMOE),
    **dict.fromkeys(("decay_norm_and_bias", "decay_embeddings", "moe_loss_weight", "moe_zloss_weight"), AS_OLMOE),
}
"""Where each value of the paper's configs comes from, by option; written beside it."""

HEADER = """\
# {name}: written by `python -m olmoe_parrots.grid --write configs`; edit olmoe_parrots/grid.py, not this file.
# {total:,} parameters, {active:,} active, {non_embedding:,} without the embedding;
# {flops:,} forward and backward FLOPs per token; {tokens:,} training tokens.
# Marks: seed = stated by the paper, derived = worked out from its published sizes, assumed = our default{all_assumed}.
"""


def config_fields(run: Run) -> dict[str, Any]:
    """The config of a run as plain data, in the order in which it is written."""
    fields: dict[str, Any] = {"run_name": run.name, "seed": 6198, "data_folder": run.data_folder}
    fields["save_folder"] = "runs/${run_name}"
    fields["model"] = _model_fields(run)
    fields.update(_training_fields(run))
    fields.update(_loop_fields(run))
    fields["data"] = {"paths": "${path.glob:${data_folder}/train/*.npy}", "memmap_dtype": "uint16", "drop_last": True}
    fields["evaluators"] = _evaluator_fields(run)
    return fields


def _model_fields(run: Run) -> dict[str, Any]:
    fields = {
        "d_model": run.width,
        "n_heads": run.width // run.head_size,
        "n_layers": run.layers,
        "mlp_hidden_size": run.hidden_size or run.width,
        "activation_type": "gelu",
        "block_type": "moe" if run.experts else "sequential",
        "rope": True,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "attention_layer_norm": False,
        "include_bias": False,
        "weight_tying": True,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_sequence_length": run.sequence_length,
        "vocab_size": VOCABULARY,
        "embedding_size": VOCABULARY,
        "eos_token_id": 2,  # Mistral v1's </s>
        "pad_token_id": 0,  # Mistral v1's <unk>: it has no padding token
        "init_device": "meta",
        "init_fn": "normal",
        "init_std": 0.02,
        "init_cutoff_factor": 3.0,
    }
    if run.experts:
        fields |= {
            "moe_num_experts": run.experts,
            "moe_top_k": TOP_K,
            "moe_dropless": True,
            "moe_mlp_impl": "auto",
            "moe_lbl_in_fp32": True,
            "moe_loss_weight": 0.01,
            "moe_zloss_weight": 0.001,
        }
    return fields


def _training_fields(run: Run) -> dict[str, Any]:
    return {
        "optimizer": {
            "name": "adamw",
            "learning_rate": run.learning_rate,
            "weight_decay": WEIGHT_DECAY,
            "betas": [0.9, 0.95],
            "eps": 1.0e-8,
            "decay_norm_and_bias": True,
            "decay_embeddings": True,
        },
        "scheduler": {
            "name": "linear_with_warmup",
            "t_warmup": int(run.steps * WARMUP_SHARE),
            "alpha_f": 0.0,
            "warmup_min_lr": 0.0,
        },
        "max_grad_norm": 1.0,
        "max_duration": run.steps,
        "global_train_batch_size": run.batch_size,
        "device_train_microbatch_size": run.micro_batch,
        "device_eval_batch_size": run.eval_batch,
        "precision": "amp_bf16",
        "distributed_strategy": "fsdp",
        "fsdp": {
            "wrapping_strategy": "by_block",
            "precision": "mixed",
            "sharding_strategy": "FULL_SHARD",
        },
    }


def _loop_fields(run: Run) -> dict[str, Any]:
    return {
        "tokenizer": {"identifier": "${data_folder}/tokenizer.json"},
        "console_log_interval": run.log_every,
        "eval_interval": run.eval_every,
        "save_interval": run.save_every,
        "save_num_checkpoints_to_keep": 2,
        "save_interval_unsharded": run.steps,
        "save_num_unsharded_checkpoints_to_keep": -1,
        "sharded_checkpointer": "torch_new",
        "no_pre_train_checkpoint": True,
        "wandb": None,
    }


def _evaluator_fields(run: Run) -> list[dict[str, Any]]:
    validation: dict[str, Any] = {
        "label": "validation",
        "type": "lm",
        "data": {"datasets": {"validation": "${path.glob:${data_folder}/validation/*.npy}"}, "drop_last": True},
    }
    tasks = [{"label": task, "type": "downstream", "subset_num_batches": run.task_batches} for task in run.tasks]
    return [validation, *tasks]


def config_text(run: Run) -> str:
    """The YAML file of a run."""
    import yaml

    shape = run.shape()
    header = HEADER.format(
        name=run.name,
        total=shape.total_params(),
        active=shape.active_params(),
        non_embedding=shape.non_embedding_params(),
        flops=shape.flops_per_token(),
        tokens=run.tokens,
        all_assumed="" if run.of_paper else " (here: all)",
    )
    body = yaml.safe_dump(config_fields(run), sort_keys=False, width=120)
    if run.of_paper:
        body = "".join(_marked(line) for line in body.splitlines(keepends=True))
    return header + body


def _marked(line: str) -> str:
    mark = MARKS.get(line.split(":")[0].strip())
    return f"{line.rstrip()}  # {mark}\n" if mark else line


def write_configs(folder: Path) -> list[Path]:
    """Write every config of the grid and the quickstart; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for run in [*grid(), *quickstart()]:
        path = folder / f"{run.name}.yaml"
        path.write_text(config_text(run), encoding="utf-8")
        paths.append(path)
    return paths


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
        for path in write_configs(args.write):
            print(path)
    else:
        print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
