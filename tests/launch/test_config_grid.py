"""Grids of configs: which runs a file means, what it may not say, and what a run may not go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, TINY_RUN
from grid_maker import make_grid, write_config, write_grid

from launch.__main__ import main
from launch.config_grid_file import is_grid, load_grid
from olmoe_parrots.errors import InputError
from olmoe_parrots.grid import grid


@pytest.fixture
def configs(tmp_path: Path, shards: Path) -> Path:
    """A folder of two configs."""
    for name in ("e8", "e16"):
        write_config(tmp_path / "configs" / f"{name}.yaml", shards)
    return tmp_path / "configs"


def test_the_runs_are_configs_by_variants_by_seeds(configs: Path, tmp_path: Path) -> None:
    entry = {"configs": [f"{configs}/*.yaml"], "seeds": [3, 4], "overrides": {"optimizer.learning_rate": 0.5}}
    made = make_grid(tmp_path, [entry], variants={"a": {"max_duration": 7}, "b": {"optimizer.eps": 0.25}})
    names = [job.name for job in made.jobs]
    assert names == [f"{c}_{v}_s{s}" for c in ("e8", "e16") for v in "ab" for s in (3, 4)]
    config = made.jobs[0].config
    assert (config["run_name"], config["seed"], config["max_duration"]) == ("e8_a_s3", 3, 7)
    assert config["optimizer"] == {**TINY_RUN["optimizer"], "learning_rate": 0.5}
    assert config["save_folder"] == str(tmp_path / "output" / "runs" / "e8_a_s3")
    assert made.jobs[2].config["optimizer"]["eps"] == 0.25
    assert made.jobs[2].steps == TINY_RUN["max_duration"]


def test_an_entry_has_its_own_settings_and_the_files_where_it_has_none(configs: Path, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"configs": [f"{configs}/e8.yaml"], "nodes": 2, "slurm": {"time": "10"}, "device_tokens_per_second": {"e8": 5}},
        {"configs": [f"{configs}/e16.yaml"]},
    ]
    shared = {"nodes": 4, "gpus_per_node": 8, "seeds": 1, "slurm": {"partition": "p", "time": "20"}}
    first, second = make_grid(tmp_path, entries, **shared).jobs
    assert (first.ranks, second.ranks) == (16, 32)
    assert (first.slurm.partition, first.slurm.time) == ("p", "10")
    assert (second.slurm.partition, second.slurm.time) == ("p", "20")
    assert (first.device_tokens_per_second, second.device_tokens_per_second) == (5, None)


def test_a_written_config_is_what_the_overrides_make_of_the_source(configs: Path, tmp_path: Path) -> None:
    """OLMo reads the same from the file that a job trains as from the source with overrides on the command line."""
    from olmoe_parrots.config import load_train_config

    overrides = {"optimizer.betas": [0.5, 0.25], "wandb": None, "model.d_model": 16, "max_duration": "64T"}
    (job,) = make_grid(tmp_path, [{"configs": [f"{configs}/e8.yaml"], "overrides": overrides, "seeds": 5}]).jobs
    job.write_config()
    written, overridden = load_train_config(str(job.config_path)), job.load()
    assert written.asdict() == overridden.asdict()
    assert (written.model.d_model, written.seed, written.run_name) == (16, 5, "e8_s5")
    assert written.optimizer.betas == (0.5, 0.25)
    assert job.steps == 1, "64 tokens are half a batch"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sed": 1}, "sed: there is no such key; did you mean seeds?"),
        ({"nodes": 0}, "nodes: 0 cannot be used"),
        ({"configs": ["none/*.yaml"]}, "no file matches it"),
        ({"configs": []}, "configs: it is missing"),
        ({"overrides": {"seed.x": 1}}, "seed is no section of the config"),
        ({"slurm": {"time": 86400}}, "put it in quotes"),
        ({"slurm": {"time": "soon"}}, "days-hours:minutes:seconds"),
        ({"slurm": {"partion": "p"}}, "did you mean partition?"),
        ({"slurm": {"environment": {"A B": 1}}}, "give the name of a variable"),
        ({"slurm": {"template": "none.sh"}}, "a copy of"),
        ({"variants": {"a/b": {}}}, "part of a folder's name"),
        ({"mfu": 1.5}, "mfu: 1.5 cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_by_name(configs: Path, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        make_grid(tmp_path, [{"configs": [f"{configs}/e8.yaml"], **keys}])


def test_a_run_that_stands_twice_and_a_gpu_that_is_not_known_are_refused(configs: Path, tmp_path: Path) -> None:
    entry = {"configs": [f"{configs}/e8.yaml"]}
    with pytest.raises(InputError, match="the run e8 stands twice"):
        make_grid(tmp_path, [entry, entry])
    with pytest.raises(InputError, match="peak_flops: that of B1 is not known"):
        make_grid(tmp_path, [entry], gpu={"name": "B1"})
    gpu = make_grid(tmp_path, [entry], gpu={"name": "B1", "peak_flops": 1e15, "memory_gb": 10}).gpu
    assert gpu is not None and gpu.memory_bytes == 1e10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"overrides": {"optimizer.learning_rat": 1}}, r"did you mean optimizer.learning_rate\?"),
        ({"gpus_per_node": 3}, "global_train_batch_size=8 does not divide among 3 GPUs"),
    ],
)
def test_what_olmo_or_the_gpus_refuse_is_refused_before_anything_is_submitted(
    configs: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    path = write_grid(tmp_path, [{"configs": [f"{configs}/e8.yaml"], **keys}])
    for command in ("plan", "slurm", "local"):
        with pytest.raises(InputError, match=message):
            main([command, str(path)])
    assert not (tmp_path / "output").exists()


def test_a_run_does_not_go_on_with_another_training(configs: Path, tmp_path: Path) -> None:
    entry = {"configs": [f"{configs}/e8.yaml"]}
    (before,) = make_grid(tmp_path, [entry]).jobs
    before.write_config()
    (changed,) = make_grid(tmp_path, [{**entry, "overrides": {"optimizer.learning_rate": 0.5}}]).jobs
    changed.refuse_changes()  # nothing was trained yet
    (before.folder / "step2").mkdir(parents=True)
    with pytest.raises(InputError, match=r"begun with optimizer.learning_rate 0.01, and the sweep now says 0.5"):
        changed.refuse_changes()
    (same,) = make_grid(tmp_path, [{**entry, "overrides": {"device_train_microbatch_size": 2}}]).jobs
    same.refuse_changes()  # decides nothing but speed and memory


def test_the_shipped_grid_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = Path("launch/sweeps/paper_grid.yaml")
    assert is_grid(path) and not is_grid(Path("launch/sweeps/miniature.yaml"))
    jobs = load_grid(path).jobs
    wanted = {f"{run.name}_{data}" for run in grid() for data in ("natural_language", "math")}
    assert {job.name for job in jobs} == wanted and len(jobs) == 36
    for job in jobs:
        assert job.config["data_folder"] == ("data/math" if job.name.endswith("math") else "data/natural_language")
        source = yaml.safe_load(job.source.read_text(encoding="utf-8"))
        assert json.dumps(job.config["model"]) == json.dumps(source["model"])
        assert job.steps == 60_000
