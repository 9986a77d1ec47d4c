"""Training on synthetic tasks: the loss is the mean over the learned labels, and the tasks are evaluated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY, TINY_MODEL, TINY_MOE, TINY_RUN, free_port, losses_of, metrics_of, train, train_many
from synthetic_data import make_data

pytestmark = pytest.mark.slow

DROPOUT = {"residual_dropout": 0.1}
NO_WEIGHT = {"moe_loss_weight": 0.0, "moe_zloss_weight": 0.0}
DDP = {"distributed_strategy": "ddp"}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "accumulated": (1, {"device_train_microbatch_size": 2}),
    "fsdp": (2, {}),
    "ddp": (2, DDP),
    "ddp_accumulated": (2, {**DDP, "device_train_microbatch_size": 2}),
}
EVALUATED = {"max_duration": 2, "eval_interval": 1}


def write_config(path: Path, data: Path, *, moe: bool, model: dict[str, Any], **fields: Any) -> Path:
    """A run on a task, with what the shipped configs read from the manifest."""
    of_data = "${manifest:${data_folder},%s}"
    config: dict[str, Any] = {**TINY_RUN, "save_folder": str(path.with_suffix("")), "save_interval": None, **fields}
    config["data_folder"] = str(data)
    of_task = {
        "max_sequence_length": of_data % "mixture.sequence_length",
        "vocab_size": of_data % "tokenizer.vocabulary_size",
        "embedding_size": "${model.vocab_size}",
        "eos_token_id": of_data % "tokenizer.eos_token_id",
        "pad_token_id": of_data % "tokenizer.pad_token_id",
        "init_std": 0.2,
    }
    config["model"] = {**TINY_MODEL, **(TINY_MOE if moe else {}), **of_task, **model}
    files = "${path.glob:${data_folder}/train/*.%s}"
    config["data"] = {"paths": files % "npy", "label_mask_paths": files % "label_mask", "drop_last": True}
    config.setdefault("evaluators", [{"label": of_data % "mixture.task", "type": "synthetic"}])
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models trained in every way on shortest paths, whose answers are of many lengths, and a few evaluated."""
    root = tmp_path_factory.mktemp("runs")
    paths = make_data(root / "paths", "shortest_path")
    book = make_data(root / "book", "phone_book", test_size=101)
    configs: dict[int, list[str]] = {1: [], 2: []}

    def add(name: str, ranks: int, data: Path, moe: bool, model: dict[str, Any], **fields: Any) -> None:
        path = write_config(root / f"{name}.yaml", data, moe=moe, model=model, **fields)
        configs[ranks].append(f"{free_port()}:{path}")

    for way, (ranks, fields) in WAYS.items():
        add(f"dense-{way}", ranks, paths, False, {}, evaluators=[], **fields)
        add(f"moe-{way}", ranks, paths, True, NO_WEIGHT, evaluators=[], **fields)
    for way in ("one", "fsdp", "ddp"):
        ranks, fields = WAYS[way]
        still = {"optimizer": {"name": "adamw", "learning_rate": 1e-9}}
        add(f"book-{way}", ranks, book, True, NO_WEIGHT, **EVALUATED, **still, **fields)
    add("paths-evaluated", 1, paths, True, DROPOUT, eval_interval=1)
    add("paths-unwatched", 1, paths, True, DROPOUT, evaluators=[])
    for ranks, arguments in configs.items():
        train_many(ranks, arguments)
    return root


def evaluations(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if any(key.startswith("eval/") for key in row)]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "one"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_losses_and_gradients_do_not_depend_on_how_the_work_is_cut(runs: Path, kind: str, way: str) -> None:
    """Although the ranks and the micro-batches have different numbers of learned labels."""
    for key in ("train/CrossEntropyLoss", "optim/total_grad_norm"):
        expected = losses_of(runs / f"{kind}-one", key)
        assert len(expected) == 4
        assert losses_of(runs / f"{kind}-{way}", key) == pytest.approx(expected, abs=2e-5)


def test_the_loss_is_the_mean_over_the_learned_labels(runs: Path) -> None:
    """Loss and gradient norm of the first step, from the files and the initial model, label by label."""
    from olmoe_parrots.config import load_train_config
    from olmoe_parrots.model import build_model, initialize

    cfg = load_train_config(str(runs / "dense-one.yaml"))
    cfg.model.init_device = "cpu"
    model = build_model(cfg.model)
    initialize(model, cfg.seed)
    line = (runs / "dense-fsdp" / "data-indices" / "rank0.tsv").read_text().splitlines()[0]
    other = (runs / "dense-fsdp" / "data-indices" / "rank1.tsv").read_text().splitlines()[0]
    indices = [[int(index) for index in row.split("\t")[1:]] for row in (line, other)]
    files, length = runs / "paths" / "train" / "shortest_path-00000.npy", cfg.model.max_sequence_length
    tokens = np.fromfile(files, dtype="<u2").reshape(-1, length)
    learned = np.fromfile(files.with_suffix(".label_mask"), dtype="?").reshape(-1, length)
    assert learned[indices[0]].sum() != learned[indices[1]].sum()
    losses = []
    for index in indices[0] + indices[1]:
        ids = torch.from_numpy(tokens[index].astype(np.int64))
        log_probabilities = model(ids[None]).logits[0].log_softmax(dim=-1)
        losses += [-log_probabilities[t - 1, ids[t]] for t in range(1, len(ids)) if learned[index, t]]
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.stack([parameter.grad.square().sum() for parameter in model.parameters()]).sum().sqrt()
    for way in WAYS:
        row = metrics_of(runs / f"dense-{way}")[1]
        assert row["train/CrossEntropyLoss"] == pytest.approx(loss.item(), abs=1e-5)
        assert row["optim/total_grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("way", ["fsdp", "ddp"])
def test_ranks_measure_what_one_process_does(runs: Path, way: str) -> None:
    """101 queries on two ranks: one of them is decoded twice and counted once."""
    expected, found = evaluations(runs / "book-one"), evaluations(runs / f"book-{way}")
    assert [row["step"] for row in found] == [1, 2]
    for row, wanted in zip(found, expected, strict=True):
        assert row["measurements"] == wanted["measurements"]
        assert [one["examples"] for one in row["measurements"]] == [101, 101]
    assert 0 < found[0]["eval/phone_book/digit_accuracy"] < 0.2


def test_a_row_of_an_evaluation(runs: Path) -> None:
    rows = evaluations(runs / "paths-evaluated")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        values = {one["metric"]: one for one in row["measurements"]}
        assert {f"eval/shortest_path/{metric}": one["value"] for metric, one in values.items()} == {
            key: value for key, value in row.items() if key.startswith("eval/")
        }
        assert {one["task"] for one in row["measurements"]} == {"shortest_path"}
        outcomes = ("right", "longer", "invalid_edge", "wrong_end", "malformed")
        assert sum(values[outcome]["value"] for outcome in outcomes) == pytest.approx(1)
        assert all(0 <= one["standard_error"] <= 0.5 for one in values.values())


def test_evaluation_leaves_no_trace_in_training(runs: Path) -> None:
    """Dropout would fall otherwise if the evaluation drew a random number, or left the model in eval mode."""
    watched, unwatched = losses_of(runs / "paths-evaluated"), losses_of(runs / "paths-unwatched")
    assert watched == unwatched


def test_a_small_model_memorizes_a_small_book(tmp_path: Path) -> None:
    book = make_data(tmp_path / "book", "phone_book", size=64, test_size=64)
    config = REPOSITORY / "configs" / "synthetic" / "tiny_dense.yaml"
    options = {
        "data_folder": book,
        "save_folder": tmp_path / "run",
        "global_train_batch_size": 64,
        "max_duration": 400,
        "scheduler.t_warmup": 40,
        "eval_interval": 200,
        "save_interval": "null",
    }
    train(config, *[f"--{name}={value}" for name, value in options.items()])
    rows = evaluations(tmp_path / "run")
    assert [row["step"] for row in rows] == [200, 400]
    assert rows[-1]["eval/phone_book/accuracy"] > 0.9

    # killed after its last checkpoint and before its last evaluation, it makes up for that and trains no more
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert "eval/" in lines[-1]
    metrics.write_text("".join(lines[:-1]))
    train(config, *[f"--{name}={value}" for name, value in options.items()], "--try_load_latest_save=true")
    again = metrics.read_text().splitlines()
    assert len(again) == len(lines)
    assert json.loads(again[-1])["step"] == 400
    assert json.loads(again[-1])["measurements"] == rows[-1]["measurements"]
