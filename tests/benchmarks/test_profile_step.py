"""The profile of a step: what belongs to which part, beside a model of which one knows it, and a run of one round."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import profile_step
import pytest
import step_parts
import torch
from step_parts import ADAMW, CLIPPING, ELSE, NORMS, OUTPUT, PARTS, PRODUCTS, PROJECTIONS, ROTARY, ROUTER, SCORES, Share
from torch.profiler import ProfilerActivity, profile, record_function

SMALL = ["model.n_layers=2", "model.max_sequence_length=64", "global_train_batch_size=2"]
TOKENS = 2 * 64


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    options = [word for setting in SMALL for word in ("--set", setting)]
    trace = ["--trace", str(folder / "trace.json")]
    profile_step.main(["e16", "dense", "--rounds", "1", "--output", str(folder), *trace, *options])
    return folder


def rows_of(output: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (output / "profile_step.jsonl").read_text().splitlines()]
    return {row["contender"]: row for row in rows}


def test_the_parts_add_up_to_the_step(output: Path) -> None:
    for row in rows_of(output).values():
        assert list(row["parts"]) == PARTS
        total = sum(seconds for phases in row["parts"].values() for (seconds,) in phases.values())
        assert total == pytest.approx(row["seconds"][0], rel=0.02)


def test_what_only_one_model_or_one_pass_has_is_found_there_alone(output: Path) -> None:
    rows = rows_of(output)
    for name, row in rows.items():
        parts = {part: {phase: value for phase, (value,) in phases.items()} for part, phases in row["parts"].items()}
        assert (parts[ROUTER]["forward"] > 0) == (parts[ROUTER]["backward"] > 0) == name.startswith("MoE")
        for part in (PRODUCTS, PROJECTIONS, SCORES, ROTARY, NORMS):
            assert min(parts[part].values()) > 0, (name, part)
        for part in (ADAMW, CLIPPING):
            assert parts[part]["forward"] > 0 == parts[part]["backward"]
        assert parts[OUTPUT]["forward"] > parts[ELSE]["forward"]  # 32,000 words beside two narrow layers


def test_each_model_has_its_trace_with_the_ranges_in_it(output: Path) -> None:
    for model in ("e16", "dense"):
        events = json.loads((output / f"trace_{model}.json").read_text())["traceEvents"]
        assert {step_parts.PREFIX + part for part in (ADAMW, NORMS, ROTARY)} <= {event.get("name") for event in events}


def test_the_report_names_the_models_and_their_operations(output: Path) -> None:
    report = (output / "profile_step.md").read_text()
    assert "## MoE, E = 16" in report and "## dense twin" in report and "| `aten::mm` |" in report


def test_unknown_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        profile_step.main(["e17"])
    assert "unknown models: e17" in capsys.readouterr().err


def attribution_of(step) -> step_parts.Attribution:  # type: ignore[no-untyped-def]
    with profile(activities=[ProfilerActivity.CPU]) as trace, record_function(step_parts.STEP):
        step()
    return step_parts.Attribution(trace.events())


def test_backward_nodes_belong_to_the_forward_operation_that_made_them() -> None:
    x, w = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)

    def step() -> None:
        with record_function(step_parts.PREFIX + PROJECTIONS):
            y = x @ w
            (y.detach() * 2).sum()  # makes no node, and has the number of the next
        with record_function(step_parts.PREFIX + SCORES):
            z = y.softmax(-1)
        z.tanh().sum().backward()

    found = attribution_of(step)
    shares = {event.name: found.share_of(event) for event in found.events}
    assert shares["MmBackward0"] == Share(PROJECTIONS, "backward")
    assert shares["SoftmaxBackward0"] == Share(SCORES, "backward")
    assert shares["TanhBackward0"] == Share(ELSE, "backward")
    products = [found.share_of(event) for event in found.events if event.name == "aten::mm"]
    assert sorted(products) == [Share(PROJECTIONS, "backward")] * 2 + [Share(PROJECTIONS, "forward")]


def test_ranges_take_the_time_of_what_they_are_around_and_go_when_the_context_ends() -> None:
    optim = SimpleNamespace(step=lambda: time.sleep(0.05), clip_grads_and_collect_metrics=lambda: time.sleep(0.02))
    model = torch.nn.Module()
    model.forward = None  # type: ignore[assignment]
    trainer = SimpleNamespace(model=model, optim=optim, loss_fn=lambda: time.sleep(0.01))
    before = dict(vars(optim))

    def step() -> None:
        optim.step()
        optim.clip_grads_and_collect_metrics()
        trainer.loss_fn()

    with step_parts.marked(trainer):
        assert optim.step is not before["step"]
        start = time.perf_counter()
        seconds = attribution_of(step).seconds()
    assert vars(optim) == before
    for part, slept in ((ADAMW, 0.05), (CLIPPING, 0.02), (OUTPUT, 0.01)):
        assert seconds[Share(part, "forward")] >= slept
    assert sum(seconds.values()) < time.perf_counter() - start  # none is counted twice
