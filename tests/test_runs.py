"""Runs of the training command: exact resumption after a kill, and what a run leaves behind."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses_of, metrics_of, start_train, train

pytestmark = pytest.mark.slow


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
    process.kill()
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


def test_a_dry_run_leaves_the_folder_to_the_real_one(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_config()
    assert "nothing was trained" in train(config, "--dry_run=true")
    train(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(config, "--dry_run=true", "--save_overwrite=true")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
