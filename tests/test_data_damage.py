"""Five ways of damaging a dataset: `data_prep.verify` and the training command each refuse all, naming the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN, start_train, train
from dataset_maker import edit_manifest, flip_a_bit, write_dataset

from data_prep.verify import main as verify
from olmoe_parrots.errors import InputError
from olmoe_parrots.train import main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", masks=True)


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    """A config that names its files by pattern, as the shipped ones do: with its label masks, and held-out files."""
    fields = {
        **TINY_RUN,
        "data_folder": str(dataset),
        "save_folder": str(tmp_path / "run"),
        "global_train_batch_size": 4,
    }
    fields |= {"model": {**TINY_MODEL, **TINY_MOE}, "device_train_microbatch_size": 4, "max_duration": 2}
    pattern = "${path.glob:${data_folder}/%s}"
    masks = pattern % "train/*.mask"
    fields["data"] = {"paths": pattern % "train/*.npy", "label_mask_paths": masks, "drop_last": True}
    held_out = {"datasets": {"validation": pattern % "validation/*.npy"}, "drop_last": True}
    fields["evaluators"] = [{"label": "validation", "type": "lm", "data": held_out}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def _refusal(config: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        main([str(config), *overrides])
    line = str(refused.value)
    assert "\n" not in line and ";" in line
    return line


def _truncate(root: Path) -> str:
    os.truncate(root / "train" / "web-00001.npy", 700)
    return "train/web-00001.npy"


def _flip(root: Path) -> str:
    flip_a_bit(root / "train" / "wiki-00000.npy")
    return "train/wiki-00000.npy"


def _flip_held_out(root: Path) -> str:
    flip_a_bit(root / "validation" / "web-00000.npy")
    return "validation/web-00000.npy"


def _flip_mask(root: Path) -> str:
    flip_a_bit(root / "train" / "web-00000.mask")
    return "train/web-00000.mask"


def _swap_tokenizer(root: Path) -> str:
    (root / "tokenizer.json").write_bytes(b'{"version": "2.0"}')
    return "tokenizer.json"


def _change_dtype(root: Path) -> str:
    edit_manifest(root, lambda raw: raw.update(dtype="uint32"))
    return "manifest.json"


def _delete(root: Path) -> str:
    (root / "train" / "web-00001.npy").unlink()
    (root / "train" / "web-00001.mask").unlink()
    return "train/web-00001.npy"


def _delete_held_out(root: Path) -> str:
    (root / "validation" / "web-00000.npy").unlink()
    return "validation"


DAMAGES = [_truncate, _flip, _flip_held_out, _flip_mask, _swap_tokenizer, _change_dtype, _delete, _delete_held_out]


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_refuses_and_names_the_file(
    dataset: Path, config: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    assert damage(dataset) in _refusal(config)
    assert not (tmp_path / "run").exists(), "nothing may be written before the refusal"


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_refuses_and_names_the_file(
    dataset: Path, damage: Callable[[Path], str], capsys: pytest.CaptureFixture
) -> None:
    assert verify([str(dataset)]) == 0
    name = damage(dataset)
    try:
        code, said = verify([str(dataset)]), capsys.readouterr().err
    except InputError as error:  # the manifest itself; the command's exit code is 2 then too
        code, said = 2, str(error)
    assert code == 2 and name in said


def test_another_dtype_in_the_config_is_refused(config: Path) -> None:
    line = _refusal(config, "--data.memmap_dtype=uint32")
    assert "train/web-00000.npy" in line and "uint16" in line and "uint32" in line


def test_a_manifest_that_fits_its_wrong_dtype_is_refused(dataset: Path, config: Path) -> None:
    """The manifest made to fit itself as uint32, with half as many tokens."""

    def edit(raw: dict) -> None:
        raw["dtype"] = "uint32"
        for file in raw["files"]:
            file["tokens"] = file["bytes"] // 4

    edit_manifest(dataset, edit)
    assert verify([str(dataset)]) == 2
    assert "train/web-00000.npy" in _refusal(config)


def test_the_check_can_be_made_light(dataset: Path, config: Path) -> None:
    assert "verify_data=quick" in _refusal(config, "--verify_data=quick")
    _truncate(dataset)
    assert "train/web-00001.npy" in _refusal(config, "--verify_data=sizes")


@pytest.mark.slow
def test_an_undamaged_dataset_trains_with_its_label_masks(dataset: Path, config: Path, tmp_path: Path) -> None:
    output = train(config)
    assert "trained to step 2" in output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/validation/Perplexity" in row for row in rows)


@pytest.mark.slow
def test_two_ranks_refuse_once_and_stop(dataset: Path, config: Path, tmp_path: Path) -> None:
    """Only the first rank reads the files; the other, which has gone on, is ended with it."""
    _flip(dataset)
    process = start_train(config, ranks=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count("error: ") == 1 and "train/wiki-00000.npy: its content has changed" in output
    assert not (tmp_path / "run").exists()
