"""A run killed at random moments, again and again: ``make soak``, and in short tests/test_soak.py.

After each SIGKILL every checkpoint that has its name must be whole, and the run must go on from the newest. What it
comes to must be, to the last bit, what an undisturbed run comes to. With a folder of S3 the local one is removed after
each kill: then the run goes on from what had arrived there.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, losses_of, metrics_of, start_train, train, write_shards
from s3_server import running_server
from train_server import Run

from olmoe_parrots.checkpoint import checkpoints_in
from olmoe_parrots.remote import exists, join, read_bytes
from olmoe_parrots.remote_checkpoint import fetch_checkpoint, remote_checkpoints

LARGE = {"d_model": 256, "n_heads": 4, "n_layers": 4, "mlp_hidden_size": 256}


@dataclass
class Soaked:
    """What was seen."""

    kills: int = 0
    while_saving: int = 0
    """Kills that left a checkpoint half-written on disk or, with S3, without its manifest there."""
    checked: int = 0
    """Checkpoints compared with their manifests."""
    damaged: list[str] = field(default_factory=list)
    steps: int = 0
    equal: bool = False
    """Whether weights and losses are those of the undisturbed run."""


def soak(config: Path, folder: Path, *, kills: int, seed: int, remote: str | None = None) -> Soaked:
    """Kill the run of `config` in `folder` that many times, let it end, and compare.

    :param config: of a run under DDP that saves more often than every ``max_duration / kills / 2`` steps.
    :param remote: an S3 folder; the local one is lost with each kill.
    """
    soaked, moments = Soaked(), random.Random(seed)
    most_steps = yaml.safe_load(config.read_text())["max_duration"] // (2 * kills)
    options = [f"--save_folder={folder}", "--try_load_latest_save=true"]
    options += [f"--remote_save_folder={remote}"] if remote else []
    while soaked.kills < kills:
        run = start_train(config, *options)
        _wait_for_the_moment(run, folder, moments, most_steps, remote)
        assert run.returncode is None, f"it ended before kill {soaked.kills + 1}: {run.communicate()[0][-2000:]}"
        run.kill()
        run.communicate()
        soaked.kills += 1
        _look(soaked, folder, remote)
        if remote:
            shutil.rmtree(folder)
    train(config, *options)
    undisturbed = folder.with_name(f"{folder.name}-undisturbed")
    train(config, f"--save_folder={undisturbed}")
    soaked.steps = max(metrics_of(undisturbed))
    count = len(losses_of(folder))  # those of a lost disk are lost
    soaked.equal = _same_weights(folder, undisturbed) and losses_of(folder) == losses_of(undisturbed)[-count:]
    return soaked


def _wait_for_the_moment(run: Run, folder: Path, moments: random.Random, most_steps: int, remote: str | None) -> None:
    """One of the run's next steps, or while it saves next, or just after; what it fetches from S3 first is not new."""
    kind, share, steps = moments.choice(("step", "saving", "saved")), moments.random(), moments.randint(1, most_steps)
    before, saved = _rows(folder), {path.name for path in folder.glob("step*")}
    if remote:
        log = join(remote, "metrics.jsonl")
        before = read_bytes(log).count(b"\n") if exists(log) else 0
        saved = {address.rpartition("/")[2] for *_, address in remote_checkpoints(remote)}

    def fresh(half_written: bool) -> bool:
        names = {path.name for path in folder.glob("step*")} - saved
        return any(name.endswith("-tmp") is half_written for name in names)

    signs: dict[str, Callable[[], bool]] = {
        "step": lambda: _rows(folder) >= before + steps,
        "saving": lambda: fresh(half_written=True),
        "saved": lambda: fresh(half_written=False),
    }
    while not signs[kind]() and run.returncode is None:
        time.sleep(0.001)
    time.sleep(share * 0.05)


def _rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _look(soaked: Soaked, folder: Path, remote: str | None) -> None:
    torn = any(folder.glob("step*-tmp"))
    for checkpoint in checkpoints_in(folder):
        soaked.checked += 1
        if problem := checkpoint.damage():
            soaked.damaged.append(f"{checkpoint.path.name}: {problem}")
    if remote:
        there = remote_checkpoints(remote)
        with tempfile.TemporaryDirectory() as scratch:
            for _, _, address in there[-1:]:
                soaked.checked += 1
                fetch_checkpoint(address, Path(scratch) / address.rpartition("/")[2])
        torn = len(there) < len(
            {path.name for path in folder.glob("step*")} | {a.rpartition("/")[2] for *_, a in there}
        )
    soaked.while_saving += torn


def _same_weights(one: Path, other: Path) -> bool:
    newest = [max(folder.glob("step*-unsharded"), key=lambda path: int(path.name[4:-10])) for folder in (one, other)]
    weights = [torch.load(path / "model.pt", weights_only=True) for path in newest]
    same = newest[0].name == newest[1].name and weights[0].keys() == weights[1].keys()
    return same and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def write_config(folder: Path, *, steps: int, save_every: int, model: dict[str, int] | None = None) -> Path:
    """A config and its data in `folder`."""
    shards = write_shards(folder / "shards", tokens=16384)
    config = {
        **TINY_RUN,
        "model": {**TINY_MODEL, **TINY_MOE, **(model or {})},
        "data": {"paths": [str(shards / "train" / "0000.npy")], "drop_last": True},
        "data_folder": str(shards),
        "save_folder": str(folder / "run"),
        "distributed_strategy": "ddp",
        "max_duration": steps,
        "save_interval_unsharded": save_every,
        "save_num_unsharded_checkpoints_to_keep": 2,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def s3_folder(folder: Path) -> Iterator[str]:
    """A folder of a real S3 server on the loopback, which is this process's and its children's for as long."""
    with running_server(folder) as server:
        before = dict(os.environ)
        os.environ.update(server.environment)
        try:
            server.client().create_bucket(Bucket="soak")
            yield "s3://soak/run"
        finally:
            os.environ.clear()
            os.environ.update(before)


def main() -> None:
    """The full form."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments and compare them with undisturbed ones.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--s3-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        config = write_config(Path(place), steps=4 * args.kills, save_every=1, model=LARGE)
        print("disk:", soaked := soak(config, Path(place) / "disk", kills=args.kills, seed=args.seed), flush=True)
        assert soaked.equal and not soaked.damaged
        with s3_folder(Path(place) / "s3") as remote:
            soaked = soak(config, Path(place) / "lost", kills=args.s3_kills, seed=args.seed, remote=remote)
        print("S3:", soaked, flush=True)
        assert soaked.equal and not soaked.damaged


if __name__ == "__main__":
    main()
