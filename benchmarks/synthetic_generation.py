"""How long the synthetic tasks take to generate, beside a straightforward version with networkx and plain Python.

    python benchmarks/synthetic_generation.py

Both versions do the same work on the same number of processes: draw, find the path or keep names unique, encode, write
tokens and label mask, hash them. Ours at full size; the other at a smaller one, its seconds then scaled up. They take
turns. Each timing becomes a row of synthetic_generation.jsonl beside this file, and the last run the report
synthetic_generation.md.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import random
import resource
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from olmoe_parrots.provenance import describe
from olmoe_parrots.synthetic.build import build
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import FIRST_VERTEX, ShortestPath
from olmoe_parrots.synthetic.task import EOS, PAD, Task

BESIDE = Path(__file__).with_suffix("")
FULL = {"phone_book": 3_000_000, "shortest_path": 1_000_000}
SMALL = {"phone_book": 200_000, "shortest_path": 8_000}
LIMITS = {"phone_book": 20, "shortest_path": 60}
TASKS: dict[str, Task] = {"phone_book": PhoneBook(), "shortest_path": ShortestPath()}


def _write(rows: list[list[int]], learned: list[list[bool]], path: Path) -> None:
    for content, dtype, ending in ((rows, np.uint16, ".npy"), (learned, np.bool_, ".label_mask")):
        np.array(content, dtype=dtype).tofile(path.with_suffix(ending))
        hashlib.sha256(path.with_suffix(ending).read_bytes()).hexdigest()


def plain_phone_book(job: tuple[int, int, Path]) -> float:
    """Entries drawn one by one, those whose name or number is taken drawn again; the seconds it took."""
    seed, count, path = job
    rng = random.Random(seed)
    ids = {word: number for number, word in enumerate(TASKS["phone_book"].vocabulary.words)}
    names: set[str] = set()
    numbers: set[str] = set()
    rows: list[list[int]] = []
    start = time.perf_counter()
    while len(rows) < count:
        name, number = "".join(rng.choices(string.ascii_lowercase, k=5)), "".join(rng.choices(string.digits, k=8))
        if name not in names and number not in numbers:
            names.add(name)
            numbers.add(number)
            rows.append([ids[character] for character in f"{name}:{number}"] + [EOS])
    _write(rows, [[False] * 6 + [True] * 8 + [False]] * count, path)
    return time.perf_counter() - start


def plain_shortest_path(job: tuple[int, int, Path]) -> float:
    """Graphs of networkx one by one, none of the test; the smallest of all shortest paths; the seconds it took."""
    seed, count, path = job
    rng = random.Random(seed)
    test = {frozenset(map(frozenset, nx.gnm_random_graph(50, 75, seed=number).edges)) for number in range(1000)}
    rows: list[list[int]] = []
    learned: list[list[bool]] = []
    start = time.perf_counter()
    while len(rows) < count:
        graph = nx.gnm_random_graph(50, 75, seed=rng.randrange(1 << 62))
        target = rng.randrange(50)
        sources = [vertex for vertex in nx.single_source_shortest_path_length(graph, target) if vertex != target]
        if not sources or frozenset(map(frozenset, graph.edges)) in test:
            continue
        source = rng.choice(sources)
        answer = min(nx.all_shortest_paths(graph, source, target))
        edges = [rng.sample(edge, 2) for edge in graph.edges]
        rng.shuffle(edges)
        row = [token for u, v in edges for token in (u + FIRST_VERTEX, v + FIRST_VERTEX, 2)]
        row += [3, source + FIRST_VERTEX, target + FIRST_VERTEX, 4]
        mask = [False] * len(row) + [True] * (len(answer) + 1)
        row += [vertex + FIRST_VERTEX for vertex in answer] + [EOS]
        rows.append(row + [PAD] * (280 - len(row)))
        learned.append(mask + [False] * (280 - len(mask)))
    _write(rows, learned, path)
    return time.perf_counter() - start


PLAIN: dict[str, Callable[[tuple[int, int, Path]], float]] = {
    "phone_book": plain_phone_book,
    "shortest_path": plain_shortest_path,
}


def _ours(name: str, count: int, processes: int, folder: Path) -> float:
    start = time.perf_counter()
    build(TASKS[name], count, 1000, 0, folder / "ours", processes)
    return time.perf_counter() - start


def _plain(name: str, count: int, processes: int, folder: Path) -> float:
    share = count // processes
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        seconds = pool.map(PLAIN[name], [(number, share, folder / str(number)) for number in range(processes)])
        pool.close()
        pool.join()
    return max(seconds)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(name: str, version: str, processes: int) -> dict[str, Any]:
    """One timing, of `version` "ours" or "plain", as a row."""
    work, count = (_ours, FULL[name]) if version == "ours" else (_plain, SMALL[name])
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        cpu = _cpu_seconds()
        seconds = work(name, count, processes, Path(folder))
        cpu = _cpu_seconds() - cpu
    return {
        "task": name,
        "version": version,
        "examples": count,
        "processes": processes,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "seconds_at_full_size": round(seconds * FULL[name] / count, 3),
        "load_before": round(load, 2),
    }


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def report(rows: list[dict[str, Any]], about: dict[str, Any], date: str) -> str:
    """The report of one run in Markdown."""
    versions = about["versions"]
    lines = [
        "# Generating the synthetic tasks",
        "",
        f"{date}, commit {about['commit'][:12]}{' with changes' if about['uncommitted_changes'] else ''}, "
        f"{about['cpu_count']} CPU cores, {rows[0]['processes']} processes; Python {versions['python']}, "
        f"numpy {versions['numpy']}, networkx {nx.__version__}. By `python benchmarks/synthetic_generation.py`.",
        "",
        "Seconds for the full size: median (smallest to largest). Ours includes start-up, test, shards, hashes and",
        "manifest. *plain* is a straightforward version, with networkx for the graphs, timed on fewer examples and",
        "scaled; it leaves out start-up, the making of the test, the manifest, and names that two processes both drew.",
        "",
        "| task | examples | ours | limit | plain, timed on | plain, scaled | plain / ours, round by round |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in FULL:
        ours, plain = (
            [row["seconds_at_full_size"] for row in rows if (row["task"], row["version"]) == (name, version)]
            for version in ("ours", "plain")
        )
        ratios = [slow / fast for slow, fast in zip(plain, ours, strict=True)]
        lines.append(
            f"| {name} | {FULL[name]:,} | {_spread(ours)} | {LIMITS[name]} | {SMALL[name]:,} "
            f"| {_spread(plain)} | {_spread(ratios)} |"
        )
    loads = [row["load_before"] for row in rows]
    cpu = [
        f"{name} {_spread([r['cpu_seconds'] for r in rows if (r['task'], r['version']) == (name, 'ours')])}"
        for name in FULL
    ]
    lines += [
        "",
        f"{len(rows) // 4} rounds, the versions in turn. CPU seconds of ours, over all processes: {', '.join(cpu)}.",
        f"The load average before a timing was {min(loads):.1f} to {max(loads):.1f}. Above the number of processes,",
        "other programs were running, and the ratios say more than the seconds.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its rows and its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="(%(default)s)")
    options = parser.parse_args()
    about, date = describe("cpu", 1), datetime.date.today().isoformat()
    rows = []
    for number in range(options.rounds):
        for name in FULL:
            for version in ("ours", "plain"):
                rows.append(measure(name, version, options.processes) | {"round": number, "date": date})
                print(json.dumps(rows[-1]), flush=True)
    with BESIDE.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"commit": about["commit"], "versions": about["versions"]}) + "\n")
    BESIDE.with_suffix(".md").write_text(report(rows, about, date), encoding="utf-8")


if __name__ == "__main__":
    main()
