"""Rates of a benchmark in a plan, and which of several sources of a rate is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grid_maker import make_grid, write_config, write_grid

from launch.__main__ import main
from launch.costs import cost_of
from launch.rates import read_rates
from olmoe_parrots.errors import InputError

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def _file(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(config: str, rate: float, device: str = H100, **more: Any) -> dict[str, Any]:
    return {"config": config, "device": device, "tokens_per_second_per_device": rate, **more}


def test_a_median_counts_before_single_measurements_and_the_last_of_them(tmp_path: Path) -> None:
    rows = [_row("a", 10), _row("a", 30), _row("a", 11), _row("b", 5), _row("b", 7, median=6), _row("b", 9)]
    rows += [_row("c", 4, median=True), _row("c", 8), _row("a", 100, A100), {"seconds": 3}]
    rates = read_rates(_file(tmp_path / "r.jsonl", *rows))
    assert [rates.of(name, "H100") for name in "abcd"] == [11, 6, 4, None]
    assert rates.of("a", "A100") == 100 and rates.of("b", "A100") is None
    with pytest.raises(InputError, match="has rates of NVIDIA A100-SXM4-80GB, NVIDIA H100 80GB HBM3, and the sweep"):
        rates.of("a", None)
    assert read_rates(_file(tmp_path / "one.jsonl", _row("a", 10))).of("a", None) == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1: this is not JSON"),
        (json.dumps(_row("a", -1)), "line 1: tokens_per_second_per_device: -1 is not a rate"),
        (json.dumps(_row("a", 1, median="x")), "line 1: median: 'x' is not a rate"),
        (json.dumps({"config": "a", "median": 1}), "line 1: device: None is not a name"),
    ],
)
def test_rows_that_tell_no_rate_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(InputError, match=said):
        read_rates(tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_rates(tmp_path / "none.jsonl")


def test_given_measured_benchmark_and_assumed_in_that_order(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("given", "ran", "bench", "nothing"):
        write_config(tmp_path / f"{name}.yaml", shards)
    file = _file(tmp_path / "r.jsonl", *(_row(name, 3600.0) for name in ("given", "ran", "bench")))
    entry: dict[str, Any] = {
        "configs": [f"{tmp_path}/*.yaml"],
        "device_tokens_per_second": {"given": 100.0},
    }
    (tmp_path / "sweep").mkdir()
    gpu = {"name": "H100", "mfu": 0.5, "rates": str(file)}
    grid = make_grid(tmp_path / "sweep", [entry], gpu=gpu)
    ran = next(job for job in grid.jobs if job.name == "ran")
    ran.folder.mkdir(parents=True)
    row = {"step": 1, "tokens": 1, "throughput/device_tokens_per_second": 200.0}
    (ran.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    costs = {job.name: cost_of(job, grid.gpu, read_rates(file)) for job in grid.jobs}
    assert {name: cost.rate_source for name, cost in costs.items()} == {
        "given": "given",
        "ran": "measured",
        "bench": "benchmark",
        "nothing": "assumed",
    }
    assert costs["bench"].hours == pytest.approx(costs["bench"].tokens / 3600 / 3600)
    main(["plan", str(tmp_path / "sweep" / "sweep.yaml")])
    told = capsys.readouterr().out
    assert "b benchmark:" in told
    (line,) = (line for line in told.splitlines() if "bench " in line and "│" in line)
    assert " b0.0 " in line
    other = _file(tmp_path / "other.jsonl", _row("bench", 7200.0))
    main(["plan", str(tmp_path / "sweep" / "sweep.yaml"), "--json", "--rates", str(other)])
    rates = {run["name"]: run["device_tokens_per_second"] for run in json.loads(capsys.readouterr().out)}
    assert (rates["bench"], rates["ran"]) == (7200, 200)


def test_a_changed_model_has_not_been_measured(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "a.yaml", shards)
    file = _file(tmp_path / "r.jsonl", _row("a", 3600.0))
    entry = {"configs": [str(config)], "overrides": {"model.n_layers": 1}}
    path = write_grid(tmp_path / "sweep", [entry], gpu={"name": "H100", "rates": str(file)})
    main(["plan", str(path)])
    told = capsys.readouterr().out
    assert "no hours are of" in told and "~0.0" in told
