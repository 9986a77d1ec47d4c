"""`python -m olmoe_parrots.synthetic` from end to end: the folder, its bytes, OLMo's reader, refusals, interruption."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import Manifest
from olmoe_parrots.synthetic.__main__ import main
from olmoe_parrots.synthetic.build import load_task
from olmoe_parrots.synthetic.task import Queries

REPOSITORY = Path(__file__).parents[2]
PATHS = ["shortest_path", "--vertices", "12", "--lengths", "1-5", "--test-size", "50", "--seed", "3"]
BOOK = ["phone_book", "--test-size", "50", "--seed", "3"]


def _make(folder: Path, *arguments: str, processes: int = 1) -> Path:
    assert main([*arguments, "--output", str(folder), "--processes", str(processes)]) == 0
    return folder


@pytest.fixture(scope="module", params=[BOOK, PATHS], ids=["phone_book", "shortest_path"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(tmp_path_factory.mktemp("synthetic") / request.param[0], *request.param, "--size", "500")


def _sums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "size"), [(BOOK, 600_000), (PATHS, 70_000)], ids=["phone_book", "shortest_path"])
def test_one_and_two_workers_give_the_same_bytes(arguments: list[str], size: int, tmp_path: Path) -> None:
    one, two = (_make(tmp_path / str(n), *arguments, "--size", str(size), processes=n) for n in (1, 2))
    assert len(list(one.glob("train/*.npy"))) == 3
    assert _sums(one) == _sums(two)
    assert not list(tmp_path.glob(".*"))


def test_the_bytes_of_a_seed_stay_what_they_are(built: Path) -> None:
    """Of this recipe, on every machine and under every numpy."""
    files = Manifest.load(built).files
    assert {file.source: file.sha256[:16] for file in files}.items() <= {
        "phone_book": "57092e9855c47f10",
        "shortest_path": "20438875b7f79fbe",
    }.items()


def test_the_manifest_names_every_file_and_its_sum(built: Path) -> None:
    manifest, sums = Manifest.load(built), _sums(built)
    listed = {file.path: file.sha256 for file in manifest.files}
    listed |= {file.label_mask: file.label_mask_sha256 for file in manifest.files}
    listed |= {report.path: report.sha256 for report in manifest.reports}
    listed |= {"tokenizer.json": manifest.tokenizer.sha256}
    assert listed == {name: digest for name, digest in sums.items() if name != "manifest.json"}
    assert manifest.totals("train") == (500 * manifest.mixture["sequence_length"], 500)


def test_the_tokenizers_library_reads_the_vocabulary(built: Path) -> None:
    tokenizer, (task, _) = Tokenizer.from_file(str(built / "tokenizer.json")), load_task(built)
    manifest = Manifest.load(built)
    assert tokenizer.get_vocab_size() == manifest.tokenizer.vocabulary_size
    assert (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<eos>")) == (0, 1)
    rows = np.fromfile(built / manifest.files[0].path, dtype="<u2").reshape(500, -1)
    for row in rows[:20]:
        text = tokenizer.decode(row.tolist(), skip_special_tokens=False)
        assert text == task.vocabulary.decode(row)
        assert tokenizer.encode(text).ids == row.tolist()


@pytest.mark.slow
def test_olmo_learns_the_answers_alone(built: Path) -> None:
    from olmo.data import DataCollator, MemMapDataset
    from olmo.train import Trainer

    manifest, (task, _) = Manifest.load(built), load_task(built)
    file = manifest.files[0]
    assert file.label_mask is not None
    data = MemMapDataset(
        str(built / file.path), chunk_size=task.row_length, label_mask_paths=[str(built / file.label_mask)]
    )
    assert len(data) == 500
    batch = DataCollator(pad_direction="right", pad_token_id=0)([data[i] for i in range(500)])
    labels = Trainer.get_labels(None, batch)
    assert labels.shape == (500, task.row_length - 1)
    for row, label in zip(batch["input_ids"], labels, strict=True):
        words = task.vocabulary.decode(row.numpy()).split()
        answer = words[words.index(":") + 1 : words.index("<eos>") + (task.name == "shortest_path")]
        assert task.vocabulary.decode(label[label != -100].numpy()).split() == answer
        # a label stands where its token is predicted: the first one at the colon
        assert label.ne(-100).nonzero()[0].item() == words.index(":")


def test_queries_and_task_come_back(built: Path) -> None:
    task, queries = load_task(built)
    assert len(queries.prompts_QT) == 50
    assert len(np.unique(queries.prompts_QT, axis=0)) == 50
    measured = {m.metric: m.value for m in task.score(queries, queries.answers_QT)}
    assert measured["accuracy" if task.name == "phone_book" else "right"] == 1
    again, _ = task.test_queries(500, 50, 3)
    assert np.array_equal(again.prompts_QT, queries.prompts_QT)
    assert np.array_equal(again.answers_QT, queries.answers_QT)


def test_a_finished_folder_is_left_alone(built: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = BOOK if built.name == "phone_book" else PATHS
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    _make(built, *arguments, "--size", "500")
    assert "nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before
    with pytest.raises(InputError, match="size 500 there and 501 here"):
        _make(built, *arguments, "--size", "501")


def test_other_and_damaged_folders_are_refused(built: Path, tmp_path: Path) -> None:
    arguments = [*(BOOK if built.name == "phone_book" else PATHS), "--size", "500"]
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    mask = next(copy.glob("train/*.label_mask"))
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(InputError, match="missing or cut off"):
        _make(copy, *arguments)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        _make(tmp_path / "other", *arguments)
    (tmp_path / "empty").mkdir()
    assert _sums(_make(tmp_path / "empty", *arguments)) == _sums(built)
    (copy / "test" / "queries.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read"):
        Queries.load(copy)
    (copy / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="format"):
        load_task(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BOOK, "--size", "0"], "--size: 0 is below 1"),
        ([*BOOK, "--size", "100", "--test-size", "0"], "--test-size: 0 is below 1"),
        ([*BOOK, "--size", "100", "--seed", "-1"], "--seed: -1 is below 0"),
        ([*BOOK, "--size", "12000000"], "11,881,376 of 5 characters exist"),
        ([*BOOK, "--size", "100", "--processes", "0"], "--processes: 0 is not positive"),
        ([*BOOK, "--size", "100", "--sequence-length", "0"], "--sequence-length: 0 is not positive"),
        ([*BOOK, "--size", "9000000000", "--name-length", "12", "--number-length", "12"], "GB are needed"),
        ([*PATHS, "--size", "100", "--lengths", "x"], "--lengths: 'x' is not MIN-MAX"),
        ([*PATHS, "--size", "100", "--density", "0"], "--density: 0.0 is not a share"),
        ([*PATHS, "--size", "100", "--density", "0.1", "--mean-degree", "2"], "says the same"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        main([*arguments, "--output", str(tmp_path / "out")])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_two_on_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "olmoe_parrots.synthetic", "phone_book", "--size", "5", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --test-size: ")


def test_density_is_a_share_of_all_edges(tmp_path: Path) -> None:
    folder = _make(tmp_path / "out", "shortest_path", "--vertices", "12", "--density", "0.5", "--size", "10")
    task, _ = load_task(folder)
    # 66 pairs of 12 vertices
    assert task.needed_length == 33 * 3 + 4 + 12 + 1


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_starts_again(tmp_path: Path) -> None:
    arguments = [*PATHS, "--size", "200000", "--output", str(tmp_path / "out"), "--processes", "2"]
    command = [sys.executable, "-m", "olmoe_parrots.synthetic", *arguments]
    run = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    scratch = tmp_path / ".out.partial"
    deadline = time.monotonic() + 120
    while not list(scratch.glob("train/*.label_mask")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out").exists()
    while _group_lives(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (scratch / "train" / "left-over.npy").touch()
    again = _make(tmp_path / "out", *PATHS, "--size", "70000")
    assert _sums(again) == _sums(_make(tmp_path / "fresh", *PATHS, "--size", "70000"))
    assert not scratch.exists()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
