"""The training command: equal losses however the work is cut over ranks, strategies and micro-batches."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    TINY_MODEL,
    TINY_MOE,
    TINY_RUN,
    free_port,
    losses_of,
    metrics_of,
    train_many,
    write_shards,
)

pytestmark = pytest.mark.slow

NO_WEIGHT = {"moe_loss_weight": 0.0, "moe_zloss_weight": 0.0}
GLOBAL = {"moe_lbl_global_batch": True}
HALF, QUARTER = {"device_train_microbatch_size": 4}, {"device_train_microbatch_size": 2}
DDP = {"distributed_strategy": "ddp"}
WAYS = {
    # name: (ranks, fields)
    "one": (1, {}),
    "one_ddp": (1, DDP),
    "accumulated": (1, HALF),
    "accumulated_more": (1, QUARTER),
    "fsdp": (2, {}),
    "ddp": (2, DDP),
    "fsdp_accumulated": (2, QUARTER),
    "ddp_accumulated": (2, {**DDP, **QUARTER}),
    "checkpointed": (1, {"activation_checkpointing": "whole_layer"}),
}
KINDS = {
    # name: (moe, model fields)
    "dense": (False, {}),
    "moe": (True, NO_WEIGHT),
    "moe_global": (True, GLOBAL),
    "moe_local": (True, {}),
}


def write_config(path: Path, shards: Path, *, moe: bool, model: dict, **fields: object) -> Path:
    config = {**TINY_RUN, "save_folder": str(path.with_suffix("")), "save_interval": None, **fields}
    config["model"] = {**TINY_MODEL, **(TINY_MOE if moe else {}), **model}
    config["data"] = {"paths": [str(shards / "train" / "0000.npy")], "drop_last": True}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of model trained in every way, in a folder named after both."""
    root = tmp_path_factory.mktemp("runs")
    shards = write_shards(root / "shards")
    configs: dict[int, list[str]] = {1: [], 2: []}
    for kind, (moe, model) in KINDS.items():
        for way, (ranks, fields) in WAYS.items():
            path = write_config(root / f"{kind}-{way}.yaml", shards, moe=moe, model=model, **fields)
            configs[ranks].append(f"{free_port()}:{path}")
    for ranks, paths in configs.items():
        train_many(ranks, paths)
    return root


@pytest.mark.parametrize("way", [way for way in WAYS if way != "one"])
@pytest.mark.parametrize("kind", ["dense", "moe", "moe_global"])
def test_losses_do_not_depend_on_how_the_work_is_cut(runs: Path, kind: str, way: str) -> None:
    expected = losses_of(runs / f"{kind}-one")
    assert len(expected) == 4
    assert expected[-1] < expected[0] - 0.1
    assert losses_of(runs / f"{kind}-{way}") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("way", ["accumulated", "fsdp", "ddp", "ddp_accumulated"])
def test_global_batch_load_balancing_does_not_depend_on_how_the_work_is_cut(runs: Path, way: str) -> None:
    for key in ("train/LoadBalancingLoss", "train/RouterZLoss"):
        assert losses_of(runs / f"moe_global-{way}", key) == pytest.approx(
            losses_of(runs / "moe_global-one", key), abs=1e-6
        )


def test_local_load_balancing_is_taken_over_one_micro_batch_of_one_rank(runs: Path) -> None:
    """Two ranks and two micro-batches cut the first batch differently only in which sequences share a cut, so the
    losses of the same first step differ from the whole batch's, and the z-loss, linear in the tokens, does not."""
    whole, cut = runs / "moe_local-one", runs / "moe_local-fsdp"
    first = {folder: metrics_of(folder)[1] for folder in (whole, cut)}
    assert first[whole]["train/RouterZLoss"] == pytest.approx(first[cut]["train/RouterZLoss"], abs=1e-8)
    assert first[whole]["train/LoadBalancingLoss"] != pytest.approx(first[cut]["train/LoadBalancingLoss"], abs=1e-7)
    assert losses_of(runs / "moe_local-ddp") == pytest.approx(losses_of(cut), abs=1e-5)


def test_a_run_counts_every_assignment_of_the_global_batch(runs: Path) -> None:
    """Shares of each layer are of all tokens of all ranks and micro-batches: equal however the batch is cut."""
    expected = metrics_of(runs / "moe_global-one")[1]["routing"]
    assert [row["layer"] for row in expected] == [0, 1]
    for way in ("fsdp_accumulated", "ddp", "accumulated"):
        actual = metrics_of(runs / f"moe_global-{way}")[1]["routing"]
        for one, other in zip(expected, actual, strict=True):
            assert sum(other["share"]) == pytest.approx(1)
            assert other["share"] == pytest.approx(one["share"])


def auxiliary_losses_by_hand(config: Path, shards: Path, indices: list[int]) -> tuple[float, float]:
    """Load-balancing and z-loss, weighted, of the initial model on one micro-batch: from each layer's router logits,
    which are worked out here from the router's input, token by token."""
    from olmoe_parrots.config import load_train_config
    from olmoe_parrots.model import build_model, initialize

    cfg = load_train_config(str(config))
    cfg.model.init_device = "cpu"
    model = build_model(cfg.model)
    initialize(model, cfg.seed)
    inputs: list[torch.Tensor] = []
    for block in model.transformer["blocks"]:
        block.ff_out.router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    length = cfg.model.max_sequence_length
    ids = np.fromfile(shards / "train" / "0000.npy", dtype="<u2").astype(np.int64).reshape(-1, length)[indices]
    with torch.no_grad():
        model(torch.from_numpy(ids))
    balances, z_losses = [], []
    for block, x_TD in zip(model.transformer["blocks"], inputs, strict=True):
        counts, probabilities, squares = [0] * 4, [0.0] * 4, 0.0
        for token in x_TD:
            logits = [float(token @ row) for row in block.ff_out.router.layer.weight.detach()]
            exponentials = [math.exp(logit) for logit in logits]
            squares += math.log(sum(exponentials)) ** 2
            for expert in sorted(range(4), key=lambda e: -logits[e])[:2]:
                counts[expert] += 1
            probabilities = [p + e / sum(exponentials) for p, e in zip(probabilities, exponentials, strict=True)]
        tokens = len(x_TD)
        balances.append(4 / (tokens * 2) * sum(n * p / tokens for n, p in zip(counts, probabilities, strict=True)))
        z_losses.append(squares / tokens)
    return 0.01 * sum(balances) / len(balances), 0.001 * sum(z_losses) / len(z_losses)


@pytest.mark.parametrize("way", ["one", "accumulated", "fsdp", "fsdp_accumulated", "ddp_accumulated"])
def test_each_auxiliary_loss_equals_its_formula_on_the_tokens_it_was_taken_over(runs: Path, way: str) -> None:
    """The mean over ranks and micro-batches of the losses of each one's tokens, as the run recorded them."""
    ranks, fields = WAYS[way]
    micro_batch = min(fields.get("device_train_microbatch_size", 8), 8 // ranks)
    parts = []
    for rank in range(ranks):
        rows = (runs / f"moe_local-{way}" / "data-indices" / f"rank{rank}.tsv").read_text().splitlines()
        indices = [int(index) for index in rows[0].split("\t")[1:]]
        for start in range(0, len(indices), micro_batch):
            config = runs / f"moe_local-{way}.yaml"
            parts.append(auxiliary_losses_by_hand(config, runs / "shards", indices[start : start + micro_batch]))
    row = metrics_of(runs / f"moe_local-{way}")[1]
    assert row["train/LoadBalancingLoss"] == pytest.approx(sum(p[0] for p in parts) / len(parts), abs=1e-7)
    assert row["train/RouterZLoss"] == pytest.approx(sum(p[1] for p in parts) / len(parts), abs=1e-7)
