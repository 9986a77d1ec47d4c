"""The grid as data, as a command and as the committed configs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.grid import Run, grid, main, quickstart, synthetic_grid, synthetic_run

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs"
RUNS = [*grid(), *quickstart()]


def read_config(run: Run) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{run.name}.yaml").read_text(encoding="utf-8"))


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_the_models_of_the_paper() -> None:
    points = {(run.width, run.experts) for run in grid()}
    dense = {(width, 0) for width in (256, 512, 1024, 2048, 4096)}
    moe = {(width, experts) for width in (256, 512, 1024) for experts in (8, 16, 32, 64)}
    assert points == dense | moe | {(256, 256)}
    assert len(grid()) == len(points) == 18
    assert [run.name for run in grid() if run.experts == 256] == ["moe_d256_e256"]


def test_committed_configs_are_what_the_grid_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write", str(tmp_path / "new" / "folder")]) == 0
    root = tmp_path / "new" / "folder"
    written = sorted(path.relative_to(root) for path in root.rglob("*.y*ml"))
    assert sorted(capsys.readouterr().out.split()) == [str(root / path) for path in written]
    assert written == sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.y*ml"))
    runs = [*RUNS, *synthetic_grid()]
    assert set(written) == {Path(run.folder, f"{run.name}.yaml") for run in runs}
    for path in written:
        assert (root / path).read_bytes() == (CONFIGS / path).read_bytes(), path


def test_json() -> None:
    rows = json.loads(run_python("-m", "olmoe_parrots.grid", "--json"))
    assert [row["name"] for row in rows] == [run.name for run in grid()]
    keys = ("name", "width", "experts", "total_params", "active_params", "non_embedding_params", "flops_per_token")
    for row, run in zip(rows, grid(), strict=True):
        shape = run.shape()
        counts = shape.total_params(), shape.active_params(), shape.non_embedding_params(), shape.flops_per_token()
        assert tuple(row[key] for key in keys) == (run.name, run.width, run.experts, *counts)
        assert row["tokens"] == 60_000 * 512 * 2_048
    by_name = {row["name"]: row for row in rows}
    for experts in (8, 16, 32, 64):
        active = by_name[f"moe_d512_e{experts}"]["active_params"] - 20 * 512 * experts
        assert active == by_name["moe_d512_e8"]["active_params"] - 20 * 512 * 8
    # the point of that point: as large as the dense model of eight times the width
    assert by_name["moe_d256_e256"]["total_params"] == pytest.approx(by_name["dense_d2048"]["total_params"], rel=0.25)


def test_table() -> None:
    table = run_python("-m", "olmoe_parrots.grid")
    for run in grid():
        (line,) = (line for line in table.splitlines() if f" {run.name} " in line)
        assert f"{run.shape().total_params() / 1e6:,.1f}M" in line
        assert f"{run.shape().active_params() / 1e6:,.1f}M" in line
        assert "62.9B" in line and "…" not in line


@pytest.mark.parametrize("argument", ["--json", "--write", "--help"])
def test_the_command_is_cheap_to_import(argument: str, tmp_path: Path) -> None:
    arguments = [argument, str(tmp_path)] if argument == "--write" else [argument]
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['grid', *{arguments!r}]\n"
        "try: runpy.run_module('olmoe_parrots.grid', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', sorted({'torch', 'olmo', 'numpy', 'omegaconf'} & set(sys.modules)))\n"
    )
    assert run_python("-c", code).splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("run", grid(), ids=lambda run: run.name)
def test_training_is_the_papers(run: Run) -> None:
    config = read_config(run)
    assert config["max_duration"] == 60_000
    assert config["global_train_batch_size"] == 512
    assert config["model"]["max_sequence_length"] == 2_048
    scheduler, optimizer = config["scheduler"], config["optimizer"]
    assert (scheduler["name"], scheduler["t_warmup"], scheduler["alpha_f"]) == ("linear_with_warmup", 12_000, 0.0)
    assert scheduler.get("units", "steps") == "steps"
    assert (optimizer["name"], optimizer["learning_rate"], optimizer["weight_decay"]) == ("adamw", 1e-3, 0.1)
    assert optimizer["betas"] == [0.9, 0.95] and optimizer["eps"] == 1e-8
    assert config["distributed_strategy"] == "fsdp"
    # numbers, not words: YAML reads 1e-08 without a point as text
    assert all(isinstance(optimizer[key], float) for key in ("learning_rate", "weight_decay", "eps"))


@pytest.mark.parametrize("run", grid(), ids=lambda run: run.name)
def test_model_is_the_papers(run: Run) -> None:
    model = read_config(run)["model"]
    assert (model["n_layers"], model["d_model"], model["mlp_hidden_size"]) == (20, run.width, run.width)
    assert model["n_heads"] * 64 == run.width
    assert (model["activation_type"], model["weight_tying"], model["include_bias"]) == ("gelu", True, False)
    assert model["vocab_size"] == model["embedding_size"] == 32_000
    if run.experts:
        assert (model["block_type"], model["moe_num_experts"], model["moe_top_k"]) == ("moe", run.experts, 2)
        assert model["moe_dropless"] is True
    else:
        assert model["block_type"] == "sequential"
        assert not any(key.startswith("moe_") for key in model)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shape_of_the_loaded_config(run: Run) -> None:
    pytest.importorskip("olmo")
    from olmoe_parrots.config import load_train_config

    model = load_train_config(str(CONFIGS / f"{run.name}.yaml"), validate_paths=False).model
    shape, planned = ModelShape.from_config(model), run.shape()
    for count in ("total_params", "active_params", "non_embedding_params", "flops_per_token", "checkpoint_bytes"):
        assert getattr(shape, count)() == getattr(planned, count)()
    assert run.tokens == run.steps * run.batch_size * shape.sequence_length
    header = (CONFIGS / f"{run.name}.yaml").read_text(encoding="utf-8").splitlines()[1:3]
    assert header[0].startswith(f"# {shape.total_params():,} parameters, {shape.active_params():,} active")
    assert (
        header[1]
        == f"# {shape.flops_per_token():,} forward and backward FLOPs per token; {run.tokens:,} training tokens."
    )


def test_quickstart_twins_differ_in_their_experts_alone() -> None:
    moe, dense = quickstart()
    routers = moe.layers * moe.width * moe.experts
    assert moe.shape().active_params() - routers == dense.shape().active_params() == dense.shape().total_params()
    assert moe.shape().total_params() > moe.shape().active_params()
    ours, twin = read_config(moe), read_config(dense)
    model, twin_model = ours.pop("model"), twin.pop("model")
    assert ours.pop("run_name") != twin.pop("run_name")
    assert ours == twin
    differing = {key for key in model if model[key] != twin_model.get(key)}
    assert {key for key in differing if not key.startswith("moe_")} == {"block_type", "mlp_hidden_size"}


# The synthetic tasks.


def test_the_models_of_the_synthetic_tasks() -> None:
    points = [(run.width, run.experts) for run in synthetic_grid() if run.of_paper]
    assert len(points) == len(set(points)) == 12
    assert {width for width, experts in points if not experts} == {256, 512, 1024, 2048}
    assert {point for point in points if point[1]} == {(d, e) for d in (256, 512) for e in (8, 16, 32, 64)}


@pytest.mark.parametrize("run", synthetic_grid(), ids=lambda run: run.name)
def test_a_config_of_the_synthetic_tasks(run: Run) -> None:
    config = yaml.safe_load((CONFIGS / "synthetic" / f"{run.name}.yaml").read_text(encoding="utf-8"))
    model = config["model"]
    assert (model["d_model"], model["activation_type"], model["layer_norm_type"]) == (run.width, "swiglu", "rms")
    assert model["mlp_hidden_size"] == 2 * run.width, "two halves of the intermediate dimension d"
    assert model["rope"] and model["weight_tying"] and not model["include_bias"]
    if run.of_paper:
        assert (model["n_layers"], model["n_heads"] * 64) == (12, run.width)
    if run.experts:
        assert (model["block_type"], model["moe_num_experts"]) == ("moe", run.experts)
        assert (model["moe_top_k"], model["moe_normalize_expert_weights"]) == (2, True)
    scheduler = config["scheduler"]
    assert scheduler["t_warmup"] * 5 == config["max_duration"] == config["save_interval_unsharded"]
    assert config["evaluators"] == [{"label": "${manifest:${data_folder},mixture.task}", "type": "synthetic"}]


def test_top_1_keeps_its_routers_weight() -> None:
    """Divided by itself it would be 1, and the task's loss would have no gradient for the router."""
    assert not synthetic_run("moe", 64, 8, top_k=1).normalize_expert_weights
    assert all(synthetic_run("moe", 64, 8, top_k=k).normalize_expert_weights for k in (2, 4, 8))


@pytest.mark.parametrize("gated, published", [(False, 41.5), (True, 47.8)])
def test_the_published_42_million_active_parameters(gated: bool, published: float) -> None:
    """Of L=12, d=512, top-2, norms and router left out: they fit two plain matrices and 32,000 tokens."""
    d, layers, vocabulary, matrices = 512, 12, 32_000, 3 if gated else 2
    by_hand = layers * (4 + 2 * matrices) * d**2 + vocabulary * d
    run = synthetic_run("moe_d512_e16", d, 16, gated=gated, vocabulary=vocabulary, sequence_length=280)
    small = (2 * layers + 1) * d + layers * d * 16
    assert run.shape().active_params() - small == by_hand
    assert int(by_hand / 1e5) / 10 == published


def test_shape_of_a_loaded_config_of_the_synthetic_tasks(tmp_path: Path) -> None:
    """The counts in its header, and those of the model for its task."""
    pytest.importorskip("olmo")
    from synthetic_data import TASKS, make_data

    from olmoe_parrots.config import load_train_config

    for name, task in TASKS.items():
        folder = make_data(tmp_path / name, name, test_size=8)
        for run in synthetic_grid():
            path = CONFIGS / "synthetic" / f"{run.name}.yaml"
            shape = ModelShape.from_config(load_train_config(str(path), [f"data_folder={folder}"]).model)
            words = len(task.vocabulary.words)
            planned = run.shape(words, task.row_length)
            for count in ("total_params", "active_params", "flops_per_token", "checkpoint_bytes"):
                assert getattr(shape, count)() == getattr(planned, count)()
            counts = path.read_text(encoding="utf-8").splitlines()[2].removeprefix("# ").replace(",", "").split()
            total, active, each = int(counts[0]), int(counts[2]), int(counts[5])
            assert shape.total_params() == total + each * words
            assert shape.active_params() == active + each * words
            assert shape.non_embedding_params() == total
