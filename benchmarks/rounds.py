"""What the benchmarks share: contenders that take turns, medians with their spread, and the files of a report."""

from __future__ import annotations

import datetime
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from olmoe_parrots.provenance import describe

K, V = TypeVar("K"), TypeVar("V")


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, one a round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Timing) -> list[float]:
        """The ratio to another contender in each round that both ran."""
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=False)]


def take_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int, fewer: Mapping[str, int] = {}) -> dict:
    """Time each contender once a round, after one round that does not count.

    Args:
        contenders: what to time, by name.
        rounds: how many count.
        fewer: for contenders that take too long, how many rounds they take part in.
    """

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    asks = {name: functools.partial(timed, run) for name, run in contenders.items()}
    seconds = ask_in_turns(asks, rounds, fewer=fewer)
    return {name: Timing(found) for name, found in seconds.items()}


def spread(values: list[float], digits: int = 2) -> str:
    """``median (smallest to largest)``."""
    if not values:
        return "-"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def append_rows(script: str, rows: list[dict[str, Any]]) -> None:
    """Append rows to the ``.jsonl`` beside a script, with date and commit."""
    about = {"date": f"{datetime.date.today()}", "commit": describe("cpu", 1)["commit"]}
    with Path(script).with_suffix(".jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**about, **row}) + "\n" for row in rows)


def write_report(script: str, command: str, body: str, precision: str = "fp32") -> Path:
    """Write the ``.md`` beside a script: `body`, below its title a line on commit, machine and command."""
    about = describe("cpu", 1)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head, _, rest = body.partition("\n")
    commit = f"commit {about['commit']}{' with changes' * about['uncommitted_changes']}"
    threads = torch.get_num_threads()
    line = f"{datetime.date.today()}, {commit}, {threads} CPU threads, {precision}; {versions}. By `{command}`."
    report = Path(script).with_suffix(".md")
    report.write_text(f"{head}\n\n{line}\n{rest}", encoding="utf-8")
    return report


def ask_in_turns(
    contenders: Mapping[K, Callable[[], V]], rounds: int, warm: bool = True, fewer: Mapping[K, int] = {}
) -> dict[K, list[V]]:
    """What contenders that measure themselves give: a list each, one value a round.

    Args:
        contenders: what gives a value, such as seconds or bytes, by name or another key.
        rounds: how many count.
        warm: whether a round that does not count goes before them.
        fewer: for contenders that take too long, how many rounds they take part in.
    """
    found: dict[K, list[V]] = {name: [] for name in contenders}
    for number in tqdm(range(-1 if warm else 0, rounds), leave=False):
        for name, measure in contenders.items():
            if number < fewer.get(name, rounds):
                value = measure()
                if number >= 0:
                    found[name].append(value)
    return found
