"""Every shipped config trains a step: its own widths, experts and options, with a layer, short sequences, few words."""

import json
import math
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, free_port, train_many, write_shards
from synthetic_data import TASKS, make_data

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SYNTHETIC = sorted((REPOSITORY / "configs" / "synthetic").glob("*.yaml"))
WORDS = 2_000
SMALLER = [
    "model.n_layers=1",
    "global_train_batch_size=2",
    "device_train_microbatch_size=1",
    "max_duration=1",
    "console_log_interval=1",
    "save_interval_unsharded=null",
    "save_num_checkpoints_to_keep=0",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each config trained by the command with the same overrides, in one process."""
    root = tmp_path_factory.mktemp("shipped")
    shards = write_shards(root / "data", vocabulary=WORDS)
    text = [f"data_folder={shards}", "model.max_sequence_length=16", "evaluators=[]"]
    text += [f"model.vocab_size={WORDS}", f"model.embedding_size={WORDS}"]
    arguments = [_argument(root / config.stem, config, text) for config in CONFIGS]
    for number, config in enumerate(SYNTHETIC):
        name = list(TASKS)[number % 2]
        data = make_data(root / name, name, test_size=8)
        arguments.append(_argument(root / "synthetic" / config.stem, config, [f"data_folder={data}"]))
    train_many(1, arguments)
    return root


def _argument(folder: Path, config: Path, overrides: list[str]) -> str:
    options = [f"--{override}" for override in [*SMALLER, *overrides, f"save_folder={folder}"]]
    return " ".join([f"{free_port()}:{config}", *options])


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains(runs: Path, config: Path) -> None:
    rows = [json.loads(line) for line in (runs / config.stem / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]
    assert abs(rows[0]["train/CrossEntropyLoss"] - math.log(WORDS)) < 1.2, "near ln V before anything is learned"
    assert ("train/LoadBalancingLoss" in rows[0]) == config.stem.startswith(("moe", "quickstart_moe"))


@pytest.mark.slow
@pytest.mark.parametrize("config", SYNTHETIC, ids=lambda path: path.stem)
def test_a_config_of_the_synthetic_tasks_trains_and_is_evaluated(runs: Path, config: Path) -> None:
    """Each on one of the two tasks, which decides its vocabulary and the length of its sequences."""
    name = list(TASKS)[SYNTHETIC.index(config) % 2]
    folder = runs / "synthetic" / config.stem
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1]
    words = len(TASKS[name].vocabulary.words)
    assert abs(rows[0]["train/CrossEntropyLoss"] - math.log(words)) < 1, "near ln V before anything is learned"
    assert ("train/LoadBalancingLoss" in rows[0]) == ("moe" in config.stem)
    assert 0 <= rows[1][f"eval/{name}/" + {"phone_book": "accuracy", "shortest_path": "right"}[name]] <= 1
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["run_name"] == f"{name}_{config.stem}"
    assert (saved["model"]["vocab_size"], saved["model"]["max_sequence_length"]) == (words, TASKS[name].row_length)
    assert saved["model"]["embedding_size"] == words
