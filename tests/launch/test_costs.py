"""What a plan says: against the accounting of the grid, tensors that a real model keeps, and files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY_RUN
from grid_maker import make_grid, write_config

from launch.__main__ import main
from launch.config_grid import Gpu
from launch.costs import activation_bytes, cost_of
from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.errors import InputError
from olmoe_parrots.grid import rows

SMALL = ["model.vocab_size=50", "model.embedding_size=50", "model.max_sequence_length=64", "model.init_device=cpu"]


def test_the_plan_of_the_papers_grid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["plan", "launch/sweeps/paper_grid.yaml", "--json"]) == 0
    planned = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert len(planned) == 36
    for row in rows():
        for data in ("natural_language", "math"):
            run = planned[f"{row['name']}_{data}"]
            assert (run["total_params"], run["active_params"]) == (row["total_params"], row["active_params"])
            assert run["tokens"] == 60_000 * 512 * 2_048
            assert run["flops"] == run["tokens"] * row["flops_per_token"]
            # two sharded checkpoints and a third that is being written, and the last one unsharded
            assert run["disk_bytes"] == 4 * row["checkpoint_bytes"]
            assert run["memory_bytes"] < 80e9, "it fits an H100"
    share = planned["dense_d4096_math"]
    assert share["gpu_hours"] == pytest.approx(share["flops"] / (0.4 * 989e12) / 3600)
    assert share["hours"] == pytest.approx(share["gpu_hours"] / 16)
    assert main(["plan", "launch/sweeps/paper_grid.yaml"]) == 0
    told = capsys.readouterr().out
    hours = sum(run["gpu_hours"] for run in planned.values())
    assert f"{hours:,.0f} GPU hours" in told and "nothing was measured" in told
    assert f"{sum(run['flops'] for run in planned.values()):.2e} FLOPs" in told


def _kept_bytes(config: str, *overrides: str) -> float:
    """Bytes that autograd keeps of one token in one layer: those of three layers less those of one."""
    from olmoe_parrots.config import load_train_config
    from olmoe_parrots.model import build_model

    def measured(layers: int) -> float:
        # what runs on a GPU, which a plan is about
        options = [*SMALL, *overrides, f"model.n_layers={layers}", "model.moe_mlp_impl=grouped"]
        cfg = load_train_config(str(REPOSITORY / "configs" / config), options, validate_paths=False)
        model = build_model(cfg.model)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.zeros(4, 64, dtype=torch.long))
            total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del output
        return total / (4 * 64)

    return (measured(3) - measured(1)) / 2


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("dense_d256.yaml", ()),
        ("dense_d256.yaml", ("model.mlp_hidden_size=1024",)),
        ("dense_d256.yaml", ("model.activation_type=swiglu", "model.mlp_hidden_size=512")),
        ("moe_d256_e8.yaml", ()),
        ("moe_d256_e8.yaml", ("model.moe_top_k=4", "model.activation_type=swiglu", "model.mlp_hidden_size=512")),
    ],
)
def test_activations_are_those_that_a_model_keeps(config: str, overrides: tuple[str, ...]) -> None:
    from olmoe_parrots.config import load_train_config

    cfg = load_train_config(str(REPOSITORY / "configs" / config), [*SMALL, *overrides], validate_paths=False)
    expected = activation_bytes(ModelShape.from_config(cfg.model), mixed=False)
    assert _kept_bytes(config, *overrides) == pytest.approx(expected, rel=0.01)


def test_state_is_shared_by_the_ranks_as_the_strategy_says(tmp_path: Path, shards: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)

    def state(ranks: int, **overrides: object) -> float:
        entry = {"configs": [str(config)], "gpus_per_node": ranks, "overrides": {**overrides}}
        (job,) = make_grid(tmp_path, [entry]).jobs
        return cost_of(job, None).memory_bytes

    cost = cost_of(make_grid(tmp_path, [{"configs": [str(config)]}]).jobs[0], None)
    whole, alone = 16 * cost.total_params, state(1)
    # by DDP every rank has it all; the other terms are those of a rank's micro-batch
    ddp = {"distributed_strategy": "ddp"}
    assert state(2, **ddp, global_train_batch_size=16) == alone
    shard = {"global_train_batch_size": 64, "model.n_layers": 2}
    assert state(2, **shard) - state(8, **shard) == pytest.approx(whole * (1 / 2 - 1 / 8))


def test_rates_are_given_or_measured_or_assumed_or_not_known(tmp_path: Path, shards: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)
    entry = {"configs": [str(config)], "gpus_per_node": 2}
    gpu = Gpu("G", peak_flops=1e9, memory_bytes=1e9, mfu=0.5)
    (job,) = make_grid(tmp_path, [entry]).jobs
    assert cost_of(job, None).hours is None
    cost = cost_of(job, gpu)
    assert cost.rate_source == "assumed" and cost.hours == pytest.approx(cost.flops / (2 * 0.5e9) / 3600)
    job.folder.mkdir(parents=True)
    (job.folder / "metrics.jsonl").write_text('{"step": 2, "throughput/device_tokens_per_second": 64.0}\n{"step')
    cost = cost_of(job, gpu)
    tokens = TINY_RUN["max_duration"] * TINY_RUN["global_train_batch_size"] * 16
    assert cost.rate_source == "measured" and cost.hours == pytest.approx(tokens / 128 / 3600)
    (job,) = make_grid(tmp_path, [{**entry, "device_tokens_per_second": 32}]).jobs
    cost = cost_of(job, gpu)
    assert cost.rate_source == "given" and cost.gpu_hours == pytest.approx(tokens / 32 / 3600)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gpus_per_node": 3}, "does not divide among 3 GPUs"),
        ({"gpus_per_node": 2, "overrides": {"device_train_microbatch_size": 3}}, "micro-batches of 3"),
        ({"overrides": {"max_duration": "2ep"}}, "its steps depend on the data"),
    ],
)
def test_what_its_gpus_cannot_share_is_refused(
    tmp_path: Path, shards: Path, keys: dict[str, object], message: str
) -> None:
    config = write_config(tmp_path / "tiny.yaml", shards)
    (job,) = make_grid(tmp_path, [{"configs": [str(config)], **keys}]).jobs
    with pytest.raises(InputError, match=message):
        cost_of(job, None)
