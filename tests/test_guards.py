"""Batches that are not finite, and routers that collapse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import start_train, train
from torch import nn

from olmoe_parrots.errors import RunError
from olmoe_parrots.guards import CollapseWatch, FiniteGuard


def _guarded(folder: Path, allowed: int) -> tuple[nn.Module, torch.optim.Optimizer, FiniteGuard]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return model, optimizer, FiniteGuard(optimizer, names, folder, allowed)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, guard: FiniteGuard, number: int, scale: float) -> None:
    optimizer.zero_grad()
    guard.begin(number, {"index": torch.tensor([number, 100 + number])})
    loss = model(torch.ones(4, 3)).square().mean() * scale
    loss.backward()
    guard.expect(loss.detach(), None)
    optimizer.step()


def test_a_batch_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    """Weights and moments go on as in a run that never met it."""
    states = []
    for scales in ([1.0, 1.0, 1.0], [1.0, float("nan"), 1.0, float("inf"), 1.0]):
        model, optimizer, guard = _guarded(tmp_path, allowed=2)
        for number, scale in enumerate(scales):
            _step(model, optimizer, guard, number, scale)
            assert guard.skips_this_step == (scale != 1.0)
        states.append([p.clone() for p in model.parameters()] + [s["exp_avg_sq"] for s in optimizer.state.values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    told = json.loads((tmp_path / "nonfinite" / "step3-rank0.json").read_text())
    assert told == {"step": 3, "losses": ["inf"], "gradients": ["weight", "bias"], "indices": [3, 103]}


def test_one_more_than_allowed_stops_before_the_step(tmp_path: Path) -> None:
    model, optimizer, guard = _guarded(tmp_path, allowed=1)
    _step(model, optimizer, guard, 0, float("nan"))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RunError, match=r"step 1 is not finite \(1 batches were skipped before\)"):
        _step(model, optimizer, guard, 1, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_overflows_counts_though_the_loss_is_finite(tmp_path: Path) -> None:
    model, optimizer, guard = _guarded(tmp_path, allowed=0)
    guard.begin(7, {})
    guard.expect(torch.tensor(1.0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    next(model.parameters()).grad[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(RunError):
        optimizer.step()
    assert json.loads((tmp_path / "nonfinite" / "step7-rank0.json").read_text())["gradients"] == ["weight"]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "ddp"), (2, "fsdp")])
def test_a_run_stops_at_a_batch_that_is_not_finite(
    tiny_config: Callable[..., Path], tmp_path: Path, ranks: int, strategy: str
) -> None:
    """With a learning rate that makes the weights overflow."""
    optimizer = {"name": "adamw", "learning_rate": 1e37, "eps": 1e-8}
    scheduler = {"name": "constant"}
    config = tiny_config(optimizer=optimizer, scheduler=scheduler, max_duration=50, distributed_strategy=strategy)
    process = start_train(config, ranks=ranks)
    output, _ = process.communicate(120)
    assert process.returncode == 1
    assert output.count("error: ") == 1 and "is not finite" in output and "Traceback" not in output, output
    folder = tmp_path / "run" / "nonfinite"
    (step,) = {path.name.split("-")[0] for path in folder.iterdir()}
    assert sorted(path.name for path in folder.iterdir()) == [f"{step}-rank{rank}.json" for rank in range(ranks)]
    indices = [i for path in folder.iterdir() for i in json.loads(path.read_text())["indices"]]
    used = (tmp_path / "run" / "data-indices" / "rank0.tsv").read_text().splitlines()
    assert set(used[-1].split("\t")[1:]) <= {str(index) for index in indices}
    assert len(indices) == 8, "the whole global batch"

    output = train(config, "--skip_nonfinite_batches=100", "--save_overwrite=true", ranks=ranks)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["train/SkippedBatches"] for row in rows if "train/SkippedBatches" in row]
    assert skipped == list(range(1, len(skipped) + 1)) and skipped
    assert output.count("the batch is skipped") == len(skipped)


def test_a_collapsed_router_is_told_once() -> None:
    watch = CollapseWatch(share=0.9, steps=3, top_k=2)
    even, collapsed = [25.0, 25.0, 25.0, 25.0], [48.0, 20.0, 16.0, 16.0]  # of 50 tokens, 2 experts each
    warned = [watch.look(step, [even, collapsed if step != 2 else even]) for step in range(9)]
    assert [len(lines) for lines in warned] == [0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert "step 5: expert 0 of layer 1 takes 96% of the tokens" in warned[5][0]
