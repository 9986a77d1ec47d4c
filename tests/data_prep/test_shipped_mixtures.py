"""The shipped mixtures from end to end: local files in each source's own schema, shards, verification, training."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import metrics_of, train

sys.path.insert(0, str(Path(__file__).parent))
from make_sources import make_sources, raised

from data_prep.__main__ import main
from data_prep.mixture import Validation, load_mixture
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest

TOKENS, SEQUENCE = 500_000, 128
OPTIONS = ["--sequence-length", str(SEQUENCE), "--validation-sequences", "100", "--shard-megabytes", "0.5"]


@pytest.fixture(scope="module", params=["natural_language", "math"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture scaled down, its smallest shares raised to a percent so that they are more than a document."""
    folder = tmp_path_factory.mktemp(request.param)
    mixture = replace(raised(load_mixture(request.param), 0.01), validation=Validation(100, SEQUENCE))
    make_sources(folder / "local", mixture, TOKENS)
    (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture.scaled(TOKENS).as_dict(), sort_keys=False))
    command = [str(folder / "mixture.yaml"), "--local", str(folder / "local"), "--output", str(folder / "data")]
    assert main([*command, *OPTIONS, "--processes", "2"]) == 0
    return folder / "data"


@pytest.mark.slow
def test_every_source_comes_within_a_percent_of_its_share(built: Path) -> None:
    assert verify(built) == []
    manifest = Manifest.load(built)
    total = manifest.totals("train")[0]
    assert abs(total - TOKENS) < 0.01 * TOKENS and len(manifest.asked) == len(manifest.sources("train"))
    for source, asked in manifest.asked.items():
        came = manifest.totals("train", source)[0]
        assert abs(came / total - asked["share"]) <= 0.01 * asked["share"], (source, came, asked)
    assert manifest.totals("validation")[0] == 100 * SEQUENCE


@pytest.mark.slow
def test_the_problems_of_the_generalization_gap_are_listed_from_training(built: Path) -> None:
    path = built / "generalization_gap.jsonl"
    if "math0" not in str(built):
        assert not path.exists()
        return
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["group"] for row in rows} == {"math", "gsm8k"}
    assert all(row["question"] and row["expected_answer"] and row["source"] == "open_math_instruct" for row in rows)
    import gzip

    held_out = gzip.decompress((built / "validation" / "open_math_instruct-00000.csv.gz").read_bytes()).decode()
    assert not any(f",{row['document']}," in held_out for row in rows)
    assert len({row["question"] for row in rows}) == len(rows) > 20


@pytest.mark.slow
def test_a_grid_config_trains_on_it(built: Path, tmp_path: Path) -> None:
    """20 steps of a real config of the grid, all of its layers, on short sequences."""
    config = Path("configs/moe_d256_e8.yaml" if "math0" in str(built) else "configs/dense_d256.yaml").absolute()
    options = {
        "data_folder": built,
        "save_folder": tmp_path / "run",
        "model.max_sequence_length": SEQUENCE,
        "global_train_batch_size": 2,
        "device_train_microbatch_size": 2,
        "precision": "fp32",
        "max_duration": 20,
        "scheduler.t_warmup": 4,
        "console_log_interval": 1,
        "eval_interval": 1000,
        "save_interval": 1000,
        "save_interval_unsharded": "null",
        "evaluators": "[]",
    }
    train(config, *(f"--{key}={value}" for key, value in options.items()))
    losses = [row["train/CrossEntropyLoss"] for _, row in sorted(metrics_of(tmp_path / "run").items())]
    assert len(losses) == 20 and losses[0] > 9.5 and min(losses[-5:]) < losses[0] - 1
