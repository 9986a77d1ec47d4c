"""Runs of the training command: equal losses however the work is cut, exact resumption, what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import (
    REPOSITORY,
    TINY_MODEL,
    TINY_MOE,
    TINY_RUN,
    free_port,
    losses_of,
    metrics_of,
    start_train,
    train,
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
        torchrun = ["torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
        command = [sys.executable, "-m", *torchrun, "tests/train_many.py", *paths]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
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


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "fsdp"), (2, "fsdp"), (2, "ddp")])
def test_a_killed_run_resumes_to_the_losses_of_an_undisturbed_one(
    tiny_config: Callable[..., Path], tmp_path: Path, ranks: int, strategy: str
) -> None:
    fields = {"distributed_strategy": strategy, "max_duration": 12, "save_interval_unsharded": 3, "save_interval": 2}
    config = tiny_config(**fields)
    train(config, f"--save_folder={tmp_path / 'whole'}", ranks=ranks)
    process = start_train(config, ranks=ranks)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("CrossEntropy") < 5):
        time.sleep(0.01)
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)  # torchrun's ranks
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output = train(config, "--try_load_latest_save=true", ranks=ranks)
    assert "loading" in output or len(metrics_of(tmp_path / "run")) == 12, output
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_the_data_order_goes_on_where_it_stopped(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config(max_duration=6)
    train(config, f"--save_folder={tmp_path / 'whole'}")
    train(config, "--stop_at=2")
    train(config, "--load_path=" + str(tmp_path / "run" / "step2"))
    assert "nothing to do" in train(config, "--try_load_latest_save=true")
    indices = [(tmp_path / run / "data-indices" / "rank0.tsv").read_text() for run in ("whole", "run")]
    assert indices[0] == indices[1]
    assert len(indices[0].splitlines()) == 6


def test_a_finished_run_leaves_what_it_should(tiny_config: Callable[..., Path], tmp_path: Path, shards: Path) -> None:
    from olmoe_parrots.config import load_train_config

    config = tiny_config(eval_interval=4, save_interval=2, save_num_checkpoints_to_keep=1)
    evaluators = (
        f"--evaluators=[{{label: validation, data: {{paths: [{shards}/validation/0000.npy], drop_last: true}}}}]"
    )
    output = train(config, evaluators, "--max_duration=5")
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/CrossEntropyLoss" in row]
    assert steps == [1, 2, 3, 4, 5], "max_duration trains exactly that many steps"
    for key in ("train/LoadBalancingLoss", "train/RouterZLoss", "optim/learning_rate", "optim/total_grad_norm"):
        assert all(key in row for row in rows if "train/CrossEntropyLoss" in row)
    assert rows[1]["throughput/tokens_per_second"] > 0
    layer = rows[0]["routing"][1]
    assert set(layer) == {"layer", "share", "entropy", "max_over_mean"}
    assert [row["step"] for row in rows if "eval/validation/Perplexity" in row] == [4, 5]
    saved = load_train_config(str(folder / "config.yaml"))
    assert saved.max_duration == 5
    assert saved.model.moe_num_experts == 4
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["versions"]["ai2-olmo"] == "0.6.0"
    assert sorted(path.name for path in folder.glob("step*")) == ["step4", "step5-unsharded"]
    assert "step 5/5" in output
    assert str(folder) in output


def test_wandb_offline(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config(wandb={"project": "parrots"}, model={"moe_log_expert_assignment": True})
    process = start_train(config, "--max_duration=1", env={"WANDB_MODE": "offline"})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_compiled_blocks_give_the_same_losses(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config(max_duration=2)
    train(config)
    train(config, f"--save_folder={tmp_path / 'compiled'}", "--compile.backend=aot_eager")
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "run"), abs=1e-5)
