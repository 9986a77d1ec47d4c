"""The results file: whole lines, kept for ever, read past whatever is broken."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from result_rows import make_row

from olmoe_parrots.errors import InputError
from olmoe_parrots.results import FORMAT, append_rows, config_digest, read_rows

ROWS = [make_row(32, experts, 100.0 + experts, details={"tried": {"64": 0.5}}) for experts in (0, 4, 8)]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.jsonl"
    append_rows(path, ROWS[:1])
    before = path.read_bytes()
    append_rows(path, ROWS[1:])
    assert read_rows(path) == ROWS
    assert path.read_bytes().startswith(before), "nothing is rewritten"
    assert all(json.loads(line)["format"] == FORMAT for line in path.read_text().splitlines())


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_told_and_kept_and_all_others_are_read(tmp_path: Path, cut: int) -> None:
    path, told = tmp_path / "results.jsonl", []
    append_rows(path, ROWS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    expected = ROWS[:2] if cut == 1 else ROWS[:1]  # a row without its line end is whole
    assert read_rows(path, told.append) == expected
    assert len(told) == (0 if cut == 1 else 1)
    assert all("line 2: it ends in the middle" in line for line in told)
    append_rows(path, ROWS[2:])
    assert read_rows(path, told.append) == [*expected, ROWS[2]]
    assert path.read_bytes().startswith(whole[:-cut])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "format"),
        ("null", "format"),
        ('{"format": "other/9"}', "format"),
        (ROWS[0].as_line().replace('"value": 100.0', '"value": null'), "value is None"),
        (ROWS[0].as_line().replace('"value": 100.0', '"value": NaN'), "value is nan"),
        (ROWS[0].as_line().replace('"value": 100.0', '"value": "many"'), "value is 'many'"),
        (ROWS[0].as_line().replace('"details": {"tried": {"64": 0.5}}', '"details": 3'), "details is no mapping"),
        (ROWS[0].as_line().replace('"task": "phone_book", "split"', '"split"'), "task missing"),
    ],
)
def test_a_line_that_is_no_row_is_told_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path, told = tmp_path / "results.jsonl", []
    path.write_text("\n".join([ROWS[0].as_line(), line, "", ROWS[1].as_line()]) + "\n")
    assert read_rows(path, told.append) == ROWS[:2]
    assert len(told) == 1
    assert "line 2" in told[0] and reason in told[0]


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(ROWS[0].as_line().replace("{", '{"weather": "fine", ', 1) + "\n")
    assert read_rows(path, pytest.fail) == ROWS[:1]


def test_a_value_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        append_rows(tmp_path / "results.jsonl", [ROWS[0], replace(ROWS[1], value=float("nan"))])
    assert not (tmp_path / "results.jsonl").exists()


def test_missing_and_unwritable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        append_rows(tmp_path / "file" / "results.jsonl", ROWS)


def _append_many(path: Path, width: int) -> None:
    for seed in range(50):
        append_rows(path, [make_row(width, experts, 1.0, seed=seed) for experts in (0, 4)])


def test_writers_at_the_same_time_do_not_mix_lines(tmp_path: Path) -> None:
    path, context = tmp_path / "results.jsonl", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, width)) for width in (32, 64, 128)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = read_rows(path, pytest.fail)
    assert len({(row.model, row.seed) for row in rows}) == len(rows) == 300


_WRITER = """
import sys
from pathlib import Path
from result_rows import make_row
from olmoe_parrots.results import append_rows
seed = 0
while True:
    append_rows(Path(sys.argv[1]), [make_row(32, experts, 1.0, seed=seed) for experts in (0, 4, 8)])
    seed += 1
"""


def test_what_a_killed_writer_left_is_read_to_its_last_whole_row(tmp_path: Path) -> None:
    path, tests = tmp_path / "results.jsonl", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    for _ in range(3):
        before = path.stat().st_size if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], env=environment)
        deadline = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size < before + 5000) and time.monotonic() < deadline:
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    told: list[str] = []
    rows = read_rows(path, told.append)
    assert len(rows) + len(told) == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    assert len(told) <= 3
    assert len(rows) > 10


def test_the_digest_is_of_what_is_trained_and_not_of_where_it_lies() -> None:
    config = {"run_name": "a", "save_folder": "x", "data_folder": "y", "model": {"d_model": 8}, "seed": 1}
    digest = config_digest(config, {"size": 10})
    assert digest == config_digest({**config, "save_folder": "elsewhere", "data_folder": "z"}, {"size": 10})
    assert digest == config_digest(dict(reversed(config.items())), {"size": 10})
    assert digest != config_digest({**config, "seed": 2}, {"size": 10})
    assert digest != config_digest(config, {"size": 11})
