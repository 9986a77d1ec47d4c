"""The command: what it writes, what it leaves alone and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, start_train, write_shards
from synthetic_data import make_data

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.routing_measures import SUMMARIES
from olmoe_parrots.results import read_rows
from olmoe_parrots.routing import main

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
PICTURES = ("load", "share_by_frequency_band", "co_activation", "specialization")
LAYERS, TOP_K, LENGTH = 2, 2, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data, and of a MoE and a dense run on it of two steps each."""
    root = tmp_path_factory.mktemp("routing")
    data = write_shards(root / "data")
    started = []
    for kind, model in (("moe", TINY_MOE), ("dense", {})):
        config = {**TINY_RUN, "data_folder": str(data), "save_folder": str(root / kind), "max_duration": 2}
        config |= {
            "model": {**TINY_MODEL, **model},
            "data": {"paths": [str(data / "train" / "0000.npy")], "drop_last": True},
        }
        (root / f"{kind}.yaml").write_text(yaml.safe_dump(config))
        started.append(start_train(root / f"{kind}.yaml"))
    for run in started:
        output, _ = run.communicate()
        assert run.returncode == 0, output
    return root


def measure(root: Path, *options: str) -> list[dict]:
    """Run the command on the MoE; its rows."""
    output = root / "output"
    assert main([str(root / "moe"), str(root / "data"), "--output", str(output), *options]) == 0
    return [json.loads(line) for line in (output / "routing.jsonl").read_text().splitlines()]


def test_rows_pictures_and_results(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = root / "results.jsonl"
    about, *rows = measure(root, "--sequences", "40", "--results", str(results))
    assert (about["split"], about["step"], about["sequences"]) == ("validation", 2, 40)
    assert about["tokens"] == 40 * LENGTH
    loads = [row for row in rows if row["measurement"] == "load"]
    assert [sum(row["counts"]) for row in loads] == [40 * LENGTH * TOP_K] * LAYERS
    names = {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")} | {"routing.jsonl"}
    assert {path.name for path in (root / "output").iterdir()} == names
    printed = capsys.readouterr().out
    assert "40 sequences, 640 tokens" in printed
    found = {row.metric: row for row in read_rows(results)}
    by_layer = {(row["measurement"], row["layer"]): row["value"] for row in rows if row["measurement"] in SUMMARIES}
    metrics = {name for name, _ in by_layer}
    assert set(found) == metrics | {f"{name}/layer_{layer}" for name, layer in by_layer}
    assert metrics >= {"load_entropy", "load_max_over_mean", "router_entropy", "token_specialization"}
    for (name, layer), value in by_layer.items():
        assert found[f"{name}/layer_{layer}"].value == value
        assert found[name].value == pytest.approx((by_layer[name, 0] + by_layer[name, 1]) / 2)
    row = found["load_entropy"]
    assert (row.task, row.split, row.step) == ("routing", "validation", 2)
    assert row.checkpoint == str(root / "moe" / "step2")
    assert row.training_tokens == 2 * 8 * LENGTH
    assert row.architecture["experts"] == 4


def test_given_again_only_what_is_missing_is_done(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, output = root / "again.jsonl", root / "output"
    options = ["--sequences", "40", "--results", str(results)]
    measure(root, *options)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    lines = results.read_text().splitlines(keepends=True)
    (output / "load.png").unlink()
    for name in ("load.svg", "specialization.png"):
        (output / name).write_text("mine")
    results.write_text("".join(lines[:-3]))
    capsys.readouterr()
    measure(root, *options)
    assert "is measured already" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in output.iterdir()}
    assert after == before | {"load.svg": b"mine", "specialization.png": b"mine"}
    assert sorted(row.metric for row in read_rows(results)) == sorted(json.loads(line)["metric"] for line in lines)


def test_other_options_do_not_replace_a_measurement(root: Path) -> None:
    measure(root, "--sequences", "40")
    with pytest.raises(InputError, match=r"measured otherwise .asked 40 there and 24 here.; name another --output"):
        measure(root, "--sequences", "24")
    about, *_ = measure(root, "--sequences", "24", "--overwrite")
    assert about["sequences"] == 24
    measure(root, "--sequences", "40", "--overwrite")


def test_unless_told_otherwise_rows_lie_beside_the_checkpoint_and_are_of_the_whole_split(root: Path) -> None:
    assert main([str(root / "moe"), str(root / "data"), "--split", "train", "--batch-size", "100"]) == 0
    lines = (root / "moe" / "routing-step2-train" / "routing.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["sequences"] == 4096 // LENGTH


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["moe", "data", "--sequences", "257"], "257 were asked for and validation has 256 of 16 tokens"),
        (["moe", "data", "--split", "test"], "it has no split test; give --split train or validation"),
        (["moe", "data", "--sequences", "0"], "--sequences: 0 is below 1"),
        (["moe", "moe"], "there is no manifest"),
        (["dense", "data"], "the model is dense: it has no experts"),
        (["moe", "book"], "the vocabulary_size of its tokenizer phone_book is 39 and the model's is 128"),
        (["nothing", "data"], "this is not a checkpoint folder"),
    ],
)
def test_bad_input_is_one_line(root: Path, arguments: list[str], told: str) -> None:
    if not (root / "book").exists():
        make_data(root / "book", "phone_book", size=32, test_size=8)
    paths = [str(root / name) for name in arguments[:2]]
    with pytest.raises(InputError) as error:
        main([*paths, *arguments[2:], "--output", str(root / "refused")])
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not (root / "refused").exists()


def test_help_is_there_at_once() -> None:
    code = "import sys, olmoe_parrots.routing; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
