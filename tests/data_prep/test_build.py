"""A mixture of several sources: budgets, hold-out, repeated epochs, duplicates, order of processes, interruptions."""

import csv
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import yaml

from data_prep.__main__ import main
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest

WORDS = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
SEQUENCE = 64


def _write_source(folder: Path, name: str, files: int, rows: int, words: int, seed: int) -> list[str]:
    """JSON lines of random real words; returns the texts."""
    rng = random.Random(f"{name} {seed}")
    (folder / name).mkdir(parents=True)
    texts = []
    for file in range(files):
        made = [" ".join(rng.choices(WORDS, k=rng.randint(5, 2 * words))) for _ in range(rows)]
        lines = [json.dumps({"text": text}) for text in made]
        (folder / name / f"{file}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        texts += made
    return texts


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    web = _write_source(folder, "web", 4, 300, 40, 1)
    books = _write_source(folder, "books", 2, 90, 300, 2)
    _write_source(folder, "quiz", 1, 130, 10, 3)
    for path in (folder / "web").iterdir():  # copies within the source, with white space added, and of another source
        rows = [json.dumps({"text": text}) for text in [*(f" {text}\n" for text in web[::20]), *books[::10]]]
        path.write_text(path.read_text(encoding="utf-8") + "\n" + "\n".join(rows), encoding="utf-8")
    return folder


FEW = {"sequences": 2, "sequence_length": SEQUENCE}
SHORT = [{"name": "quiz", "share": 1.0, "dataset": "a/quiz", "epochs": 4}]


def _mixture(path: Path, **changes: object) -> Path:
    sources = [
        {"name": "books", "share": 0.4, "dataset": "a/books"},
        {"name": "web", "share": 0.5, "dataset": "a/web"},
        {"name": "quiz", "share": 0.1, "dataset": "a/quiz", "epochs": 4},
    ]
    settings = {
        "tokens": 60_000,
        "seed": 3,
        "tokenizer": "mistral-v1",
        "validation": {"sequences": 40, "sequence_length": SEQUENCE},
        "shard_megabytes": 0.05,
        "decontamination": {"mode": "off"},
        "sources": sources,
    }
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def _run(mixture: Path, local: Path, output: Path, *options: str) -> Manifest:
    main([str(mixture), "--local", str(local), "--output", str(output), "--processes", "1", *options])
    return Manifest.load(output)


@pytest.fixture(scope="module")
def built(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    _run(_mixture(folder / "mixture.yaml"), local, folder / "data")
    return folder / "data"


def _rows(output: Path, split: str, source: str = "*") -> list[list[str]]:
    rows = []
    for path in sorted(output.glob(f"{split}/{source}-*.csv.gz")):
        with gzip.open(path, "rt", newline="") as stream:
            rows += list(csv.reader(stream))
    return rows


def _texts(output: Path, rows: list[list[str]]) -> list[str]:
    files: dict[str, list[bytes]] = {}
    for row in rows:
        if row[3] not in files:
            files[row[3]] = gzip.decompress((output / row[3]).read_bytes()).splitlines()
    return [json.loads(files[row[3]][int(row[4]) - 1])["text"] for row in rows]


def _hashes(texts: list[str]) -> set[str]:
    return {hashlib.sha256(text.strip().encode()).hexdigest() for text in texts}


def _dataset(root: Path) -> dict[str, str]:
    patterns = ("*.json*", "train/*", "validation/*", "documents/*/*.jsonl.gz")
    paths = [path for pattern in patterns for path in root.glob(pattern)]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_shares_are_met_to_a_document(built: Path) -> None:
    manifest = Manifest.load(built)
    assert verify(built) == []
    longest = {"web": 600, "books": 600, "quiz": 20}  # some of web are copies of books
    for source, asked in {"books": 24_000, "web": 30_000, "quiz": 6_000}.items():
        came = manifest.totals("train", source)[0]
        assert abs(came - asked) <= 3 * longest[source], source  # some words are several tokens
    assert manifest.asked["web"]["tokens"] == 30_000 and manifest.asked["web"]["share"] == 0.5


def test_validation_is_whole_sequences_by_share(built: Path) -> None:
    manifest = Manifest.load(built)
    for source, sequences in {"books": 16, "web": 20, "quiz": 4}.items():
        assert manifest.totals("validation", source)[0] == sequences * SEQUENCE


def test_no_held_out_document_is_trained_on(built: Path) -> None:
    train, validation = (_hashes(_texts(built, _rows(built, split))) for split in ("train", "validation"))
    assert len(validation) > 30 and not train & validation


def test_held_out_documents_are_a_fair_sample(built: Path) -> None:
    """The hash chooses, so the mean length of what is held out is that of the source but for chance."""
    lengths = {
        split: np.array([int(end) - int(start) for start, end, *_ in _rows(built, split, "web")])
        for split in ("train", "validation")
    }
    train, validation = lengths["train"], lengths["validation"][:-1]
    assert abs(validation.mean() - train.mean()) < 4 * train.std() / len(validation) ** 0.5


def test_a_text_is_kept_once(built: Path) -> None:
    for source in ("books", "web"):
        texts = _texts(built, _rows(built, "*", source))
        assert len(texts) == len(_hashes(texts))
    books, web = (_hashes(_texts(built, _rows(built, "*", source))) for source in ("books", "web"))
    assert not books & web
    assert sum(counts.get("duplicate", 0) for counts in Manifest.load(built).mixture["left_out"].values()) > 0


def test_epochs_repeat_what_there_is_and_are_told(built: Path) -> None:
    counts = Counter(row[2] for row in _rows(built, "train", "quiz"))
    passes = Manifest.load(built).asked["quiz"]["passes"]
    assert 2 < passes < 4 and set(counts.values()) <= {int(passes), int(passes) + 1}
    assert set(Counter(row[2] for row in _rows(built, "train", "books")).values()) == {1}


def test_too_few_tokens_are_refused_with_the_remedy(local: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4 epochs of its .* asked for; .* epochs: \d"):
        _run(_mixture(tmp_path / "m.yaml", tokens=40_000, sources=SHORT, validation=FEW), local, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_budget_far_beyond_the_source_is_its_fault_and_not_the_hold_out_s(local: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"books: its .* tokens are fewer than the 400,000,000 asked for"):
        _run(_mixture(tmp_path / "m.yaml"), local, tmp_path / "out", "--tokens", "1e9")


def test_a_finished_dataset_is_mended(built: Path, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = Path(shutil.copytree(built, tmp_path / "copy"))
    shard = output / "train" / "web-00001.npy"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    _run(built.parent / "mixture.yaml", local, output)
    assert "nothing to do" not in capsys.readouterr().err and _dataset(output) == _dataset(built)
    (output / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest.json: .* remove this file and run again"):
        _run(built.parent / "mixture.yaml", local, output)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.5, 3.0])
def test_an_interruption_is_told_without_a_traceback(built: Path, local: Path, tmp_path: Path, after: float) -> None:
    command = [sys.executable, "-m", "data_prep", str(built.parent / "mixture.yaml"), "--local", str(local)]
    command += ["--output", str(tmp_path / "out"), "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / ".partial").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said and "interrupted: the same command goes on" in said


def test_too_little_to_hold_out_is_refused(local: Path, tmp_path: Path) -> None:
    validation = {"sequences": 1000, "sequence_length": SEQUENCE}
    with pytest.raises(InputError, match=r"quiz: its documents that may be held out have .* fewer validation"):
        _run(_mixture(tmp_path / "m.yaml", validation=validation), local, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(built: Path, local: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    command = [sys.executable, "-m", "data_prep", str(built.parent / "mixture.yaml"), "--local", str(local)]
    subprocess.run([*command, "--output", str(output), "--processes", "2"], check=True, capture_output=True)
    assert _dataset(output) == _dataset(built)
    again = subprocess.run([*command, "--output", str(output)], check=True, capture_output=True, text=True)
    assert "nothing to do" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.2, 0.5, 0.8])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(
    built: Path, local: Path, tmp_path: Path, moment: float
) -> None:
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "data_prep", str(built.parent / "mixture.yaml"), "--local", str(local)]
    command += ["--output", str(output), "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    expected = len(list(built.glob("documents/*/[0-9]*.jsonl.gz"))) * moment
    deadline = time.monotonic() + 120
    while len(list(output.glob("documents/*/[0-9]*.jsonl.gz"))) < expected and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "manifest.json").exists()
    _run(built.parent / "mixture.yaml", local, output)
    assert _dataset(output) == _dataset(built)


@pytest.mark.parametrize("begun", ["source", "seen", "documents", "shard"])
def test_whatever_is_missing_is_made_again(built: Path, local: Path, tmp_path: Path, begun: str) -> None:
    output = Path(shutil.copytree(built, tmp_path / "copy"))
    (output / "manifest.json").unlink()
    removed: dict[str, Callable[[], list[Path]]] = {
        "source": lambda: list(output.glob("documents/*/source.json")),
        "seen": lambda: [],
        "documents": lambda: list(output.glob("documents/web/00001.jsonl.gz")),
        "shard": lambda: list(output.glob("train/web-00001.*")) + list(output.glob("validation/*.npy")),
    }
    for path in removed[begun]():
        path.unlink()
    _run(built.parent / "mixture.yaml", local, output)
    assert _dataset(output) == _dataset(built)


def test_the_seed_decides_what_is_held_out(built: Path, local: Path, tmp_path: Path) -> None:
    _run(built.parent / "mixture.yaml", local, tmp_path / "out", "--seed", "4")
    assert {row[2] for row in _rows(built, "validation")} != {row[2] for row in _rows(tmp_path / "out", "validation")}


def test_a_document_longer_than_a_shard_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    long = " ".join(random.Random(0).choices(WORDS, k=20_000))
    (tmp_path / "in" / "long.txt").write_text(long)
    (tmp_path / "in" / "short.txt").write_text("short")
    output = tmp_path / "out"
    options = ["--shard-megabytes", "0.05", "--validation-share", "0", "--processes", "1"]
    main([str(tmp_path / "in"), "--output", str(output), *options])
    assert "1 documents are longer than a shard" in capsys.readouterr().err
    assert verify(output) == [] and sorted(_texts(output, _rows(output, "train"))) == sorted([long, "short"])


@pytest.mark.slow
def test_a_full_disk_is_told_in_a_line_and_nothing_is_lost(built: Path, local: Path, tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    command = [sys.executable, "-m", "data_prep", str(built.parent / "mixture.yaml"), "--local", str(local)]
    command += ["--output", str(disk / "out"), "--processes", "2"]
    script = f'mount -t tmpfs -o size=2300k none {disk} && "$@"; code=$?; cp -r {disk} {kept}; exit $code'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *command], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and "run again" in last
    assert re.search("No space left on device|disk is full", last), "the system's words, or SQLite's where it was first"
    assert "Traceback" not in done.stderr and not (kept / "out" / "manifest.json").exists()
    assert list(kept.glob("out/train/*.npy"))
    _run(built.parent / "mixture.yaml", local, kept / "out")
    assert _dataset(kept / "out") == _dataset(built)
