"""The benchmark of start-up: its list of commands, and a run of one round."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import start_up
from conftest import train

from data_prep import __main__ as data
from launch.__main__ import build_parser as launch_parser
from olmoe_parrots.results_command import _parser as results_parser
from olmoe_parrots.synthetic.__main__ import build_parser as synthetic_parser
from olmoe_parrots.synthetic.__main__ import main as make_data


@pytest.mark.parametrize(
    ("command", "parser"), [("launch", launch_parser), ("synthetic", synthetic_parser), ("results", results_parser)]
)
def test_all_subcommands_are_timed(command: str, parser: Callable[[], argparse.ArgumentParser]) -> None:
    (choices,) = [action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert sorted(choices) == sorted(start_up.SUBCOMMANDS[command])


def test_the_other_commands_have_none() -> None:
    assert not [a for a in data.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]


def test_one_round_has_a_row_for_each_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_up, "COMMANDS", {"grid": "olmoe_parrots.grid", "results": "olmoe_parrots.results"})
    start_up.main(["--rounds", "1", "--output", str(tmp_path), "help"])
    rows = [json.loads(line) for line in (tmp_path / "start_up.jsonl").read_text().splitlines()]
    names = [
        "python alone",
        "parrots",
        "parrots grid",
        "parrots results",
        "parrots results table",
        "parrots results gap",
    ]
    assert [row["name"] for row in rows] == names
    assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in rows)
    assert "| parrots grid |" in (tmp_path / "start_up.md").read_text()


def test_the_first_step_is_timed_from_the_start_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    assert make_data(["phone_book", "--size=512", "--test-size=16", f"--output={data}"]) == 0
    monkeypatch.setattr(start_up, "run", lambda *arguments: train(*map(Path, arguments[2:3]), *arguments[3:]))
    start = time.perf_counter()
    seconds = start_up.first_step(tmp_path, data, 0)
    # the process goes on after its first step, to save and to end
    assert 0.01 < seconds < time.perf_counter() - start
