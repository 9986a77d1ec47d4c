"""Documents to verified shards, beside bare `dolma tokens` on the same files, and the memory it takes.

    python benchmarks/data_preparation.py

The documents are generated: sentences of English words with the frequencies of Python's documentation, 200 MB of text
in 16 gzip files of dolma's format. Ours is `python -m data_prep` and then `python -m data_prep.verify`: reading,
dropping duplicates, writing the documents, tokenizing, hashing, and checking every byte. The other is `dolma tokens`,
which tokenizes and shuffles. Both with 2 processes, in turn, start-up included. A smaller corpus shows that memory does
not grow. Each timing becomes a row of data_preparation.jsonl beside this file, and the last run the report
data_preparation.md.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

from olmoe_parrots.provenance import describe
from olmoe_parrots.shards import Manifest

BESIDE = Path(__file__).with_suffix("")
FILE_MEGABYTES = 12.5
GOAL = 0.9


def write_corpus(folder: Path, megabytes: float, seed: int) -> int:
    """Files of FILE_MEGABYTES of documents in dolma's format, `megabytes` of text in all; returns their characters."""
    from pydoc_data.topics import topics

    words = Counter(re.findall(r"\w+", " ".join(topics[name] for name in sorted(topics)))).most_common(12_000)
    weights = list(accumulate(count for _, count in words))
    total = 0
    folder.mkdir(parents=True)
    for number in range(round(megabytes / FILE_MEGABYTES)):
        rng, size = random.Random(f"{seed} {number}"), 0
        with gzip.open(folder / f"{number:02d}.jsonl.gz", "wt", compresslevel=4) as stream:
            while size < FILE_MEGABYTES * 1e6:
                drawn = rng.choices(words, cum_weights=weights, k=int(rng.lognormvariate(6, 0.8)) + 8)
                text = " ".join(word for word, _ in drawn)
                row = {"id": f"{number}-{size}", "text": text, "source": "benchmark", "added": "", "metadata": {}}
                stream.write(json.dumps(row) + "\n")
                size += len(text)
        total += size
    return total


def _memory(root: int) -> int:
    """Bytes that a process and all below it hold, shared pages counted once (proportional set size)."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        waiting += map(int, children)
        total += 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total


def _run(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """(seconds, most bytes held at once)"""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        most = max(most, _memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read()[-2000:])
    return time.perf_counter() - start, most


def ours(corpus: Path, work: Path, processes: int) -> tuple[float, float, int, int]:
    """(seconds to shards, seconds to verify them, most bytes held, tokens)"""
    command = [sys.executable, "-m", "data_prep", str(corpus), "--output", str(work / "ours")]
    command += ["--processes", str(processes), "--validation-share", "0"]
    seconds, most = _run(command, dict(os.environ))
    verified, verifying = _run([sys.executable, "-m", "data_prep.verify", str(work / "ours")], dict(os.environ))
    return seconds, verified, max(most, verifying), Manifest.load(work / "ours").totals("train")[0]


def dolma(corpus: Path, work: Path, processes: int, tokenizer: Path) -> tuple[float, float, int, int]:
    """The same of `dolma tokens`."""
    (work / "nltk" / "tokenizers" / "punkt").mkdir(parents=True)
    command = [str(Path(sys.executable).with_name("dolma")), "tokens", "--documents", f"{corpus}/*.jsonl.gz"]
    command += ["--destination", str(work / "dolma"), "--tokenizer.name_or_path", str(tokenizer), "--dtype", "uint16"]
    command += ["--tokenizer.eos_token_id", "2", "--tokenizer.pad_token_id", "0", "--tokenizer.encode_special_tokens"]
    command += ["--processes", str(processes), "--files_per_process", "1"]
    seconds, most = _run(command, os.environ | {"NLTK_DATA": str(work / "nltk")})
    return seconds, 0.0, most, sum(path.stat().st_size for path in (work / "dolma").glob("*.npy")) // 2


def measure(version: str, corpus: Path, megabytes: float, processes: int, tokenizer: Path) -> dict[str, Any]:
    """One timing as a row."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        work = Path(folder)
        found = ours(corpus, work, processes) if version == "ours" else dolma(corpus, work, processes, tokenizer)
    seconds, verified, most, tokens = found
    return {
        "version": version,
        "megabytes": megabytes,
        "processes": processes,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "verify_seconds": round(verified, 2),
        "tokens_per_second": round(tokens / (seconds + verified)),
        "peak_megabytes": round(most / 1e6),
        "load_before": round(load, 2),
    }


def _spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def report(rows: list[dict[str, Any]], about: dict[str, Any], date: str) -> str:
    """The report of one run in Markdown."""
    largest = max(row["megabytes"] for row in rows)
    by_version = {v: [r for r in rows if r["version"] == v and r["megabytes"] == largest] for v in ("ours", "dolma")}
    pairs = zip(by_version["ours"], by_version["dolma"], strict=True)
    ratios = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
    versions = about["versions"]
    lines = [
        "# Documents to verified shards",
        "",
        f"{date}, commit {about['commit'][:12]}{' with changes' if about['uncommitted_changes'] else ''}, "
        f"{about['cpu_count']} CPU cores, {rows[0]['processes']} processes; Python {versions['python']}, "
        f"dolma {versions['dolma']}, tokenizers {versions['tokenizers']}. By `python benchmarks/data_preparation.py`.",
        "",
        "Ours: `python -m data_prep FOLDER` and `python -m data_prep.verify`, decontamination off. The other: bare",
        "`dolma tokens` on the same files. Start-up included; median (smallest to largest).",
        "",
        f"| {largest:g} MB of text | tokens/s | seconds | of these verifying | most memory, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for version, found in by_version.items():
        speed = _spread([r["tokens_per_second"] for r in found])
        seconds = _spread([r["seconds"] + r["verify_seconds"] for r in found])
        verify = _spread([r["verify_seconds"] for r in found], 1)
        lines.append(
            f"| {version} | {speed} | {seconds} | {verify} | {_spread([r['peak_megabytes'] for r in found])} |"
        )
    lines += ["", f"Ours / dolma, round by round: **{_spread(ratios, 2)}**; the goal is at least {GOAL}.", ""]
    lines += ["| text, MB | most memory of ours, MB |", "|---:|---:|"]
    for size in sorted({row["megabytes"] for row in rows}):
        found = [r["peak_megabytes"] for r in rows if r["version"] == "ours" and r["megabytes"] == size]
        lines.append(f"| {size:g} | {_spread(found)} |")
    loads = [row["load_before"] for row in rows]
    lines += [
        "",
        "Memory is that of all processes together, pages they share counted once, sampled every half second.",
        f"The load average before a timing was {min(loads):.1f} to {max(loads):.1f}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its rows and its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--megabytes", type=float, default=200, help="of text (%(default)s); memory also at a quarter")
    parser.add_argument("--write", type=Path, default=BESIDE, help="the report's path without suffix (%(default)s)")
    options = parser.parse_args()
    about, date = describe("cpu", 1), datetime.date.today().isoformat()
    from data_prep.tokenizers import write_tokenizer

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer.json")
        write_tokenizer("mistral-v1", tokenizer)
        sizes = {"large": options.megabytes, "small": options.megabytes / 4}
        for name, megabytes in sizes.items():
            write_corpus(Path(folder, name), megabytes, seed=0)
        todo = [(v, "large") for _ in range(options.rounds) for v in ("ours", "dolma")] + [("ours", "small")]
        for version, name in todo:
            rows.append(measure(version, Path(folder, name), sizes[name], options.processes, tokenizer))
            print(json.dumps(rows[-1]), flush=True)
    with options.write.with_suffix(".jsonl").open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({"date": date, **row, "about": about}) + "\n")
    options.write.with_suffix(".md").write_text(report(rows, about, date), encoding="utf-8")
    print(f"{options.write.with_suffix('.jsonl')}  {options.write.with_suffix('.md')}")


if __name__ == "__main__":
    main()
