"""A checkpoint of one number of ranks and one strategy goes on under any other, to the losses of an undisturbed run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, free_port, losses_of, metrics_of, train_many, write_shards

from olmoe_parrots.errors import InputError
from olmoe_parrots.train import main

pytestmark = pytest.mark.slow

CLIPPED_TO = 0.3
"""Below every gradient's norm, which has to be summed over the ranks under FSDP and must not be under DDP."""
DDP = {"distributed_strategy": "ddp", "save_interval": None}
WAYS = {"one": (1, {}), "fsdp": (2, {}), "ddp": (2, DDP)}
KINDS = {"dense": {}, "moe": {**TINY_MOE, "moe_lbl_global_batch": True}}
SAVED = {"one": ("step2", "step2-unsharded"), "fsdp": ("step2", "step2-unsharded"), "ddp": ("step2-unsharded",)}
CHANGES = [
    (start, checkpoint, end)
    for start, checkpoints in SAVED.items()
    for checkpoint in checkpoints
    for end in WAYS
    if end != start and (end != "ddp" or checkpoint.endswith("-unsharded"))
]


def write_config(path: Path, shards: Path, kind: str, way: str, **fields: object) -> str:
    own = {"save_folder": str(path.with_suffix("")), "save_interval_unsharded": 2, "max_grad_norm": CLIPPED_TO}
    config = {**TINY_RUN, **own, **WAYS[way][1], **fields}
    config["model"] = {**TINY_MODEL, **KINDS[kind]}
    config["data"] = {"paths": [str(shards / "train" / "0000.npy")], "drop_last": True}
    path.write_text(yaml.safe_dump(config))
    return f"{free_port()}:{path}"


def train_all(arguments: Iterator[tuple[str, str]]) -> None:
    by_ranks: dict[int, list[str]] = {}
    for way, argument in arguments:
        by_ranks.setdefault(WAYS[way][0], []).append(argument)
    for ranks, configs in by_ranks.items():
        train_many(ranks, configs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind of model trained for four steps in each way, and from each half-way checkpoint to the end in each
    other way that loads it."""
    root = tmp_path_factory.mktemp("elastic")
    shards = write_shards(root / "shards")
    train_all((way, write_config(root / f"{kind}-{way}.yaml", shards, kind, way)) for kind in KINDS for way in WAYS)
    train_all(
        (
            end,
            write_config(
                root / f"{kind}-{start}-{checkpoint}-{end}.yaml",
                shards,
                kind,
                end,
                load_path=str(root / f"{kind}-{start}" / checkpoint),
            ),
        )
        for kind in KINDS
        for start, checkpoint, end in CHANGES
    )
    return root


def sequences_read(run: Path) -> dict[int, list[int]]:
    """Places in the data of each step's sequences, in the order of the global batch: ranks take turns in it."""
    read: dict[int, dict[int, int]] = {}
    files = sorted((run / "data-indices").iterdir())
    for rank, file in enumerate(files):
        for line in file.read_text().splitlines():
            step, *places = map(int, line.split("\t"))
            read.setdefault(step, {}).update({rank + turn * len(files): place for turn, place in enumerate(places)})
    return {step: [places[turn] for turn in sorted(places)] for step, places in read.items()}


@pytest.mark.parametrize(("start", "checkpoint", "end"), CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_half_is_that_of_an_undisturbed_run(
    runs: Path, kind: str, start: str, checkpoint: str, end: str
) -> None:
    undisturbed, resumed = runs / f"{kind}-one", runs / f"{kind}-{start}-{checkpoint}-{end}"
    assert sorted(metrics_of(resumed)) == [3, 4]
    assert losses_of(resumed) == pytest.approx(losses_of(undisturbed)[2:], abs=1e-5)
    norms = losses_of(undisturbed, "optim/total_grad_norm")
    assert min(norms) > CLIPPED_TO
    assert losses_of(resumed, "optim/total_grad_norm") == pytest.approx(norms[2:], rel=1e-4)
    expected = sequences_read(undisturbed)
    assert len({place for step in expected.values() for place in step}) == 4 * 8
    assert sequences_read(resumed) == {step: expected[step] for step in (3, 4)}


@pytest.mark.parametrize("way", ["fsdp", "ddp"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_half_does_not_depend_on_the_way(runs: Path, kind: str, way: str) -> None:
    assert losses_of(runs / f"{kind}-{way}") == pytest.approx(losses_of(runs / f"{kind}-one"), abs=1e-5)
    assert sequences_read(runs / f"{kind}-{way}") == sequences_read(runs / f"{kind}-one")


def test_ddp_refuses_a_sharded_checkpoint_in_one_line(runs: Path) -> None:
    assert not list((runs / "moe-ddp").glob("step?")), "nothing sharded is written under DDP"
    config = str(runs / "moe-ddp.yaml")
    with pytest.raises(InputError, match=r"step2: .*sharded, and DDP loads unsharded.*; load one named step2-unshard"):
        main([config, f"--save_folder={runs / 'other'}", f"--load_path={runs / 'moe-one' / 'step2'}"])
    with pytest.raises(InputError, match=r"latest: .*sharded.*; load one named step4-unsharded"):
        main([config, f"--save_folder={runs / 'other'}", f"--load_path={runs / 'moe-one' / 'latest'}"])
    with pytest.raises(InputError, match=r"s3://bucket/step7/: .*sharded.*; load one named step7-unsharded"):
        main([config, f"--save_folder={runs / 'other'}", "--load_path=s3://bucket/step7/"])
