"""The shipped configs, written from the grid: no YAML is copied by hand."""

from pathlib import Path
from typing import Any

from .grid import WARMUP_SHARE, WEIGHT_DECAY, Run, grid, quickstart, synthetic_grid

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

OF_SECTION_5 = "assumed, as in section 5"
SYNTHETIC_MARKS = {
    **MARKS,
    "n_layers": "a second source",
    "mlp_hidden_size": "a second source: d, and OLMo counts both halves of a gated network",
    "activation_type": "seed: Mistral, Mixtral; gated SiLU",
    "layer_norm_type": "seed: Mistral, Mixtral",
    "moe_num_experts": "assumed: the paper's are not known",
    "moe_normalize_expert_weights": "seed: Mixtral",
    "moe_dropless": OF_SECTION_5,
    "rope": "seed: Mistral, Mixtral",
    "include_bias": "seed: Mistral, Mixtral",
    "max_sequence_length": "the task's rows",
    "vocab_size": "the task's; assumed",
    "embedding_size": "32000 for the paper's published sizes; assumed",
    "learning_rate": "assumed; the paper sweeps it",
    "max_duration": "assumed; the paper sweeps the epochs",
    **dict.fromkeys(("name", "weight_decay", "t_warmup", "alpha_f", "warmup_min_lr"), OF_SECTION_5),
    **dict.fromkeys(("global_train_batch_size", "distributed_strategy"), OF_SECTION_5),
}
"""The same for the configs of the synthetic tasks."""

HEADER = """\
# {name}: written by `python -m olmoe_parrots.grid --write configs`; edit olmoe_parrots/grid.py, not this file.
# {total:,} parameters, {active:,} active, {non_embedding:,} without the embedding;
# {flops:,} forward and backward FLOPs per token; {tokens:,} training tokens.
# Marks: seed = stated by the paper, derived = worked out from its published sizes, assumed = our default{all_assumed}.
"""

SYNTHETIC_HEADER = """\
# {name}: written by `python -m olmoe_parrots.grid --write configs`; edit olmoe_parrots/grid.py, not this file.
# A model for either synthetic task: --data_folder=DIR names the data, which decides vocabulary and sequence length.
# {total:,} parameters, {active:,} active, and {width:,} for each token of the vocabulary.
# Marks: seed = stated by the paper, derived = worked out from its published sizes, assumed = our default{all_assumed}.
"""


def config_fields(run: Run) -> dict[str, Any]:
    """The config of a run as plain data, in the order in which it is written."""
    # one run folder a task
    name = f"{_of_manifest('mixture.task')}_{run.name}" if run.synthetic else run.name
    fields: dict[str, Any] = {"run_name": name, "seed": 6198, "data_folder": run.data_folder}
    fields["save_folder"] = "runs/${run_name}"
    fields["model"] = _model_fields(run)
    fields.update(_training_fields(run))
    fields.update(_loop_fields(run))
    fields["data"] = {"paths": "${path.glob:${data_folder}/train/*.npy}", "memmap_dtype": "uint16", "drop_last": True}
    if run.synthetic:
        fields["data"]["label_mask_paths"] = "${path.glob:${data_folder}/train/*.label_mask}"
    fields["evaluators"] = _evaluator_fields(run)
    return fields


def _model_fields(run: Run) -> dict[str, Any]:
    fields = {
        "d_model": run.width,
        "n_heads": run.width // run.head_size,
        "n_layers": run.layers,
        "mlp_hidden_size": (run.hidden_size or run.width) * (2 if run.gated else 1),
        "activation_type": "swiglu" if run.gated else "gelu",
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
        **(_fields_of_task(run) if run.synthetic else _fields_of_text(run)),
        "init_device": "meta",
        "init_fn": "normal",
        "init_std": 0.02,
        "init_cutoff_factor": 3.0,
    }
    if run.experts:
        fields |= {
            "moe_num_experts": run.experts,
            "moe_top_k": run.top_k,
            **({"moe_normalize_expert_weights": True} if run.normalize_expert_weights else {}),
            "moe_dropless": True,
            "moe_mlp_impl": "auto",
            "moe_lbl_in_fp32": True,
            "moe_loss_weight": 0.01,
            "moe_zloss_weight": 0.001,
        }
    return fields


def _fields_of_text(run: Run) -> dict[str, Any]:
    return {
        "max_sequence_length": run.sequence_length,
        "vocab_size": run.vocabulary,
        "embedding_size": run.vocabulary,
        "eos_token_id": 2,  # Mistral v1's </s>
        "pad_token_id": 0,  # Mistral v1's <unk>: it has no padding token
    }


def _fields_of_task(run: Run) -> dict[str, Any]:
    """What depends on the task is read from its data, so that a config serves both tasks at any size."""
    return {
        "max_sequence_length": run.sequence_length or _of_manifest("mixture.sequence_length"),
        "vocab_size": _of_manifest("tokenizer.vocabulary_size"),
        "embedding_size": run.vocabulary or "${model.vocab_size}",
        "eos_token_id": _of_manifest("tokenizer.eos_token_id"),
        "pad_token_id": _of_manifest("tokenizer.pad_token_id"),
    }


def _of_manifest(key: str) -> str:
    return f"${{manifest:${{data_folder}},{key}}}"


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
    if run.synthetic:
        return [{"label": _of_manifest("mixture.task"), "type": "synthetic"}]
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

    body = yaml.safe_dump(config_fields(run), sort_keys=False, width=120)
    if run.of_paper:
        marks = SYNTHETIC_MARKS if run.synthetic else MARKS
        body = "".join(_marked(line, marks) for line in body.splitlines(keepends=True))
    return _header(run) + body


def _header(run: Run) -> str:
    all_assumed = "" if run.of_paper else " (here: all)"
    if run.synthetic:
        # a vocabulary of 1 token is one vector, the smallest that the formulas take
        rest = run.shape(vocabulary=1, sequence_length=1)
        active = rest.active_params() - rest.total_params() + rest.non_embedding_params()
        return SYNTHETIC_HEADER.format(
            name=run.name,
            total=rest.non_embedding_params(),
            active=active,
            width=run.width,
            all_assumed=all_assumed,
        )
    shape = run.shape()
    return HEADER.format(
        name=run.name,
        total=shape.total_params(),
        active=shape.active_params(),
        non_embedding=shape.non_embedding_params(),
        flops=shape.flops_per_token(),
        tokens=run.tokens,
        all_assumed=all_assumed,
    )


def _marked(line: str, marks: dict[str, str]) -> str:
    mark = marks.get(line.split(":")[0].strip())
    return f"{line.rstrip()}  # {mark}\n" if mark else line


def write_configs(folder: Path) -> list[Path]:
    """Write every config of both grids and the quickstart; returns the files."""
    paths = []
    for run in [*grid(), *quickstart(), *synthetic_grid()]:
        path = folder / run.folder / f"{run.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config_text(run), encoding="utf-8")
        paths.append(path)
    return paths
