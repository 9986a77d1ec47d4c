"""The command's arguments, and a tokenizer of one's own."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from olmoe_parrots.errors import InputError
from olmoe_parrots.shard_verification import verify


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--validation-share", "1"], "--validation-share"),
        (["--processes", "0"], "--processes"),
        (["--shard-megabytes", "0"], "--shard-megabytes"),
        (["--tokens", "5"], "taken whole"),
        (["--validation-sequences", "5"], "taken whole"),
        (["--ngram", "5"], "it is off"),
        (["--work", "elsewhere"], "leave --work out"),
        (["--tokenizer", "none"], "neither a known tokenizer"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("abc")
    with pytest.raises(InputError, match=said):
        main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), *options])


def test_an_own_tokenizer_of_more_than_two_bytes(tmp_path: Path) -> None:
    vocabulary = {chr(i): i for i in range(70_000) if not 0xD800 <= i < 0xE000}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    empty = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    own = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model, **empty}
    (tmp_path / "own.json").write_text(json.dumps(own))
    options = ["--tokenizer", str(tmp_path / "own.json"), "--eos", "69999", "--pad", "3", "--processes", "1"]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("abc")
    main([str(folder), "--output", str(tmp_path / "out"), "--validation-share", "0", *options])
    assert verify(tmp_path / "out") == []
    content = (tmp_path / "out" / "train" / "documents-00000.npy").read_bytes()
    assert content == np.array([97, 98, 99, 69999], dtype="<u4").tobytes()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dtype"] == "uint32" and manifest["files"][0]["sha256"] == hashlib.sha256(content).hexdigest()


def test_help_is_quick() -> None:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "data_prep", "--help"], check=True, capture_output=True)
    script = "import sys, data_prep.__main__, data_prep.verify; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "dolma", "transformers", "tokenizers", "nltk", "rich"} & set(loaded)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("where", [".", "a/out", "out"])
def test_an_output_inside_the_source_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "a.txt").write_text("abc")
    with pytest.raises(InputError, match="inside the source folder"):
        main([str(tmp_path / "in"), "--output", str(tmp_path / "in" / where)])
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["a", "a.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokns", "3"], "--tokns"),
        (["--tokens", "abc"], "'abc' is not a whole number"),
        (["--tokens", "1.5"], "'1.5' is not a whole number"),
        (["--processes", "x"], "--processes"),
    ],
)
def test_misspelt_options_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quickstart", "--output", "out", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and said in line


def test_a_source_without_a_document_says_why(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text('{"text": null}\n{"txt": "a"}\n{broken\n')
    options = ["--output", str(tmp_path / "out"), "--processes", "1"]
    with pytest.raises(InputError, match=r"no row of it is a document \(rows.jsonl: left out 1 x invalid JSON, 2 x no"):
        main([str(tmp_path / "in"), *options])
