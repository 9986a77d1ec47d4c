"""The benchmark of scaling: its fit, and runs of one round on few points."""

import io
import json
import math
import statistics
from pathlib import Path

import pytest
import scaling
import torch.distributed as dist


def test_the_fit_finds_the_exponent_of_a_power() -> None:
    assert scaling.exponent([2, 4, 32], [7 * x**1.5 for x in (2, 4, 32)]) == pytest.approx(1.5)


def test_flops_of_a_layer_grow_as_tokens_and_nearly_as_the_square_of_the_width() -> None:
    def grown(point: scaling.Point) -> float:
        return scaling.layer_flops(point) / scaling.layer_flops(scaling.Point(experts=2))

    assert grown(scaling.Point(tokens=8192, experts=2)) == 2
    assert 3.9 < grown(scaling.Point(d=512, experts=2)) < 4


def test_a_row_of_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SHORT", {"layer": [scaling.Study("tokens", (64, 2048))]})
    scaling.main(["--short", "--rounds", "2", "--output", str(tmp_path)])
    (row,) = [json.loads(line) for line in (tmp_path / "scaling.jsonl").read_text().splitlines()]
    assert row["exponent_of_flops"] == pytest.approx(1)
    assert [len(seconds) for seconds in row["seconds"]] == [2, 2]
    times = [statistics.median(seconds) for seconds in row["seconds"]]
    assert row["exponent"] == pytest.approx(math.log(times[1] / times[0]) / math.log(2048 / 64))
    assert "| tokens | 64, 2,048 |" in (tmp_path / "scaling.md").read_text()


def test_a_worker_takes_a_step_for_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.write_tokens(tmp_path, 4096, 100)
    sizes = ("n_layers=1", "d_model=32", "mlp_hidden_size=32", "vocab_size=100", "embedding_size=100")
    told = {"config": "moe_d256_e8", "sequences": 2, "length": 16, "overrides": [f"model.{size}" for size in sizes]}
    monkeypatch.setattr("sys.stdin", io.StringIO("step\nstep\n"))
    try:
        scaling.work({**told, "folder": str(tmp_path), "run": str(tmp_path / "run"), "strategy": "ddp"})
    finally:
        dist.destroy_process_group()
    assert capsys.readouterr().out.splitlines()[-3:] == ["ready"] * 3  # once built, and after each step
