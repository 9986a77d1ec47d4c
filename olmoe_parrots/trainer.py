"""OLMo's trainer with auxiliary losses and routing metrics, on any device.

Nothing of OLMo's loop is rewritten: each method below adds to the one it overrides.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import wandb
from olmo.torch_util import get_global_rank, get_world_size, move_to_device, synchronize_flag
from torch import Tensor

from .config import BlockType, TrainConfig
from .evaluation.synthetic import SyntheticEvaluator
from .guards import CollapseWatch, FiniteGuard
from .loss import pays_to_chunk
from .metrics import MetricsFile, Progress, read_metrics, routing_row
from .model import ModelOutput, ParrotsOLMo
from .moe.losses import load_balancing_loss, router_z_loss
from .moe.router import RoutingStatistics
from .saving import SavingTrainer

log = logging.getLogger("olmoe_parrots")

RENAMED = {
    "optim/learning_rate_group0": "optim/learning_rate",
    "throughput/device/tokens_per_second": "throughput/device_tokens_per_second",
}
LEFT_OUT = ("optim/grad/", "optim/param/", "optim/exp_avg", "optim/step/", "optim/learning_rate_group1", "routing/")
"""Metrics of every single parameter, which OLMo means for wandb, and what ``routing`` rows say already."""


@dataclass
class StepRouting:
    """Routing of one optimizer step on this rank, summed over its micro-batches."""

    load_balancing_loss: Tensor
    z_loss: Tensor
    tokens_per_expert_LE: Tensor

    def reduce(self) -> None:
        """Losses to their mean and counts to their sum over the ranks."""
        if get_world_size() > 1:
            for loss in (self.load_balancing_loss, self.z_loss):
                dist.all_reduce(loss)
                loss.div_(get_world_size())
            dist.all_reduce(self.tokens_per_expert_LE)


@dataclass
class ParrotsTrainer(SavingTrainer):
    """``metrics_file`` and ``progress`` are given on rank 0 only."""

    cfg: TrainConfig
    model: ParrotsOLMo
    metrics_file: MetricsFile | None = None
    progress: Progress | None = None
    flops_available: float | None = None
    synthetic_evaluators: list[SyntheticEvaluator] = field(default_factory=list)
    _learned_labels: Tensor | None = None
    _measurements: list[dict[str, Any]] = field(default_factory=list)
    _routing: list[RoutingStatistics] | None = None
    _step_routing: StepRouting | None = None
    _global_counts_LE: Tensor | None = None
    _routing_rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dist_model.register_forward_hook(self._keep_routing)
        self._collapse = CollapseWatch(
            self.cfg.router_collapse_share, self.cfg.router_collapse_steps, self.cfg.model.moe_top_k
        )

    @property
    def is_moe(self) -> bool:
        return self.cfg.model.block_type == BlockType.moe

    def _keep_routing(self, module: Any, args: Any, output: ModelOutput) -> None:
        # OLMo's model_forward (olmo/train.py:720) reads the logits alone off the output
        self._routing = output.routing

    def fit(self) -> None:
        """Train up to ``max_duration`` exactly (OLMo, at olmo/train.py:1103, would go ten steps further)."""
        if self.cfg.stop_at is None:
            self.cfg.stop_at = self.max_steps
        with self.watched():
            self._fit_or_evaluate()

    def _fit_or_evaluate(self) -> None:
        if self.global_step < (self.cfg.stop_at or 0):
            names = {id(parameter): name for name, parameter in self.dist_model.named_parameters()}
            folder = Path(self.cfg.save_folder)
            self._finite = FiniteGuard(self.optim, names, folder, self.cfg.skip_nonfinite_batches)
            super().fit()
        elif self._evaluation_was_missed():
            self.eval()

    def _evaluation_was_missed(self) -> bool:
        """Whether the run that trained so far was killed after its last checkpoint, before it evaluated there."""
        missed = False
        if self.metrics_file is not None and (self.evaluators or self.synthetic_evaluators):
            path = self.metrics_file.path
            rows = read_metrics(path) if path.is_file() else []
            here = [key for row in rows if row.get("step") == self.global_step for key in row]
            missed = not any(key.startswith("eval/") for key in here)
        return synchronize_flag(missed, self.device)

    def close(self, exit_code: int = 0) -> None:
        if self.progress is not None:
            self.progress.close()
        if self.metrics_file is not None:
            self.metrics_file.close()
        if wandb.run is not None:  # OLMo (olmo/train.py:1377) passes an argument that current wandb does not take
            wandb.finish(exit_code=exit_code)
        super().close(exit_code)

    # Devices: OLMo names CUDA at olmo/train.py:799,903; and at 335 and 433, see saving.

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.device.type == "cuda" or self.cfg.autocast_precision == torch.float32:
            return nullcontext()  # on CUDA OLMo has entered it already
        return torch.autocast(self.device.type, dtype=self.cfg.autocast_precision)

    def model_forward(
        self, batch: dict[str, Any], loss_reduction: str = "mean", compute_z_loss: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """OLMo's; sums of losses, which only training asks for, without logits where that can be."""
        plain = loss_reduction == "sum" and not compute_z_loss and not self.cfg.fused_loss
        if plain and pays_to_chunk(self.cfg.model, self.cfg.autocast_precision, self.device):
            names = ("input_ids", "attention_mask", "attention_bias", "doc_lens", "max_doc_lens")
            inputs = {name: batch[name] for name in names if name in batch}
            output = self.dist_model(**inputs, labels=self.get_labels(batch))
            return output.loss, None, output.logits
        with self._autocast():
            return super().model_forward(batch, loss_reduction, compute_z_loss)

    # Losses: of the learned labels, and auxiliary.

    def train_step(self, batch: dict[str, Any], reduce_global_loss: bool = True) -> dict[str, float]:
        """OLMo's, and the auxiliary losses and routing of the step, over all ranks whenever the loss is."""
        self.watch()
        self._step_routing = None
        self._finite.begin(self.global_step, batch)
        metrics = super().train_step(batch, reduce_global_loss)
        if self._finite.skips_this_step:
            return self._after_skip()
        step_routing, self._step_routing = self._step_routing, None
        self._routing_rows = []
        if step_routing is not None and reduce_global_loss:
            step_routing.reduce()
            metrics["train/LoadBalancingLoss"] = step_routing.load_balancing_loss.item()
            metrics["train/RouterZLoss"] = step_routing.z_loss.item()
            counts = step_routing.tokens_per_expert_LE.tolist()
            if get_global_rank() == 0:
                for warning in self._collapse.look(self.global_step, counts):
                    log.warning(warning)
            self._routing_rows = [routing_row(layer, row) for layer, row in enumerate(counts)]
            if self.cfg.model.moe_log_expert_assignment:
                for row in self._routing_rows:
                    for expert, share in enumerate(row["share"]):
                        metrics[f"routing/layer{row['layer']}/expert{expert}"] = share
        return metrics

    def _after_skip(self) -> dict[str, float]:
        """The metrics of a step that was not taken, and a row of its own in ``metrics.jsonl``."""
        self._step_routing, self._routing_rows = None, []
        self.cur_train_loss = self.min_train_loss  # OLMo compares it for early stopping
        metrics = {"train/SkippedBatches": float(self._finite.skipped)}
        if self.metrics_file is not None:
            self.metrics_file.write({"step": self.global_step, "tokens": self.global_train_tokens_seen, **metrics})
        return metrics

    def train_batch(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """OLMo's, which divides losses by a rank's tokens (olmo/train.py:757): with label masks by its learned labels,
        as many as the ranks have on average, so that the mean over the ranks is the mean over all learned labels."""
        self._learned_labels = None
        if "label_mask" in batch:
            learned = (self.get_labels(batch) != -100).sum().float()
            self._learned_labels = (self._over_ranks(learned) / get_world_size()).clamp_min(1 / get_world_size())
        self._global_counts_LE = None
        if self.is_moe and self.cfg.model.moe_lbl_global_batch:
            micro_batches = self.split_batch(batch)
            if len(micro_batches) > 1:
                self._global_counts_LE = self._count_ahead(micro_batches)
        losses = super().train_batch(batch)
        self._finite.expect(*losses)
        return losses

    def _count_ahead(self, micro_batches: list[dict[str, Any]]) -> Tensor:
        """Tokens per expert (layers, E) over the global batch, before any of it is trained on."""
        devices = [self.device] if self.device.type == "cuda" else []
        # dropout has to fall as it will in training
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            torch.autocast("cuda", enabled=self.device.type == "cuda", dtype=self.cfg.autocast_precision),
        ):
            counts = []
            for micro_batch in micro_batches:
                self.model_forward(move_to_device(micro_batch, self.device), loss_reduction="sum")
                counts.append(_counts(self._take_routing()))
            return self._over_ranks(torch.stack(counts).sum(dim=0))

    def _over_ranks(self, counts: Tensor) -> Tensor:
        """The sum of counts over the ranks, in place."""
        if get_world_size() > 1:
            dist.all_reduce(counts)
        return counts

    def _take_routing(self) -> list[RoutingStatistics]:
        routing, self._routing = self._routing, None
        assert routing is not None, "a MoE model's forward pass answers with its routing"
        return routing

    def train_micro_batch(
        self, micro_batch: dict[str, Any], batch_size_in_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """OLMo's loss, plus the weighted auxiliary losses in proportion to the micro-batch's share of the tokens."""
        share = micro_batch["input_ids"].numel() / batch_size_in_tokens
        divisor: Any = batch_size_in_tokens if self._learned_labels is None else self._learned_labels
        loss, ce_loss, z_loss = super().train_micro_batch(micro_batch, divisor)
        if not self.is_moe:
            return loss, ce_loss, z_loss
        routing = self._take_routing()
        counts_LE = _counts(routing)
        global_counts_LE = self._global_counts_LE
        if self.cfg.model.moe_lbl_global_batch and global_counts_LE is None:
            global_counts_LE = self._over_ranks(counts_LE.clone())
        load_balancing = load_balancing_loss(routing, tokens_per_expert_LE=global_counts_LE)
        load_balancing = share * self.cfg.model.moe_loss_weight * load_balancing
        router_z = share * (self.cfg.model.moe_zloss_weight or 0.0) * router_z_loss(routing)
        self._add_to_step(StepRouting(load_balancing.detach(), router_z.detach(), counts_LE))
        return loss + load_balancing + router_z, ce_loss, z_loss

    def _add_to_step(self, part: StepRouting) -> None:
        if (total := self._step_routing) is None:
            self._step_routing = part
        else:
            total.load_balancing_loss += part.load_balancing_loss
            total.z_loss += part.z_loss
            total.tokens_per_expert_LE += part.tokens_per_expert_LE

    # Synthetic tasks.

    def eval(self) -> dict[str, Any]:
        """OLMo's evaluators, then those of synthetic tasks, as rows of their own in ``metrics.jsonl``."""
        metrics = super().eval()  # leaves the model in eval mode
        for evaluator in self.synthetic_evaluators:
            self.watch()
            with (
                torch.autocast("cuda", enabled=self.device.type == "cuda", dtype=self.cfg.autocast_precision),
                self._autocast(),
                # compiled blocks would be compiled anew for each length that the cache grows to
                torch.compiler.set_stance("force_eager"),
            ):
                measured = evaluator.measure(self.dist_model, self.device)
            self._routing = None
            self._measurements = [{"task": evaluator.task.name, **asdict(one)} for one in measured]
            values = {f"eval/{evaluator.label}/{one.metric}": one.value for one in measured}
            self.log_metrics_to_console(evaluator.label, values)
            self._measurements = []
            metrics.update(values)
        return metrics

    def eval_step(self, batch: dict[str, Any], evaluator: Any) -> None:
        self.watch()
        super().eval_step(batch, evaluator)

    # What a run says of itself.

    def log_metrics_to_console(self, prefix: str, metrics: dict[str, float]) -> None:
        """OLMo's one outlet for metrics, on rank 0: a row in ``metrics.jsonl`` and a step of the progress display."""
        if get_global_rank() != 0 or self.metrics_file is None or self.progress is None:
            return
        row = {RENAMED.get(key, key): value for key, value in metrics.items() if not key.startswith(LEFT_OUT)}
        if "train/CrossEntropyLoss" in row:
            if (rate := row.get("throughput/device_tokens_per_second")) is not None:
                row["throughput/tokens_per_second"] = rate * get_world_size()
                if self.flops_available:
                    flops = self.model.num_fwd_flops + self.model.num_bck_flops
                    row["throughput/mfu"] = rate * flops / self.flops_available
            self.progress.update(self.global_step, row)
            if self._routing_rows:
                row["routing"] = self._routing_rows  # type: ignore[assignment]
        elif any(key.startswith("eval/") for key in row):
            shown = ", ".join(f"{key.removeprefix('eval/')} {value:.4f}" for key, value in row.items())
            self.progress.say(f"evaluation at step {self.global_step}: {shown}")
            if self._measurements:
                row["measurements"] = self._measurements  # type: ignore[assignment]
        else:
            return
        self.metrics_file.write({"step": self.global_step, "tokens": self.global_train_tokens_seen, **row})


def _counts(routing: list[RoutingStatistics]) -> Tensor:
    return torch.stack([layer.tokens_per_expert_E for layer in routing])
