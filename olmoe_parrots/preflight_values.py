"""Numbers and names of a config that no run can use, whatever else it says: found before a model is built.

OmegaConf's schema knows types. What it lets through, torch and OLMo would refuse in the middle of a run, or not at all:
a learning rate below zero, a dropout of 2, an interval of 0 steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .preflight_data import refuse


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both included; `above` leaves `least` out."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in it; NaN and the infinities lie in none."""
        return math.isfinite(value) and self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        beginning = f"more than {self.least:g}" if self.above else f"at least {self.least:g}"
        return beginning if self.most == math.inf else f"{beginning}, at most {self.most:g}"


POSITIVE, NOT_NEGATIVE, COUNT, SHARE = Range(0, above=True), Range(0), Range(1), Range(0, 1)
RANGES: dict[Range, tuple[str, ...]] = {
    COUNT: (
        "model.d_model",
        "model.n_layers",
        "model.n_heads",
        "model.n_kv_heads",
        "model.mlp_ratio",
        "model.mlp_hidden_size",
        "model.block_group_size",
        "model.max_sequence_length",
        "model.vocab_size",
        "model.rope_theta",
        "global_train_batch_size",
        "device_train_microbatch_size",
        "device_eval_batch_size",
        "eval_interval",
        "save_interval",
        "save_interval_unsharded",
        "save_interval_ephemeral",
        "console_log_interval",
        "canceled_check_interval",
        "keep_checkpoints_every",
        "router_collapse_steps",
        "stop_at",
        "stop_after",
        "epoch",
        "optimizer.metrics_log_interval",
    ),
    NOT_NEGATIVE: (
        "seed",
        "data.seed",
        "data.num_workers",
        "data.timeout",
        "model.eos_token_id",
        "model.pad_token_id",
        "model.moe_loss_weight",
        "model.moe_zloss_weight",
        "optimizer.weight_decay",
        "scheduler.t_warmup",
        "scheduler.alpha_f",
        "scheduler.warmup_min_lr",
        "scheduler.grad_clip_warmup_steps",
        "skip_nonfinite_batches",
        "extra_steps_after_cancel",
        "fast_forward_batches",
    ),
    POSITIVE: (
        "model.init_std",
        "model.emb_init_std",
        "model.init_cutoff_factor",
        "model.layer_norm_eps",
        "model.clip_qkv",
        "model.alibi_bias_max",
        "optimizer.learning_rate",
        "optimizer.eps",
        "scheduler.t_max",
        "scheduler.grad_clip_warmup_factor",
        "max_grad_norm",
        "max_grad_norm_ratio",
        "time_limit",
        "step_timeout",
        "flops_available",
        "auxiliary_loss_multiplier",
    ),
    SHARE: (
        "model.attention_dropout",
        "model.residual_dropout",
        "model.embedding_dropout",
        "router_collapse_share",
    ),
    Range(0, 1 - 1e-12): ("optimizer.betas",),
    Range(-1): ("save_num_checkpoints_to_keep", "save_num_unsharded_checkpoints_to_keep", "eval_subset_num_batches"),
    Range(0, 2**32 - 1): ("seed", "data.seed"),  # which numpy's generators take
}
CHOICES = {
    "model.init_device": (None, "cpu", "cuda", "meta"),
    "data.memmap_dtype": ("uint8", "uint16", "uint32", "uint64"),
}


def check_values(cfg: Any, path: str) -> None:
    """Refuse the first option whose value no run can use.

    :param cfg: a :class:`olmoe_parrots.config.TrainConfig`.
    :param path: of the config file, for the message.
    :raises InputError: naming option, value and what it may be.
    """
    for allowed, options in RANGES.items():
        for option in options:
            for value in _values(cfg, option):
                # OmegaConf does not look into a list of floats
                if not isinstance(value, int | float) or not allowed.holds(value):
                    raise refuse(path, option, value, "no run can use that", f"give {allowed}")
    for option, names in CHOICES.items():
        value = _at(cfg, option)
        if value not in names:
            raise refuse(path, option, value, "there is no such choice", f"use {', '.join(map(str, names))}")
    for evaluator in cfg.evaluators:
        for option in ("device_eval_batch_size", "subset_num_batches"):
            value = getattr(evaluator, option)
            if value is not None and value < (1 if option == "device_eval_batch_size" else -1):
                where = f"{path}, evaluators, {evaluator.label}: {option}={value}"
                raise InputError(where, "no run can use that", "give at least 1")


def _at(cfg: Any, option: str) -> Any:
    for name in option.split("."):
        cfg = getattr(cfg, name)
    return cfg


def _values(cfg: Any, option: str) -> Iterator[Any]:
    value = _at(cfg, option)
    for one in value if isinstance(value, list | tuple) else [value]:
        if one is not None:
            yield one
