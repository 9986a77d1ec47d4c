"""`python -m data_prep` from end to end, against dolma's command, OLMo's reader and the tokenizers library."""

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.__main__ import main
from data_prep.verify import main as verify_command
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_checks import check_training_shards
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest

OPTIONS = ["--validation-share", "0.1", "--shard-megabytes", "0.05", "--seed", "5"]
SPECIAL = ["ends in </s>", "<s> [INST] <unk> </s>\n\n  漢字 🙂 é", "\t leading and trailing  \n\n"]


def _texts() -> dict[str, str]:
    return {name: topics[name] for name in sorted(topics)[::2]}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text in every kind of file, with special tokens spelled out in it."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "plain").mkdir()
    names = list(_texts())
    for name in names[:10]:
        (folder / "plain" / f"{name}.txt").write_text(_texts()[name], encoding="utf-8")
    rows = [json.dumps({"id": name, "text": _texts()[name]}) for name in names[10:]]
    (folder / "rows.jsonl").write_text("\n".join([*rows[:10], "{broken", '{"text": null}']), encoding="utf-8")
    rows = rows[10:] + [json.dumps({"text": text, "source": "special"}) for text in SPECIAL]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return folder


@pytest.fixture(scope="session")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "data.v1"
    assert main([str(source), "--output", str(output), "--processes", "1", *OPTIONS]) == 0
    return output


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def _bytes(root: Path, *patterns: str) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for pattern in patterns for p in root.glob(pattern)}


def _dataset(root: Path) -> dict[str, bytes]:
    return _bytes(root, "*.json", "train/*", "validation/*", "documents/*/*.jsonl.gz")


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def _boundaries(shard: Path) -> list[list[str]]:
    with gzip.open(shard.with_suffix(".csv.gz"), "rt", newline="") as stream:
        return list(csv.reader(stream))


def test_the_dataset_is_sound(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(built) == []
    assert verify_command([str(built)]) == 0
    assert "documents" in capsys.readouterr().out
    manifest = Manifest.load(built)
    assert len(manifest.files) > 4 and not list(built.glob(".*"))
    assert manifest.totals("train")[1] + manifest.totals("validation")[1] == len(_texts()) + len(SPECIAL)
    assert set(manifest.sources("train")) | set(manifest.sources("validation")) == {"plain", "documents"}
    assert str(built.parent) not in (built / "manifest.json").read_text()
    assert manifest.mixture["left_out"] == {"documents: rows.jsonl": {"invalid JSON": 1, "no text": 1}}


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(built: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    command = [sys.executable, "-m", "data_prep", str(source), "--output", str(output), "--processes", "2", *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning: documents: rows.jsonl: left out 1 x invalid JSON, 1 x no text" in done.stderr
    assert "plain" in done.stdout
    assert _dataset(output) == _dataset(built)


def test_shards_decode_to_the_documents(built: Path) -> None:
    tokenizer = Tokenizer.from_file(str(built / "tokenizer.json"))
    decoded = []
    for shard in sorted(built.glob("*/*.npy")):
        if shard.parent.name not in ("train", "validation"):
            continue
        tokens = np.fromfile(shard, dtype="<u2")
        boundaries = _boundaries(shard)
        assert [int(row[1]) for row in boundaries] == (np.flatnonzero(tokens == 2) + 1).tolist()
        assert [int(row[0]) for row in boundaries] == [0, *(int(row[1]) for row in boundaries[:-1])]
        for start, end, identifier, path, line in boundaries:
            row = _rows(built / path)[int(line) - 1]
            text = tokenizer.decode(tokens[int(start) : int(end) - 1].tolist())
            assert row["id"] == identifier and row["text"].strip() == text
            decoded.append(text)
    assert sorted(decoded) == sorted(text.strip() for text in [*_texts().values(), *SPECIAL])


def _whole_part(built: Path) -> tuple[Path, Path]:
    """(documents, shard) of a part none of whose documents was held out."""
    for path in sorted(built.glob("documents/documents/*.jsonl.gz")):
        if json.loads(path.with_name(path.name.replace(".jsonl.gz", ".json")).read_text())["candidates"]["tokens"] == 0:
            return path, built / "train" / f"documents-{path.name.removesuffix('.jsonl.gz')}.npy"
    raise AssertionError("every part has candidates")


@pytest.mark.slow
def test_a_shard_is_what_dolma_tokens_writes(built: Path, tmp_path: Path) -> None:
    documents, ours = _whole_part(built)
    (tmp_path / "nltk" / "tokenizers" / "punkt").mkdir(parents=True)
    # With batches of one document and one process, dolma's command keeps the order of a file.
    command = [shutil.which("dolma", path=os.path.dirname(sys.executable)) or "dolma", "tokens"]
    command += ["--documents", str(documents), "--destination", str(tmp_path / "out")]
    command += ["--tokenizer.name_or_path", str(built / "tokenizer.json"), "--tokenizer.eos_token_id", "2"]
    command += ["--tokenizer.pad_token_id", "0", "--tokenizer.encode_special_tokens", "--dtype", "uint16"]
    command += [
        "--batch_size",
        "1",
        "--processes",
        "1",
        "--debug",
        "--max_size",
        "1000000",
        "--fields.id_field_name",
        "id",
    ]
    environment = os.environ | {"NLTK_DATA": str(tmp_path / "nltk")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    (theirs,) = (tmp_path / "out").glob("*.npy")
    assert theirs.read_bytes() == ours.read_bytes(), done.stderr
    without_source_path = [[[*row[:3], row[4]] for row in _boundaries(shard)] for shard in (theirs, ours)]
    assert without_source_path[0] == without_source_path[1]


def test_olmo_reads_the_shards(built: Path) -> None:
    from olmo.data.memmap_dataset import MemMapDataset

    shards = sorted(built.glob("train/*.npy"))
    config = {"vocab_size": 32_000, "eos_token_id": 2, "pad_token_id": 0, "dtype": "uint16", "sequence_length": 128}
    dataset = MemMapDataset(*shards, chunk_size=128, memmap_dtype=np.uint16)
    assert check_training_shards(shards, **config) == len(dataset) > 100
    assert dataset[0]["input_ids"].tolist() == np.fromfile(shards[0], dtype="<u2")[:128].tolist()


def test_a_rerun_has_nothing_to_do(copy: Path, source: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.npy")}
    shutil.rmtree(copy / "documents")
    assert main([str(source), "--output", str(copy), *OPTIONS]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*.npy")} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "6"], r"mixture\.seed 5 there and 6 here"),
        (["--tokenizer", "olmo"], "tokenizer mistral-v1 there and olmo here"),
        (["--validation-share", "0.2"], r"validation\.share 0.1 there and 0.2 here"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(copy: Path, source: Path, options: list[str], said: str, finished: bool) -> None:
    if not finished:
        (copy / "manifest.json").unlink()
    before = _dataset(copy)
    with pytest.raises(InputError, match=said):
        main([str(source), "--output", str(copy), *OPTIONS, *options])
    assert _dataset(copy) == before


def test_other_inputs_are_refused(copy: Path, source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "source"))
    main([str(other), "--output", str(copy), *OPTIONS])  # the same files elsewhere are the same input
    path = next((other / "plain").iterdir())
    path.write_text(path.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(InputError, match=r"inputs\.plain\.sha256"):
        main([str(other), "--output", str(copy), *OPTIONS])


def test_a_folder_of_other_things_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        main([str(source), "--output", str(tmp_path), *OPTIONS])
    assert [path.name for path in tmp_path.rglob("*")] == ["documents", "thesis.txt"]


def test_two_runs_do_not_write_into_one_folder(copy: Path, source: Path) -> None:
    import fcntl

    held = os.open(copy, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run is writing"):
        main([str(source), "--output", str(copy), *OPTIONS])
    os.close(held)


def test_an_unfinished_dataset_is_finished_to_the_same_bytes(built: Path, copy: Path, source: Path) -> None:
    kept = copy / "train" / "documents-00000.npy"
    time_of_kept = kept.stat().st_mtime_ns
    (copy / "manifest.json").unlink()
    (copy / "train" / "documents-00001.npy").unlink()
    os.truncate(copy / "train" / "documents-00002.npy", 100)
    next(copy.glob("validation/documents*.csv.gz")).unlink()
    next(copy.glob("documents/plain/*.jsonl.gz")).write_bytes(b"torn")
    (copy / "train" / "documents-00099.npy").write_bytes(b"of another run")
    (copy / ".partial" / "train-0001").mkdir(parents=True)
    (copy / ".partial" / "train-0001" / "tokens.npy").write_bytes(b"half")
    main([str(source), "--output", str(copy), "--processes", "1", *OPTIONS])
    assert _dataset(copy) == _dataset(built)
    assert kept.stat().st_mtime_ns == time_of_kept and not (copy / ".partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3, 6])
def test_a_killed_run_goes_on_to_the_same_bytes(built: Path, source: Path, tmp_path: Path, shards: int) -> None:
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "data_prep", str(source), "--output", str(output), "--processes", "2", *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(output.glob("train/*.npy"))) < shards and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "manifest.json").exists()
    main([str(source), "--output", str(output), "--processes", "1", *OPTIONS])
    assert _dataset(output) == _dataset(built)


@pytest.mark.parametrize("damage", ["truncate", "flip", "tokenizer", "dtype", "delete"])
def test_damage_is_found_and_the_file_named(copy: Path, damage: str, capsys: pytest.CaptureFixture) -> None:
    shard, named = copy / "train" / "documents-00001.npy", "documents-00001.npy"
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size - 2)
    elif damage == "flip":
        content = bytearray(shard.read_bytes())
        content[100] ^= 1
        shard.write_bytes(content)
    elif damage == "tokenizer":
        named = "tokenizer.json"
        (copy / named).write_text((copy / named).read_text() + " ")
    elif damage == "dtype":
        shard.write_bytes(np.fromfile(shard, dtype="<u2").astype("<u4").tobytes())
    else:
        shard.unlink()
    assert verify_command([str(copy)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors and all(line.startswith("error: ") and named in line for line in errors)


def test_a_damaged_input_leaves_no_manifest_and_can_be_replaced(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "source"))
    whole = (broken / "rows.jsonl.gz").read_bytes()
    (broken / "rows.jsonl.gz").write_bytes(whole[:-50])
    command = [sys.executable, "-m", "data_prep", str(broken), "--output", str(tmp_path / "out"), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rows.jsonl.gz" in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "manifest.json").exists()
    (broken / "rows.jsonl.gz").write_bytes(whole)
    assert main([str(broken), "--output", str(tmp_path / "out"), "--processes", "1", *OPTIONS]) == 0
