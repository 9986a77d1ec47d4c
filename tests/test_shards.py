"""The shard contract, on datasets written here with numpy alone."""

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import (
    Manifest,
    ShardFile,
    TokenizerInfo,
    check_training_shards,
    find_manifest,
    smallest_dtype,
    verify,
)

EOS, PAD, VOCABULARY = 2, 0, 500
CONFIG = {
    "vocab_size": VOCABULARY,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "dtype": "uint16",
    "sequence_length": 16,
}


def _write_shard(root: Path, name: str, documents: list[list[int]]) -> ShardFile:
    """A shard by the contract's words, with nothing of the module under test."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = np.concatenate([np.array([*d, EOS]) for d in documents]).astype("<u2").tobytes()
    path.write_bytes(content)
    ends = np.cumsum([len(d) + 1 for d in documents]).tolist()
    rows = io.StringIO()
    csv.writer(rows).writerows(
        [start, end, f"doc-{i}", "documents/x.jsonl.gz", i + 1]
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(rows.getvalue().encode()))
    digest = hashlib.sha256(content).hexdigest()
    return ShardFile(name, name.split("/")[0], len(content), digest, ends[-1], len(documents))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    draw = lambda n, length: [rng.integers(3, VOCABULARY, length).tolist() for _ in range(n)]  # noqa: E731
    files = [
        _write_shard(root, "train/0000.npy", draw(5, 20)),
        _write_shard(root, "train/0001.npy", draw(3, 30)),
        _write_shard(root, "validation/0000.npy", draw(2, 25)),
    ]
    tokenizer = b'{"version": "1.0"}'
    (root / "tokenizer.json").write_bytes(tokenizer)
    info = TokenizerInfo("test", hashlib.sha256(tokenizer).hexdigest(), VOCABULARY, EOS, PAD)
    sources = {
        "train": {"a": {"tokens": 105, "documents": 5}, "b": {"tokens": 93, "documents": 3}},
        "validation": {"a": {"tokens": 52, "documents": 2}},
    }
    Manifest(info, "uint16", files, sources, {"kind": "test"}, 0, {"python": "3"}).save(root)
    return root


def _shards(root: Path) -> list[Path]:
    return sorted((root / "train").glob("*.npy"))


def test_manifest_survives_saving_and_loading(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    before = (dataset / "manifest.json").read_bytes()
    manifest.save(dataset)
    assert (dataset / "manifest.json").read_bytes() == before
    assert manifest.totals("train") == (198, 8)
    assert json.loads(before)["tokenizer"]["vocabulary_size"] == VOCABULARY
    assert not list(dataset.glob(".*"))


def test_sequences_are_counted_as_olmo_counts_them(dataset: Path) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    for length in (4, 16, 33):
        counted = check_training_shards(_shards(dataset), **CONFIG | {"sequence_length": length}, verify_hashes=True)
        assert counted == len(MemMapDataset(*_shards(dataset), chunk_size=length, memmap_dtype=np.uint16))
        assert counted == 105 // length + 93 // length


def test_manifest_is_found_up_to_two_folders_above(dataset: Path) -> None:
    found = find_manifest(dataset / "train" / "0000.npy")
    assert found is not None and found[0] == dataset
    assert find_manifest(dataset / "a" / "b" / "c" / "0000.npy") is None
    assert find_manifest(dataset / "a" / "b" / "0000.npy") is not None


def test_relative_paths_are_checked_too(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset / "train")
    assert check_training_shards(["0000.npy", Path("../train/0001.npy")], **CONFIG) == 105 // 16 + 93 // 16


def test_remote_paths_pass_through(dataset: Path) -> None:
    assert check_training_shards(["s3://bucket/train/0000.npy"], **CONFIG) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 512}, ["vocabulary_size", "500", "512"]),
        ({"eos_token_id": 3}, ["eos_token_id", "2", "3"]),
        ({"pad_token_id": 1}, ["pad_token_id", "0", "1"]),
        ({"dtype": "uint32"}, ["uint16", "uint32"]),
        ({"sequence_length": 94}, ["0001.npy", "93 tokens", "94"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused(dataset: Path, change: dict, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_training_shards(_shards(dataset), **CONFIG | change)
    message = str(caught.value)
    assert ".npy" in message and "\n" not in message
    assert all(word in message for word in said), message


def _truncate(root: Path) -> str:
    os.truncate(root / "train" / "0001.npy", 100)
    return "0001.npy"


def _grow(root: Path) -> str:
    with (root / "train" / "0000.npy").open("ab") as file:
        file.write(b"\x02\x00")
    return "0000.npy"


def _flip_a_bit(root: Path) -> str:
    path = root / "train" / "0000.npy"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    return "0000.npy"


def _delete(root: Path) -> str:
    (root / "train" / "0001.npy").unlink()
    return "0001.npy"


def _add_a_stranger(root: Path) -> str:
    shutil.copy(root / "train" / "0000.npy", root / "train" / "0002.npy")
    return "0002.npy"


@pytest.mark.parametrize("damage", [_truncate, _grow, _flip_a_bit, _delete, _add_a_stranger])
def test_damage_is_refused_and_the_file_named(dataset: Path, damage) -> None:
    paths = _shards(dataset)
    name = damage(dataset)
    with pytest.raises(InputError, match=name):
        check_training_shards(sorted({*paths, *_shards(dataset)}), **CONFIG, verify_hashes=True)
    assert any(name in problem for problem in verify(dataset))


def test_a_missing_or_broken_manifest_is_refused(dataset: Path) -> None:
    (dataset / "manifest.json").write_text('{"format": "olmoe_parrots.shards/1", "dtype": ')
    with pytest.raises(InputError, match=r"manifest\.json"):
        check_training_shards(_shards(dataset), **CONFIG)
    (dataset / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        check_training_shards(_shards(dataset), **CONFIG)
    with pytest.raises(InputError, match="no manifest"):
        verify(dataset)


def _edit_manifest(root: Path, edit) -> None:
    raw = json.loads((root / "manifest.json").read_text())
    edit(raw)
    (root / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw.update(format="other"),
        lambda raw: raw.update(dtype="int8"),
        lambda raw: raw.update(surprise=1),
        lambda raw: raw.pop("tokenizer"),
        lambda raw: raw["files"][0].update(path="../outside.npy"),
        lambda raw: raw["files"][0].update(path="/etc/passwd"),
        lambda raw: raw["files"][0].update(tokens=10**9),
    ],
)
def test_an_unsound_manifest_is_refused(dataset: Path, edit) -> None:
    _edit_manifest(dataset, edit)
    with pytest.raises(InputError, match=r"manifest\.json"):
        Manifest.load(dataset)


def test_verify_passes_a_sound_dataset(dataset: Path) -> None:
    assert verify(dataset) == []


def test_verify_finds_another_tokenizer_and_wrong_counts(dataset: Path) -> None:
    (dataset / "tokenizer.json").write_text("{}")
    _edit_manifest(dataset, lambda raw: raw["sources"]["train"]["a"].update(tokens=104))
    problems = verify(dataset)
    assert len(problems) == 2
    assert "tokenizer.json" in problems[0] and "train" in problems[1]


def test_verify_finds_ids_beyond_the_vocabulary(dataset: Path) -> None:
    _edit_manifest(dataset, lambda raw: raw["tokenizer"].update(vocabulary_size=100))
    assert sum("outside the vocabulary of 100" in problem for problem in verify(dataset)) == 3


def test_verify_finds_wrong_boundaries_and_a_last_token_that_is_not_eos(dataset: Path) -> None:
    rows = gzip.decompress((dataset / "train" / "0000.csv.gz").read_bytes()).decode().replace("21,42", "21,41")
    (dataset / "train" / "0000.csv.gz").write_bytes(gzip.compress(rows.encode()))
    shard = dataset / "train" / "0001.npy"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x09\x00")
    problems = verify(dataset)
    assert any("0000.csv.gz row 2" in problem for problem in problems)
    assert any("0001.npy" in problem and "ends in token 9" in problem for problem in problems)


def test_verify_finds_missing_and_damaged_boundaries(dataset: Path) -> None:
    (dataset / "train" / "0000.csv.gz").unlink()
    boundaries = dataset / "train" / "0001.csv.gz"
    boundaries.write_bytes(boundaries.read_bytes()[:-9])
    problems = verify(dataset)
    assert len(problems) == 2
    assert "0000.csv.gz is missing" in problems[0] and "0001.csv.gz cannot be read" in problems[1]


def test_dtype_is_the_smallest_that_holds_every_id() -> None:
    assert [smallest_dtype(n) for n in (32_000, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


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
