"""metrics.jsonl, routing statistics, peaks, and the picture drawn from them."""

import json
import math
from pathlib import Path

import pytest

from olmoe_parrots import curves
from olmoe_parrots.errors import InputError
from olmoe_parrots.metrics import MetricsFile, peak_flops, read_metrics, routing_row, rows_by_step


def test_a_torn_row_is_kept_apart_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "tr')
    file = MetricsFile(path)
    file.write({"step": 2, "train/CrossEntropyLoss": 3.0})
    file.close()
    assert path.read_text().startswith('{"step": 1}\n{"step": 2, "tr\n{'), "nothing of what was there is lost"
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_the_last_row_of_a_step_counts() -> None:
    rows = [{"step": 1, "train/CrossEntropyLoss": 2.0}, {"step": 1}, {"step": 1, "train/CrossEntropyLoss": 1.0}]
    assert rows_by_step(rows)[1]["train/CrossEntropyLoss"] == 1.0


def test_routing_of_even_and_of_collapsed_loads() -> None:
    even = routing_row(0, [5.0] * 8)
    assert even["share"] == [0.125] * 8
    assert even["entropy"] == pytest.approx(math.log(8))
    assert even["max_over_mean"] == pytest.approx(1)
    collapsed = routing_row(3, [0.0, 40.0, 0.0, 0.0])
    assert collapsed["layer"] == 3
    assert collapsed["entropy"] == 0
    assert collapsed["max_over_mean"] == pytest.approx(4)


def test_peaks_are_the_data_sheets() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("some CPU") is None


def test_curves_are_drawn_from_the_rows(tmp_path: Path) -> None:
    from matplotlib import image

    for name, routed in (("moe", True), ("dense", False)):
        rows = [{"step": s, "tokens": 8 * s, "train/CrossEntropyLoss": 5.0 / s} for s in (1, 2, 3)]
        if routed:
            rows[-1]["routing"] = [routing_row(0, [1.0, 3.0]), routing_row(1, [2.0, 2.0])]  # type: ignore[assignment]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out" / "curves.png"
    assert curves.main([str(tmp_path / "moe"), str(tmp_path / "dense"), "--output", str(output)]) == 0
    assert image.imread(output).std() > 0.05
    dense_alone = tmp_path / "dense.svg"
    curves.main([str(tmp_path / "dense"), "--output", str(dense_alone)])
    assert "share of tokens" not in dense_alone.read_text()


def test_curves_refuse_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        curves.main([str(tmp_path), "--output", "x.png"])
    with pytest.raises(InputError, match="png"):
        curves.main([str(tmp_path), "--output", "x.gif"])
