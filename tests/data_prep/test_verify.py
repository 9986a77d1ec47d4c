"""`python -m data_prep.verify`, on datasets written with numpy alone."""

import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_maker import draw_documents, edit_manifest, flip_a_bit, sum_of, write_dataset

from data_prep.statistics import mixture_rows, mixture_warnings
from data_prep.verify import main
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", masks=True)


def _edit_rows(root: Path, old: str, new: str, name: str = "train/web-00000.csv.gz") -> None:
    """Change document boundaries, and their sum in the manifest with them."""
    rows = gzip.decompress((root / name).read_bytes()).decode()
    assert old in rows
    (root / name).write_bytes(gzip.compress(rows.replace(old, new, 1).encode()))

    def resum(raw: dict) -> None:
        entry = next(file for file in raw["files"] if file["path"] == name.replace(".csv.gz", ".npy"))
        entry["boundaries_sha256"] = sum_of(root / name)

    edit_manifest(root, resum)


def _resum(root: Path, name: str) -> None:
    def edit(raw: dict) -> None:
        next(file for file in raw["files"] if file["path"] == name)["sha256"] = sum_of(root / name)

    edit_manifest(root, edit)


def _one(root: Path) -> str:
    problems = verify(root)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_sound_dataset_passes(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(dataset) == [] == verify(dataset, sizes_only=True)
    assert main([str(dataset)]) == 0
    assert "4 token files are sound" in capsys.readouterr().out
    assert main([str(dataset), "--sizes"]) == 0
    assert "4 token files are of the right size" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train/web-00001.npy", "train/web-00001.csv.gz", "train/web-00001.mask"])
def test_a_changed_byte_is_found_in_any_file(dataset: Path, name: str) -> None:
    flip_a_bit(dataset / name)
    problems = verify(dataset)
    assert problems and all(problem.startswith(str(dataset / name)) for problem in problems)
    assert any("sha256 differs" in problem for problem in problems)


@pytest.mark.parametrize("name", ["train/web-00001.npy", "train/web-00001.csv.gz", "train/web-00001.mask"])
@pytest.mark.parametrize("sizes_only", [False, True])
def test_a_missing_file_is_found(dataset: Path, name: str, sizes_only: bool) -> None:
    (dataset / name).unlink()
    assert f"{dataset / name}: the file is missing" in verify(dataset, sizes_only=sizes_only)


def test_a_truncated_file_is_found_without_reading_it(dataset: Path) -> None:
    os.truncate(dataset / "train" / "wiki-00000.npy", 100)
    for problems in (verify(dataset), verify(dataset, sizes_only=True)):
        (line,) = problems
        assert "wiki-00000.npy: it has 100 bytes and the manifest says 192" in line


def test_truncated_boundaries_are_found(dataset: Path) -> None:
    path = dataset / "train" / "web-00000.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert any("web-00000.csv.gz: it cannot be read" in problem for problem in verify(dataset))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("21,42,", "21,41,", "row 2 does not"),
        ("21,42,", "22,42,", "row 2 does not"),
        ("399,420,", "399,421,", "row 20 does not"),
        ("0,21,", "0,-3,", "row 1 does not"),
        ("21,42,", "x,42,", "cannot be read"),
        ("399,420,", "399,420\n", "cannot be read"),
        (
            '399,420,"web-00000/doc, 19",documents/x.jsonl.gz,20\r\n',
            "",
            "19 documents up to token 399, not 20 up to 420",
        ),
    ],
)
def test_wrong_boundaries_are_found(dataset: Path, old: str, new: str, said: str) -> None:
    _edit_rows(dataset, old, new)
    assert "web-00000.csv.gz" in _one(dataset) and said in _one(dataset)


def test_a_last_token_that_is_not_eos_is_found(dataset: Path) -> None:
    shard = dataset / "train" / "wiki-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x09\x00")
    _resum(dataset, "train/wiki-00000.npy")
    problems = verify(dataset)
    assert "wiki-00000.npy: it ends in token 9 and not in EOS, 2" in problems[0]
    assert "wiki-00000.csv.gz: row 3" in problems[1]


def test_ids_beyond_the_vocabulary_are_found(dataset: Path) -> None:
    edit_manifest(dataset, lambda raw: raw["tokenizer"].update(vocabulary_size=100))
    assert sum("outside the vocabulary of 100" in problem for problem in verify(dataset)) == 4


def test_a_label_mask_of_other_bytes_or_length_is_found(dataset: Path) -> None:
    mask = dataset / "train" / "wiki-00000.mask"
    mask.write_bytes(b"\x02" * 95)

    def edit(raw: dict) -> None:
        next(f for f in raw["files"] if f["source"] == "wiki")["label_mask_sha256"] = sum_of(mask)

    edit_manifest(dataset, edit)
    problems = verify(dataset)
    assert [problem.removeprefix(f"{mask}: ") for problem in problems] == [
        "it has 95 bytes for 96 tokens",
        "it holds the byte 2, neither 0 nor 1",
    ]


def test_unlisted_files_and_changed_reports_are_found(dataset: Path) -> None:
    (dataset / "report.json").write_text("{}")
    entry = {"path": "report.json", "bytes": 2, "sha256": sum_of(dataset / "report.json")}
    edit_manifest(dataset, lambda raw: raw["reports"].append(entry))
    (dataset / "notes.txt").write_text("a reader's own")
    assert verify(dataset) == []
    shutil.copy(dataset / "train" / "web-00000.npy", dataset / "validation" / "zzz.npy")
    assert f"{dataset / 'validation' / 'zzz.npy'}: it is not listed" in _one(dataset)
    (dataset / "validation" / "zzz.npy").unlink()
    (dataset / "report.json").write_text("[]")
    assert "report.json: its content has changed" in _one(dataset)


def test_another_tokenizer_is_found(dataset: Path) -> None:
    (dataset / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: it is not the tokenizer the manifest names" in _one(dataset)


def test_examples_of_one_length_need_no_boundaries(dataset: Path) -> None:
    for path in dataset.glob("*/*.csv.gz"):
        path.unlink()
    edit_manifest(dataset, lambda raw: [file.update(boundaries_sha256=None) for file in raw["files"]])
    assert verify(dataset) == []


def test_every_problem_is_told_on_a_line(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    flip_a_bit(dataset / "train" / "web-00000.npy", 50)
    (dataset / "validation" / "web-00000.npy").unlink()
    assert main([str(dataset)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "train/web-00000.npy" in errors[0] and "validation/web-00000.npy" in errors[1]
    with pytest.raises(InputError, match="no manifest"):
        main([str(dataset / "train")])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """1,000 tokens of a, 500 of b and 8 of c, in documents of 10, 25 and 8."""
    documents = {
        "train/a-00000.npy": draw_documents(100, 9),
        "train/b-00000.npy": draw_documents(20, 24),
        "train/c-00000.npy": draw_documents(1, 7),
        "validation/a-00000.npy": draw_documents(2, 9),
    }
    return write_dataset(tmp_path / "mixed", documents)


def test_the_mixture_as_it_came_out(mixed: Path, capsys: pytest.CaptureFixture) -> None:
    asked = {
        "a": {"tokens": 1000, "share": 0.66, "epochs": 1},
        "b": {"tokens": 500, "share": 0.34, "epochs": 3, "passes": 2.5},
        "c": {"tokens": 8, "share": None, "epochs": 1},
    }
    edit_manifest(mixed, lambda raw: raw.update(asked=asked))
    rows = {row.source: row for row in mixture_rows(Manifest.load(mixed), "train")}
    assert [(row.tokens, row.documents) for row in rows.values()] == [(1000, 100), (500, 20), (8, 1)]
    assert rows["b"].share == pytest.approx(500 / 1508) and rows["b"].mean_length == 25
    assert rows["b"].difference(1508) == 0 and rows["c"].difference(1508) == 0
    assert replace(rows["b"], asked_tokens=None).difference(1508) == pytest.approx(500 - 0.34 * 1508)
    assert main([str(mixed)]) == 0
    shown = capsys.readouterr()
    line = next(line for line in shown.out.splitlines() if "│ b " in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("train", "b", "500", "20", "33.16%", "25", "500", "34.00%", "+0", "2.5")
    ]
    assert shown.err == ""  # the validation tokens are less than one sequence


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (500 / 1508, False),
        (526 / 1508, True),  # 26 tokens off, more than a document of 25
        (524 / 1508, False),  # 24 tokens off: 4.6%, and less than a document
    ],
)
def test_a_share_is_told_when_off_by_a_percent_and_a_document(
    mixed: Path, share: float, told: bool, capsys: pytest.CaptureFixture
) -> None:
    edit_manifest(mixed, lambda raw: raw.update(asked={"b": {"tokens": None, "share": share, "epochs": 1}}))
    edit_manifest(mixed, lambda raw: raw["files"].pop())  # no validation split, where b has no share
    shutil.rmtree(mixed / "validation")
    assert bool(mixture_warnings(Manifest.load(mixed))) is told
    assert main([str(mixed)]) == 0
    assert ("warning: train, b: 500 tokens" in capsys.readouterr().err) is told


def test_within_a_percent_nothing_is_told(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", {"train/a-00000.npy": draw_documents(1000, 9)})
    for tokens, lines in ((9_900, 1), (9_902, 0), (10_101, 0), (10_102, 1)):
        edit_manifest(root, lambda raw, n=tokens: raw.update(asked={"a": {"tokens": n, "share": None, "epochs": 1}}))
        assert len(mixture_warnings(Manifest.load(root))) == lines, tokens


def test_an_asked_source_without_tokens_is_told(mixed: Path) -> None:
    edit_manifest(mixed, lambda raw: raw.update(asked={"gone": {"tokens": 100, "share": None, "epochs": 1}}))
    (line,) = mixture_warnings(Manifest.load(mixed))
    assert line == "train, gone: 0 tokens, a share of 0.00%, where 100 tokens were asked for"


def test_a_large_shard_is_read_in_blocks(tmp_path: Path) -> None:
    """More than one block of 4 MiB, the largest id and a wrong boundary far behind in it."""
    root = write_dataset(tmp_path / "data", {"train/big-00000.npy": draw_documents(300, 9_999)})
    assert verify(root) == []
    path = root / "train" / "big-00000.npy"
    tokens = np.memmap(path, "<u2", mode="r+")
    tokens[-10_001], tokens[-5] = 7, 127 + 1
    tokens.flush()
    _resum(root, "train/big-00000.npy")
    problems = verify(root)
    assert "token id 128 is outside" in problems[0] and "row 299 does not" in problems[1] and len(problems) == 2
