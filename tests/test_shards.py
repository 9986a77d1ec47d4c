"""The shard contract: the manifest, and what training compares with it, on datasets written with numpy alone."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_maker import EOS, PAD, VOCABULARY, edit_manifest, flip_a_bit, write_dataset

from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_checks import check_training_shards, find_manifest
from olmoe_parrots.shards import Manifest, describe_report, describe_shard, smallest_dtype, write_atomically

CONFIG = {
    "vocab_size": VOCABULARY,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "dtype": "uint16",
    "sequence_length": 16,
}
TOKENS = [20 * 21, 12 * 31, 3 * 32]  # of the training files


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def _shards(root: Path) -> list[Path]:
    return sorted((root / "train").glob("*.npy"))


def _masks(root: Path) -> list[Path]:
    return sorted((root / "train").glob("*.mask"))


def _refused(paths: list[Path], **config: object) -> str:
    with pytest.raises(InputError) as caught:
        check_training_shards(paths, **CONFIG | config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_manifest_survives_saving_and_loading(dataset: Path) -> None:
    before = json.loads((dataset / "manifest.json").read_text())
    manifest = Manifest.load(dataset)
    manifest.save(dataset)
    assert json.loads((dataset / "manifest.json").read_text()) == before
    assert not list(dataset.glob(".*"))


def test_totals_by_split_and_source(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    assert manifest.totals("train") == (sum(TOKENS), 35)
    assert manifest.totals("train", "wiki") == (96, 3)
    assert manifest.sources("train") == {
        "web": {"tokens": TOKENS[0] + TOKENS[1], "documents": 32},
        "wiki": {"tokens": 96, "documents": 3},
    }
    assert manifest.sources("validation") == {"web": {"tokens": 156, "documents": 6}}


def test_a_shard_is_described_as_written_by_hand(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", masks=True)
    (root / "report.json").write_text("{}")
    by_hand = Manifest.load(root).files
    for file in by_hand:
        assert (
            describe_shard(root, file.path, file.split, file.source, "uint16", file.documents, file.label_mask) == file
        )
    (root / "train" / "web-00000.csv.gz").unlink()
    assert describe_shard(root, "train/web-00000.npy", "train", "web", "uint16", 20).boundaries_sha256 is None
    assert describe_report(root, "report.json").bytes == 2
    os.truncate(root / "train" / "web-00000.mask", 3)
    with pytest.raises(ValueError, match=r"web-00000\.mask"):
        describe_shard(root, "train/web-00000.npy", "train", "web", "uint16", 20, "train/web-00000.mask")
    os.truncate(root / "train" / "web-00001.npy", 3)
    with pytest.raises(ValueError, match="whole number"):
        describe_shard(root, "train/web-00001.npy", "train", "web", "uint16", 12)


@pytest.mark.parametrize("length", [4, 16, 33])
def test_sequences_are_counted_as_olmo_counts_them(dataset: Path, length: int) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    counted = check_training_shards(_shards(dataset), **CONFIG | {"sequence_length": length})
    assert counted == len(MemMapDataset(*_shards(dataset), chunk_size=length, memmap_dtype=np.uint16))
    assert counted == sum(tokens // length for tokens in TOKENS)


def test_files_shorter_than_a_sequence_are_passed_over_and_told(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    with caplog.at_level(logging.WARNING, "olmoe_parrots"):
        assert check_training_shards(_shards(dataset), **CONFIG | {"sequence_length": 300}) == 2
    (line,) = caplog.messages
    assert "1 of 3 token files" in line and "96 tokens" in line and "train/wiki-00000.npy" in line
    read = MemMapDataset(*_shards(dataset), chunk_size=300, memmap_dtype=np.uint16)
    expected = [np.fromfile(path, "<u2")[:300].tolist() for path in _shards(dataset)[:2]]
    assert [read[i]["input_ids"].tolist() for i in range(len(read))] == expected
    assert "none of its 3 token files holds a sequence of 421" in _refused(_shards(dataset), sequence_length=421)


def test_manifest_is_found_up_to_two_folders_above(dataset: Path) -> None:
    found = find_manifest(dataset / "train" / "0000.npy")
    assert found is not None and found[0] == str(dataset)
    assert find_manifest(dataset / "a" / "b" / "c" / "0000.npy") is None
    assert find_manifest(dataset / "a" / "b" / "0000.npy") is not None


def test_relative_paths_are_checked_too(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset / "train")
    relative = ["web-00000.npy", Path("../train/web-00001.npy")]
    assert check_training_shards(relative, **CONFIG) == sum(tokens // 16 for tokens in TOKENS[:2])


def test_other_schemes_pass_through() -> None:
    assert check_training_shards(["gs://bucket/train/0000.npy"], **CONFIG) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 512}, ["vocabulary_size", "128", "512"]),
        ({"eos_token_id": 3}, ["eos_token_id", "2", "3"]),
        ({"pad_token_id": 1}, ["pad_token_id", "0", "1"]),
        ({"dtype": "uint32"}, ["uint16", "uint32"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused(dataset: Path, change: dict, said: list[str]) -> None:
    line = _refused(_shards(dataset), **change)
    assert "web-00000.npy" in line and all(word in line for word in said), line


def _truncate(root: Path) -> str:
    os.truncate(root / "train" / "web-00001.npy", 100)
    return "web-00001.npy"


def _grow(root: Path) -> str:
    with (root / "train" / "web-00000.npy").open("ab") as file:
        file.write(b"\x02\x00")
    return "web-00000.npy"


def _delete(root: Path) -> str:
    (root / "train" / "web-00001.npy").unlink()
    return "web-00001.npy"


def _add_a_stranger(root: Path) -> str:
    shutil.copy(root / "train" / "web-00000.npy", root / "train" / "web-00009.npy")
    return "web-00009.npy"


def _flip(root: Path) -> str:
    flip_a_bit(root / "train" / "wiki-00000.npy")
    return "wiki-00000.npy"


def _swap_tokenizer(root: Path) -> str:
    (root / "tokenizer.json").write_bytes(b'{"version": "1.1"}')
    return "tokenizer.json"


def _delete_tokenizer(root: Path) -> str:
    (root / "tokenizer.json").unlink()
    return "tokenizer.json"


@pytest.mark.parametrize("verification", ["auto", "hashes", "sizes"])
@pytest.mark.parametrize("damage", [_truncate, _grow, _delete, _add_a_stranger, _swap_tokenizer, _delete_tokenizer])
def test_damage_is_refused_and_the_file_named(dataset: Path, damage, verification: str) -> None:
    name = damage(dataset)
    assert name in _refused(_shards(dataset), verification=verification)


def test_a_flipped_bit_is_seen_unless_sizes_alone_are_asked_for(dataset: Path) -> None:
    name = _flip(dataset)
    assert name in _refused(_shards(dataset))
    assert check_training_shards(_shards(dataset), **CONFIG, verification="sizes") == sum(n // 16 for n in TOKENS)


def test_files_of_a_split_not_in_use_may_be_missing(dataset: Path) -> None:
    other = write_dataset(dataset.parent / "other")
    shutil.rmtree(dataset / "validation")
    (other / "train" / "wiki-00000.npy").unlink()
    paths = [*_shards(dataset), other / "validation" / "web-00000.npy"]
    assert check_training_shards(paths, **CONFIG) > 0
    assert "other/train/wiki-00000.npy" in _refused([*paths, other / "train" / "web-00000.npy"])


def test_label_masks_are_checked_and_read_by_olmo(tmp_path: Path) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    root = write_dataset(tmp_path / "data", masks=True)
    count = check_training_shards(_shards(root), **CONFIG, label_mask_paths=_masks(root))
    read = MemMapDataset(*_shards(root), chunk_size=16, memmap_dtype=np.uint16, label_mask_paths=list(_masks(root)))
    assert len(read) == count
    assert read[0]["label_mask"].tolist() == [i % 3 == 0 for i in range(16)]
    assert "data.label_mask_paths: it names none" in _refused(_shards(root))


def test_label_masks_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", masks=True)
    masks = _masks(root)
    assert "2 label masks for 3" in _refused(_shards(root), label_mask_paths=masks[:2])
    assert "web-00001.mask" in _refused(_shards(root), label_mask_paths=[masks[1], masks[0], masks[2]])
    flip_a_bit(masks[2])
    assert "wiki-00000.mask" in _refused(_shards(root), label_mask_paths=masks)
    os.truncate(masks[1], 10)
    assert "web-00001.mask" in _refused(_shards(root), label_mask_paths=masks, verification="sizes")
    masks[0].unlink()
    assert "web-00000.mask" in _refused(_shards(root), label_mask_paths=masks)
    plain = write_dataset(tmp_path / "plain")
    assert "lists no label mask" in _refused(_shards(plain), label_mask_paths=masks)


def test_a_missing_or_broken_manifest_is_refused(dataset: Path) -> None:
    (dataset / "manifest.json").write_text('{"format": "olmoe_parrots.shards/2", "dtype": ')
    assert "manifest.json" in _refused(_shards(dataset))
    (dataset / "manifest.json").unlink()
    assert "no manifest.json" in _refused(_shards(dataset))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw.update(format="olmoe_parrots.shards/1"), "shards/1"),
        (lambda raw: raw.update(dtype="int8"), "int8"),
        (lambda raw: raw.update(dtype="uint32"), "web-00000.npy"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw.pop("tokenizer"), "tokenizer"),
        (lambda raw: raw.update(seed="0"), "seed"),
        (lambda raw: raw["files"][0].update(path="../outside.npy"), "outside.npy"),
        (lambda raw: raw["files"][0].update(path="/etc/passwd"), "/etc/passwd"),
        (lambda raw: raw["files"][0].update(path="s3://other/x.npy"), "s3://other"),
        (lambda raw: raw["files"][0].update(label_mask="../x.mask", label_mask_sha256="0" * 64), "x.mask"),
        (lambda raw: raw["files"][0].update(label_mask="x.mask"), "label_mask"),
        (lambda raw: raw["reports"].append({"path": "a/../../b", "bytes": 1, "sha256": "0" * 64}), "a/../../b"),
        (lambda raw: raw["files"][0].update(tokens=10**9), "web-00000.npy"),
        (lambda raw: raw["files"][0].update(tokens="420"), "tokens"),
        (lambda raw: raw["files"][0].update(bytes=-2, tokens=-1), "below 0"),
        (lambda raw: raw["files"][0].update(split="test"), "'test'"),
        (lambda raw: raw["files"][0].update(source=""), "no name"),
        (lambda raw: raw["files"][0].update(sha256="abc"), "abc"),
        (lambda raw: raw["files"].append(raw["files"][0]), "twice"),
        (lambda raw: raw["tokenizer"].update(vocabulary_size=70_000), "70000"),
        (lambda raw: raw.update(asked={"web": {"share": "half"}}), "share"),
    ],
)
def test_an_unsound_manifest_is_refused(dataset: Path, edit, said: str) -> None:
    edit_manifest(dataset, edit)
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        Manifest.load(dataset)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_dtype_is_the_smallest_that_holds_every_id() -> None:
    assert [smallest_dtype(n) for n in (32_000, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    file, limit = tmp_path / "manifest.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(file, b"whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(file, b"x" * 1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == b"whole" and os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize(
    ("body", "rank", "code", "lines"),
    [
        (
            "raise InputError('conf.yaml', 'seed is\\n-1', 'give one')",
            "",
            2,
            ["error: conf.yaml: seed is -1; give one"],
        ),
        ("raise InputError('conf.yaml', 'seed is -1', 'give one')", "1", 2, []),
        ("raise KeyboardInterrupt", "0", 130, []),
        ("return None", "0", 0, []),
        ("return 3", "0", 3, []),
    ],
)
def test_exit_codes(body: str, rank: str, code: int, lines: list[str]) -> None:
    script = f"from olmoe_parrots.errors import *\ndef main():\n    {body}\nreport_and_exit(main)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"RANK": rank}
    )
    assert (done.returncode, done.stderr.splitlines()) == (code, lines)


def test_an_unexpected_failure_keeps_its_traceback() -> None:
    script = "from olmoe_parrots.errors import *\ndef main():\n    1 / 0\nreport_and_exit(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr
