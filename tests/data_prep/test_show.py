"""`python -m data_prep.show`: statistics against counting by hand, the preview against the tokenizers library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from dataset_maker import EOS, VOCABULARY, draw_documents, edit_manifest, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from data_prep.show import main
from data_prep.statistics import Packing
from olmoe_parrots.errors import InputError


def _tokenizer() -> bytes:
    words = {"<pad>": 0, "<unk>": 1, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCABULARY)}
    return Tokenizer(models.WordLevel(words, "<unk>")).to_str().encode()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    documents = {
        "train/web-00000.npy": draw_documents(30, 12, 1),
        "train/wiki-00000.npy": draw_documents(10, 40, 2),
        "validation/web-00000.npy": draw_documents(2, 40, 3),
    }
    return write_dataset(tmp_path / "data", documents, tokenizer=_tokenizer())


def _shown(root: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    assert main([str(root), *options]) == 0
    return capsys.readouterr().out


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    length=st.integers(1, 50),
    block=st.integers(1, 7),
)
def test_packing_is_what_walking_the_tokens_finds(lengths: list[int], length: int, block: int) -> None:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    packing = Packing(length)
    blocks = [(starts[i : i + block], ends[i : i + block]) for i in range(0, len(ends), block)]
    packing.add_file(int(ends[-1]), iter(blocks))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    sequences = [owner[i : i + length].tolist() for i in range(0, len(owner) - length + 1, length)]
    assert packing.sequences == len(sequences)
    assert packing.lost == len(owner) - length * len(sequences)
    assert packing.pieces == sum(len(set(sequence)) for sequence in sequences)
    whole = {d for sequence in sequences for d in set(sequence) if sequence.count(d) == lengths[d]}
    seen = {d for sequence in sequences for d in sequence}
    assert packing.cut == len(seen - whole)
    for share in (0.05, 0.5, 0.95, 1.0):
        assert packing.quantile(share) == np.quantile(lengths, share, method="inverted_cdf")


def test_statistics_by_source(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    out = _shown(dataset, capsys, "--length", "64", "--sequences", "0")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[0] == "│"]
    assert [row[0] for row in rows] == ["web", "wiki"]
    # 390 tokens: 6 sequences of 64, 6 tokens behind them; 410 tokens: 6 and 26
    assert rows[0][1:] == ["6", "30", "5.83", "20.0%", "6", "13", "13", "13", "13"]
    assert rows[1][1:3] + rows[1][5:] == ["6", "10", "26", "41", "41", "41", "41"]
    assert "wiki" not in _shown(dataset, capsys, "--source", "web", "--sequences", "0")
    shown = _shown(dataset, capsys, "--split", "validation", "--sequences", "0")
    assert "validation, sequences of 2,048" in " ".join(shown.split())


def test_the_length_is_the_mixtures(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    mixture = {"mixture": {"validation": {"sequence_length": 48}}}
    edit_manifest(dataset, lambda raw: raw.update(mixture=mixture))
    assert "sequences of 48 tokens" in " ".join(_shown(dataset, capsys).split())


def test_the_preview_is_the_text_with_its_boundaries(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    out = _shown(dataset, capsys, "--length", "64", "--sequences", "12")
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    shown = re.split(r"^=== sequence (\d+) of 6 in (\S+), \d+ documents? ===$", out, flags=re.MULTILINE)[1:]
    assert len(shown) == 12 * 3
    for number, name, text in zip(shown[::3], shown[1::3], shown[2::3], strict=True):
        tokens = np.fromfile(dataset / name, "<u2")[64 * (int(number) - 1) :][:64]
        pieces = np.split(tokens, np.flatnonzero(tokens == EOS) + 1)
        expected = [tokenizer.decode(p.tolist(), skip_special_tokens=False).replace(" </s>", "</s>") for p in pieces]
        lines = text.strip().splitlines()
        assert lines[1::2] == [piece for piece in expected if piece]
        assert all(line.startswith(f"--- {Path(name).stem}/doc, ") for line in lines[::2])


def test_a_cut_document_is_told(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    out = _shown(dataset, capsys, "--length", "20", "--sequences", "1000", "--source", "web")
    assert "--- web-00000/doc, 0 (whole, 13 tokens)" in out
    assert "--- web-00000/doc, 1 (tokens 1 to 7 of 13 tokens)" in out
    assert "--- web-00000/doc, 1 (tokens 8 to 13 of 13 tokens)" in out


def test_the_same_seed_shows_the_same(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    first, again, other = (_shown(dataset, capsys, "--length", "32", "--seed", seed) for seed in "112")
    assert first == again != other


def test_nothing_shown_steers_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = {"<pad>": 0, "<unk>": 1, "</s>": EOS, "\x1b[2J": 3, "\u202e": 4, "a\tb\n": 5}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>")).to_str().encode()
    root = write_dataset(tmp_path / "data", {"train/x-00000.npy": [[3, 4, 5]]}, tokenizer=tokenizer)
    out = _shown(root, capsys, "--length", "4")
    assert re.search("\ufffd\\[2J \ufffd a +b\n</s>\n", out) and "\x1b" not in out


def test_colours_take_turns_and_no_color_is_obeyed(dataset: Path) -> None:
    options = ["--length", "64", "--sequences", "1", "--source", "web"]
    command = [sys.executable, "-m", "data_prep.show", str(dataset), *options]
    plain = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "COLUMNS": "200"}
    run = lambda **env: subprocess.run(command, capture_output=True, text=True, env=plain | env).stdout  # noqa: E731
    coloured = run(FORCE_COLOR="1")
    texts = [line for line in coloured.splitlines() if re.search(r"w\d+ w\d+", line)]
    assert len(texts) > 2
    assert [line.startswith("\x1b[36m") for line in texts] == [i % 2 == 0 for i in range(len(texts))]
    assert all(re.search(r"\x1b\[7;3[36]m</s>", line) for line in texts[:-1])
    assert not re.search(r"\x1b\[[\d;]*3[36]m", run(FORCE_COLOR="1", NO_COLOR="1"))
    assert "\x1b" not in run()


def test_bad_input_is_refused(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    for options, said in (
        (["--source", "web2"], "its sources are: web, wiki"),
        (["--length", "0"], "--length"),
        (["--sequences", "-1"], "--sequences"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            main([str(dataset), *options])
    os.truncate(dataset / "train" / "web-00000.npy", 4)
    with pytest.raises(InputError, match=r"web-00000\.npy: it is shorter"):
        main([str(dataset), "--length", "64", "--sequences", "100"])
    (dataset / "train" / "web-00000.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"web-00000\.csv\.gz: it cannot be read"):
        main([str(dataset), "--length", "64"])
    (dataset / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: it is not the tokenizer"):
        main([str(dataset), "--length", "20", "--source", "wiki"])


def test_help_needs_no_library() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['show', '--help']\n"
        "try:\n    runpy.run_module('data_prep.show', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'tokenizers', 'pyarrow', 'rich', 'boto3'} & set(sys.modules), 'imported too much'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--source" in done.stdout, done.stderr
