"""The benchmark of memory on a small case, against parameters that are counted and a peak that is known."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import memory
import pytest

SMALL = ("model.n_layers=2", "model.d_model=64", "model.mlp_hidden_size=64", "model.vocab_size=2000")
CASE = memory.Case("moe_d256_e8", 2, 64, overrides=(*SMALL, "model.embedding_size=2000"))
MAPPED = dataclasses.replace(CASE, allocator="mapped")


def test_a_row_has_the_peak_beside_the_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUPS", {"allocator": [CASE, MAPPED]})
    memory.main(["--rounds", "1", "--output", str(tmp_path), "allocator"])
    row, mapped = [json.loads(line) for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    # embedding, last norm, and by layer attention, norms, router and experts; in weight, gradient and two moments
    parameters = 2000 * 64 + 64 + 2 * (4 * 64**2 + 2 * 64 + 8 * 64 + 8 * 2 * 64**2)
    assert row["state"] == 16 * parameters
    # at least what lies there between steps: weights and moments
    assert 12 * parameters < row["peaks"][0] < 1e9
    assert row["ratios"] == [pytest.approx(row["peaks"][0] / (row["state"] + row["activations"]))]
    report = (tmp_path / "memory.md").read_text()
    time = mapped["seconds"][0] / row["seconds"][0]
    assert f"| {MAPPED.name} |" in report and f"{time:.2f} ({time:.2f} to {time:.2f}) |" in report


def test_the_peak_of_a_process_counts_pages_it_has_given_back() -> None:
    # a process of its own, and pages of the kernel's: in one that has freed memory, a new object may take up old pages
    script = """
import mmap, memory
before = memory.resident("VmRSS")
with mmap.mmap(-1, 256 * memory.MIB) as held:
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    holding = memory.resident("VmRSS")
print(before, holding, memory.resident("VmRSS"), memory.resident("VmHWM"))
"""
    folder = Path(memory.__file__).parent
    printed = subprocess.check_output([sys.executable, "-c", script], cwd=folder, text=True)
    before, holding, after, peak = map(int, printed.split())
    assert holding - before == pytest.approx(256 * memory.MIB, rel=0.05)
    assert after < holding - 200 * memory.MIB
    assert peak == pytest.approx(holding, rel=0.05)
