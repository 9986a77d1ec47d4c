"""Signals to real runs: the step is finished and saved, the exit code asks for a requeue, and the run goes on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import losses_of, metrics_of, start_train, train
from train_server import Run

from olmoe_parrots.stopping import REQUEUE, StopRequest

LONG = {"max_duration": 3000, "save_interval": 5000, "save_interval_unsharded": 5000, "scheduler": {"name": "constant"}}


def wait_for_steps(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(metrics_of(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _stop(process: Run, folder: Path, number: signal.Signals, ranks: int = 1) -> tuple[int, str]:
    """Signal the last rank alone; the step that the run stopped at, and what it said."""
    wait_for_steps(folder, 5)
    os.kill(process.pids[ranks - 1], number)
    output, _ = process.communicate(120)
    assert process.returncode == REQUEUE == 75, output
    return max(metrics_of(folder)), output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ranks", "strategy"),
    [(signal.SIGTERM, 1, "ddp"), (signal.SIGINT, 1, "fsdp"), (signal.SIGUSR1, 2, "fsdp")],
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_losses(
    tiny_config: Callable[..., Path], tmp_path: Path, number: signal.Signals, ranks: int, strategy: str
) -> None:
    config = tiny_config(**LONG, distributed_strategy=strategy)
    folder = tmp_path / "run"
    step, output = _stop(start_train(config, ranks=ranks), folder, number, ranks)
    assert f"stopped at step {step} of 3000, saved in {folder}" in output
    saved = f"step{step}" if strategy == "fsdp" else f"step{step}-unsharded"
    assert [path.name for path in folder.glob("step*")] == [saved]
    more = f"--stop_at={step + 3}"
    assert f"trained to step {step + 3}" in train(config, more, "--try_load_latest_save=true", ranks=ranks)
    train(config, more, f"--save_folder={tmp_path / 'whole'}", ranks=ranks)
    assert losses_of(folder) == losses_of(tmp_path / "whole")


@pytest.mark.slow
def test_the_time_limit_saves_and_asks_for_a_requeue(tiny_config: Callable[..., Path], tmp_path: Path) -> None:
    options = ("--time_limit=1", "--canceled_check_interval=2", "--extra_steps_after_cancel=0")
    process = start_train(tiny_config(**LONG), *options)
    output, _ = process.communicate(120)
    assert process.returncode == REQUEUE, output
    step = max(metrics_of(tmp_path / "run"))
    assert step % 2 == 0 and f"stopped at step {step} of 3000" in output
    assert (tmp_path / "run" / f"step{step}").is_dir()


def test_a_second_signal_ends_the_process_unless_it_is_the_same_request() -> None:
    if (pid := os.fork()) == 0:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # as torchrun passes an interruption on
            time.sleep(0.01)
            noted = request.signal
            request._noted_at -= 10
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)
        os._exit(0 if noted == signal.SIGINT else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGUSR1


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert signal.getsignal(signal.SIGTERM) == request._note
    assert signal.getsignal(signal.SIGTERM) == before
    assert request.signal is None
