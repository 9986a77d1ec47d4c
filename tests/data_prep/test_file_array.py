"""Source files prepared one by one, in any order, at once and killed: the dataset has the bytes of a single job's."""

import fcntl
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from conftest import REPOSITORY
from hub_server import COMMIT, running_hub

from data_prep.__main__ import main
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import Manifest

WORDS = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
QUESTION = "how many apples does the teacher give to each of her seven very hungry pupils today"


def _texts(seed: str, count: int, words: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 2 * words))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and texts with what makes the order matter: copies within and across files, what is no document between
    them, a budget that ends amid a file, and documents with a test item."""
    folder = tmp_path_factory.mktemp("corpus")
    web, quiz = _texts("web", 360, 40), _texts("quiz", 60, 10)
    for number in (100, 250):
        web[number] = f"{web[number]} {QUESTION} {web[number + 1]}"
    (folder / "local" / "web").mkdir(parents=True)
    for number in range(4):
        own = web[90 * number : 90 * (number + 1)]
        rows = [json.dumps({"text": text}) for text in [*own, own[3], f" {web[7]}\n", web[91]]]
        rows[20:20], rows[50:50] = ["{broken", '{"text": " "}'], ['{"text": 5}']
        (folder / "local" / "web" / f"{number}.jsonl").write_text("\n".join([*rows, "{at the end"]))
    (folder / "notes").mkdir()
    for number, text in enumerate([*_texts("notes", 12, 200), web[30], "", QUESTION]):
        (folder / "notes" / f"{number:02d}.txt").write_text(text)
    (folder / "notes" / "05a.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "local" / "quiz").mkdir()
    rows = [json.dumps({"text": text}) for text in [*quiz, web[0]]]
    (folder / "local" / "quiz" / "0.jsonl").write_text("\n".join(rows))
    (folder / "items" / "gsm8k").mkdir(parents=True)
    (folder / "items" / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "7"}))
    sources = [
        {"name": "notes", "tokens": 2500, "kind": "folder", "path": str(folder / "notes")},
        {"name": "web", "tokens": 12_000, "dataset": "a/web"},
        {"name": "quiz", "tokens": 1500, "dataset": "a/quiz", "epochs": 4},
    ]
    settings = {"seed": 3, "shard_megabytes": 0.02, "validation": {"sequences": 20, "sequence_length": 64}}
    decontamination = {"mode": "drop", "tasks": ["gsm8k"]}
    mixture = settings | {"decontamination": decontamination, "sources": sources}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    return folder


def _command(corpus: Path, output: Path, *options: str) -> list[str]:
    given = ["--local", str(corpus / "local"), "--test-items", str(corpus / "items"), "--processes", "1"]
    return [str(corpus / "mixture.yaml"), "--output", str(output), *given, *options]


def _bytes(root: Path) -> dict[str, bytes]:
    """Every file there is, the records of the run among them."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a single job makes."""
    output = tmp_path_factory.mktemp("alone") / "data"
    main(_command(corpus, output))
    left_out = Manifest.load(output).mixture["left_out"]
    reasons = {reason for counts in left_out.values() for reason in counts}
    assert reasons == {"duplicate", "invalid JSON", "empty text", "invalid UTF-8", "no text"}
    assert json.loads((output / "contamination.json").read_text())["tasks"]["gsm8k"]["documents"] > 1
    return _bytes(output)


def _prepare(corpus: Path, output: Path, *indices: int) -> None:
    for index in indices:
        main(_command(corpus, output, "--file", str(index)))


def test_files_in_any_order_make_the_bytes_of_a_single_job(
    corpus: Path, alone: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    main(_command(corpus, output, "--list-files"))
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in listed] == ["notes", *["web"] * 4, "quiz"]
    _prepare(corpus, output, 5, 3, 0, 1)
    main(_command(corpus, output, "--list-files"))
    states = [line.split("\t")[3] for line in capsys.readouterr().out.splitlines()]
    assert states == ["prepared", "prepared", "waiting", "prepared", "waiting", "prepared"]
    main(_command(corpus, output))  # which reads for itself what was not prepared
    assert _bytes(output) == alone


def test_nothing_is_read_again_that_is_prepared(
    corpus: Path, alone: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, output = Path(shutil.copytree(corpus, tmp_path / "corpus")), tmp_path / "data"
    (copy / "mixture.yaml").write_text((corpus / "mixture.yaml").read_text().replace(str(corpus), str(copy)))
    main(_command(copy, output, "--list-files"))
    _prepare(copy, output, *range(6))
    (torn,) = output.glob("prepared/quiz/*/00000.npy")
    records = [json.loads(path.read_text()) for path in output.glob("prepared/web/*/record.json")]
    names = [name for record in records for name in record["sums"]]
    assert len(names) >= 3
    for path in [*(copy / "local" / "web" / name for name in names), *copy.glob("notes/*")]:
        status = path.stat()
        path.write_bytes(bytes(status.st_size))  # its documents are gone
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.truncate(torn, 100)
    capsys.readouterr()
    main(_command(copy, output))
    made = _bytes(output)
    del made["documents/inputs.json"]  # times of the copies
    assert made == {name: content for name, content in alone.items() if name in made}
    assert len(made) == len(alone) - 1
    told = capsys.readouterr().err
    assert "quiz: what was prepared of 0.jsonl is damaged: the file is read again" in told
    assert told.count("read again") == 1


def _start(corpus: Path, output: Path, index: int) -> multiprocessing.Process:
    """A task as a process of its own, which shares what this one has imported."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=main, args=(_command(corpus, output, "--file", str(index)),))
    process.start()
    return process  # type: ignore[return-value]


@pytest.mark.parametrize("pieces", [1, 3])
def test_tasks_at_once_of_which_one_is_killed_and_given_again(
    corpus: Path, alone: dict[str, bytes], tmp_path: Path, pieces: int
) -> None:
    output = tmp_path / "data"
    main(_command(corpus, output, "--list-files"))
    killed, other = (_start(corpus, output, index) for index in (1, 2))
    deadline = time.monotonic() + 60
    listed = json.loads((output / "prepared" / "files.json").read_text())["units"][1]
    folder = output / "prepared" / "web" / f".{listed['index']:05d}"
    while killed.is_alive() and len(list(folder.glob("[0-9]*.json"))) < pieces and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.kill()  # or it has ended by now, with all pieces
    killed.join()
    other.join()
    assert other.exitcode == 0
    # pieces with a record are whole
    records = list(output.glob("prepared/web/.*/[0-9]*.json"))
    kept = {path: path.with_suffix(".npy").stat().st_ino for path in records}
    assert len(kept) >= pieces or not list(output.glob("prepared/web/.*"))
    again = _start(corpus, output, 1)
    again.join()
    assert again.exitcode == 0 and not list(output.glob("prepared/web/.*"))
    assert len(list(output.glob("prepared/web/*/record.json"))) == 2
    for path, inode in kept.items():
        whole = path.parent.with_name(path.parent.name.removeprefix(".")) / path.with_suffix(".npy").name
        assert whole.stat().st_ino == inode, "it was made again"
    main(_command(corpus, output))
    assert _bytes(output) == alone


def test_files_beyond_the_budget_are_left_alone(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    less = ("--tokens", "4000", "--validation-sequences", "2")
    main(_command(corpus, output, "--list-files", *less))
    for index in (2, 1, 2, 3):
        main(_command(corpus, output, "--file", str(index), *less))
    told = [line for line in capsys.readouterr().err.splitlines() if "web" in line or "nothing" in line]
    assert [("not needed" in line, "is prepared" in line) for line in told] == [
        (False, True),
        (False, True),
        (False, True),
        (True, False),
    ], told
    main(_command(corpus, output, *less))
    assert not (output / "prepared").exists()
    for step in (("--file", "3"), ("--list-files",)):
        main(_command(corpus, output, *step, *less))
        assert "nothing to do: the dataset is finished" in capsys.readouterr().err


def test_what_cannot_be_prepared_is_refused_in_a_line(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    with pytest.raises(InputError, match="are not listed; first give the same command with --list-files"):
        _prepare(corpus, output, 0)
    main(_command(corpus, output, "--list-files"))
    for index in (6, -1):
        with pytest.raises(InputError, match=f"--file: {index} is none of the 6 files"):
            _prepare(corpus, output, index)
    with pytest.raises(InputError, match="were listed for another mixture; give the same arguments"):
        main(_command(corpus, output, "--file", "0", "--seed", "9"))
    with pytest.raises(SystemExit):
        main(_command(corpus, output, "--file", "0", "--list-files"))
    held = os.open(output, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run is writing there"):
        _prepare(corpus, output, 0)
    os.close(held)


HUB = """
import json, shutil, sys
from pathlib import Path
from data_prep.__main__ import main
hub, command = Path(sys.argv[1]), sys.argv[2:]
main([*command, "--list-files"])
(hub / "b.jsonl").write_text(json.dumps({"text": "later"}))
main([*command, "--file", "0"])
shutil.rmtree(hub)
main(command)
"""


@pytest.mark.slow  # the hub's address is fixed at import, so this is a process of its own
def test_files_of_the_hub_stay_as_they_were_listed(tmp_path: Path) -> None:
    """A file that is added after that is none of the dataset's, and the hub is not asked for what is prepared."""
    hub, output, mixture = tmp_path / "hub", tmp_path / "data", tmp_path / "m.yaml"
    (hub / "some" / "text").mkdir(parents=True)
    (hub / "some" / "text" / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in _texts("hub", 30, 9)))
    source = {"name": "some", "dataset": "some/text", "files": ["*.jsonl"]}
    mixture.write_text(yaml.safe_dump({"validation": {"share": 0.1}, "sources": [source]}))
    with running_hub(hub) as (address, _):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
            environment.pop(name, None)
        command = [sys.executable, "-c", HUB, str(hub / "some" / "text"), str(mixture), "--output", str(output)]
        done = subprocess.run([*command, "--processes", "1"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Manifest.load(output).mixture["inputs"]["some"]
    assert (found["revision"], found["units"]) == (COMMIT, 1)
    assert sum(Manifest.load(output).totals(split)[1] for split in ("train", "validation")) == 30
