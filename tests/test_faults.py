"""A run on a disk that is full or closed, with a clock that is set, and with any byte of its checkpoints changed."""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, free_port, losses_of, metrics_of, write_shards
from train_server import start_run

from olmoe_parrots.checkpoint import checkpoint_at, checkpoints_in, latest_checkpoint
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.checkpoints import load_model
from olmoe_parrots.metrics import read_metrics, rows_by_step
from olmoe_parrots.stopping import REQUEUE
from olmoe_parrots.train import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a run that was trained, and nobody disturbed: it has checkpoints step2, step4 and step4-unsharded."""
    root = tmp_path_factory.mktemp("undisturbed")
    fields = {**TINY_RUN, "save_folder": str(root / "run"), "save_interval_unsharded": 4}
    fields["model"] = {**TINY_MODEL, **TINY_MOE}
    fields["data"] = {"paths": [str(write_shards(root / "shards") / "train" / "0000.npy")], "drop_last": True}
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert main([str(path)]) == 0
    gc.collect()
    gc.freeze()  # OLMo collects garbage at each checkpoint, which among so many modules takes most of the time
    yield str(path)
    gc.unfreeze()


@pytest.fixture
def run(config: str, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(Path(config).with_name("run"), tmp_path / "run", symlinks=True)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("full", "No space left on device|is the disk full"),
        ("full for checkpoints", "No space left on device|is the disk full"),
        ("closed", "Read-only file system"),
    ],
)
def test_a_disk_that_takes_no_more_leaves_the_checkpoints_before(
    config: str, tmp_path: Path, event: str, reason: str
) -> None:
    output, code, kept = on_small_disk(config, tmp_path, event)
    told = output.splitlines()[-1]
    assert code == 1 and told.startswith("error: ") and "Traceback" not in output, output
    assert any(f"it cannot be written ({one}" in told for one in (*reason.split("|"), "torch's writer failed: is the"))
    assert told.endswith("earlier checkpoints are whole: mend that and run again with --try_load_latest_save=true")
    latest = latest_checkpoint(kept)
    assert latest is not None and latest.step % 10 == 0
    assert checkpoints_in(kept)[-1] == latest, "no half of one has the name of a checkpoint"
    logged = rows_by_step(read_metrics(kept / "metrics.jsonl"))  # of which the last row may be torn
    assert latest.step <= max(logged) < 1000
    assert (
        main([config, f"--save_folder={kept}", *LONG, f"--stop_at={latest.step + 1}", "--try_load_latest_save=true"])
        == 0
    )


def test_a_disk_that_takes_nothing_is_refused_before_any_work(config: str, tmp_path: Path) -> None:
    output, code, kept = on_small_disk(config, tmp_path, "closed before")
    assert code == 2 and not kept.exists()
    what = "the save folder cannot be written (Read-only file system); choose another --save_folder"
    assert output.splitlines() == [f"error: {tmp_path}/disk/run: {what}"]


LONG = [
    "--max_duration=1000",
    "--scheduler.name=constant",
    "--distributed_strategy=ddp",
    "--save_interval_unsharded=10",
    "--save_num_unsharded_checkpoints_to_keep=2",
]


def on_small_disk(config: str, folder: Path, event: str) -> tuple[str, int | None, Path]:
    (folder / "disk").mkdir()
    arguments = [str(folder / "disk"), event, str(folder / "kept"), config, *LONG]
    run = start_run(arguments, 1, {**os.environ, "OMP_NUM_THREADS": "1"}, free_port(), "small_disk")
    output, _ = run.communicate(120)
    return output, run.returncode, folder / "kept"


def test_a_changed_byte_of_any_file_is_noticed(run: Path) -> None:
    names = set()
    for checkpoint in checkpoints_in(run)[1:]:
        for path in sorted(path for path in checkpoint.path.rglob("*") if path.is_file()):
            name = path.relative_to(checkpoint.path).as_posix()
            names.add(f"{checkpoint.path.name}/{name}")
            whole = path.read_bytes()
            path.write_bytes(
                whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
            )
            problem = checkpoint.damage()
            assert problem is not None and (name in problem or name == "manifest.json")
            for read in (lambda at: checkpoint_at(Path(at)), load_model):
                with pytest.raises(
                    InputError, match=r": the checkpoint is damaged: .*; (load|name) another checkpoint$"
                ):
                    read(str(checkpoint.path))
            latest = latest_checkpoint(run)
            assert latest is not None and latest != checkpoint
            path.write_bytes(whole)
        assert checkpoint.damage() is None
    parts = {
        "model_and_optim/.metadata",
        "model_and_optim/__0_0.distcp",
        "train/rank0.pt",
        "config.yaml",
        "manifest.json",
    }
    files = {"model.pt", "optim.pt", "train.pt", "config.yaml", "manifest.json"}
    assert names == {f"step4/{name}" for name in parts} | {f"step4-unsharded/{name}" for name in files}


def drifting(days: float) -> Callable[[], float]:
    """A clock that is set by so many days each time that somebody looks."""
    now = [time.time()]

    def look() -> float:
        now[0] += days * 86400
        return now[0]

    return look


@pytest.mark.parametrize("days", [-3.0, 3.0])
def test_a_clock_that_is_set_while_a_run_trains(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    undisturbed, folder = Path(config).with_name("run"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", drifting(days))
        options = [f"--save_folder={folder}", "--time_limit=600", "--canceled_check_interval=1", "--step_timeout=600"]
        assert main([config, *options]) == 0
    assert losses_of(folder) == losses_of(undisturbed)
    for row in metrics_of(folder).values():
        assert 0 < row.get("throughput/device_tokens_per_second", 1.0) < 1e9
    stamps = [row["time"] for row in metrics_of(folder).values()]
    assert stamps == sorted(stamps, reverse=days < 0) and abs(stamps[-1] - stamps[0]) > 86400


def test_the_time_limit_does_not_ask_the_clock(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", drifting(-1))
    options = ["--time_limit=3", "--canceled_check_interval=1", "--extra_steps_after_cancel=0"]
    start = time.monotonic()
    assert main([config, f"--save_folder={tmp_path / 'run'}", *options, *LONG, "--max_duration=100000"]) == REQUEUE
    assert time.monotonic() - start < 60
    assert max(metrics_of(tmp_path / "run")) > 1


def test_the_newest_checkpoint_is_that_of_the_latest_step_whatever_the_clock_said(config: str, tmp_path: Path) -> None:
    """Between two starts the clock went back by years: what is older looks newer, to retention too."""
    run, now = tmp_path / "run", time.time()
    assert main([config, f"--save_folder={run}"]) == 0
    for place in run.rglob("*"):
        if not place.is_symlink():
            os.utime(place, (now, now + (3e7 if "step2" in place.parts else -3e8)))
    latest = latest_checkpoint(run)
    assert latest is not None and latest.path.name == "step4"
    assert load_model(str(run)).step == 4
    options = ["--max_duration=6", "--try_load_latest_save=true", "--save_num_checkpoints_to_keep=1"]
    assert main([config, f"--save_folder={run}", *options, "--save_interval_unsharded=null"]) == 0
    assert sorted(metrics_of(run)) == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in run.glob("step*")) == ["step4-unsharded", "step6"]
