"""Writes the data set folder of a task: shards with label masks, test queries, report, tokenizer and manifest.

    manifest.json, tokenizer.json          as of every data set (olmoe_parrots.shards); `mixture` holds the settings
    train/TASK-00000.npy, .label_mask      rows of one length, and one byte a token: 1 where it is learned
    test/queries.npz                       `prompts` and `answers`, uint16, one row a query
    report.json                            lengths of paths and what was drawn again, in training and test

The folder is made under a hidden name beside its own and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from olmoe_parrots.errors import InputError
from olmoe_parrots.processes import held_folder
from olmoe_parrots.provenance import package_versions
from olmoe_parrots.shards import (
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardFile,
    TokenizerInfo,
    describe_report,
    describe_shard,
    sha256_of,
    smallest_dtype,
)
from olmoe_parrots.synthetic.phone_book import PhoneBook
from olmoe_parrots.synthetic.shortest_path import ShortestPath
from olmoe_parrots.synthetic.task import EOS, PAD, QUERIES, Queries, Task

TASKS: dict[str, type[PhoneBook] | type[ShortestPath]] = {"phone_book": PhoneBook, "shortest_path": ShortestPath}
REPORT = "report.json"
# To be raised when a change here makes other bytes of the same settings.
RECIPE = 1
_ANOTHER = "choose another --output, or remove the folder"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One shard to make: the rows `first` to `first + count` of a task, into `folder`."""

    task: Task
    seed: int
    first: int
    count: int
    folder: Path
    test: Queries

    def make(self) -> tuple[ShardFile, Counter[str]]:
        rows = self.task.rows(self.first, self.count, self.seed, self.test)
        path = f"train/{self.task.name}-{self.first // self.task.rows_per_shard:05}.npy"
        mask = path.removesuffix(".npy") + ".label_mask"
        rows.tokens_RT.astype("<u2", copy=False).tofile(self.folder / path)
        rows.learned_RT.tofile(self.folder / mask)
        dtype = smallest_dtype(len(self.task.vocabulary.words))
        file = describe_shard(self.folder, path, "train", self.task.name, dtype, self.count, mask)
        return file, rows.counts


def settings_of(task: Task, size: int, test_size: int, seed: int) -> dict[str, Any]:
    """Everything that decides the bytes of a data set, as its manifest's `mixture` says it."""
    about = {"recipe": RECIPE, "task": task.name, "size": size, "test_size": test_size, "seed": seed}
    return about | task.settings() | {"sequence_length": task.row_length}


def load_task(folder: str | os.PathLike[str]) -> tuple[Task, Queries]:
    """The task of a finished folder, with the options it was made with, and its test queries.

    Raises InputError for a folder of something else or of another version.
    """
    mixture = Manifest.load(folder).mixture
    kind = TASKS.get(str(mixture.get("task")))
    if kind is None or mixture.get("recipe") != RECIPE:
        raise InputError(folder, "it is no synthetic task of this version", "generate it again")
    try:
        task = kind(**{option.name: mixture[option.name] for option in dataclasses.fields(kind)})
    except KeyError as error:
        raise InputError(Path(folder) / MANIFEST, f"it lacks the setting {error}", "generate it again") from None
    return task, Queries.load(Path(folder))


def check(task: Task, size: int, test_size: int, seed: int, output: Path) -> None:
    """Raise InputError for whatever cannot be done, before anything is generated."""
    for option, value, least in (("--size", size, 1), ("--test-size", test_size, 1), ("--seed", seed, 0)):
        if value < least:
            raise InputError(option, f"{value} is below {least}", f"give at least {least}")
    task.check(size, test_size, seed)
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    needed, free = 3 * size * task.row_length, shutil.disk_usage(existing).free
    if needed > free:
        what = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise InputError(output, what, "ask for less, or name a folder on another disk")


def build(task: Task, size: int, test_size: int, seed: int, output: Path, processes: int) -> tuple[Manifest, bool]:
    """Make the folder `output`, or find it made.

    Args:
        size, test_size: training examples and test queries.
        processes: to use; the bytes do not depend on it.

    Returns the manifest, and whether anything was done. Raises InputError for options that cannot be met, and for a
    folder that holds something else.
    """
    check(task, size, test_size, seed, output)
    settings = settings_of(task, size, test_size, seed)
    if (there := _existing(output, settings)) is not None:
        return there, False
    with _scratch(output) as scratch:
        for folder in ("train", "test"):
            (scratch / folder).mkdir()
        test, test_counts = task.test_queries(size, test_size, seed)
        test.save(scratch / QUERIES)
        step = task.rows_per_shard
        shards = [_Shard(task, seed, i, min(step, size - i), scratch, test) for i in range(0, size, step)]
        files, train_counts = [], Counter[str]()
        for file, counts in _made(shards, processes):
            files.append(file)
            train_counts.update(counts)
        _write_report(scratch / REPORT, train=train_counts, test=test_counts)
        manifest = _manifest(task, files, settings, scratch)
        manifest.save(scratch)
        _rename(scratch, output)
    return manifest, True


def _existing(output: Path, settings: dict[str, Any]) -> Manifest | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST).is_file():
        raise InputError(output, "it holds other files and no finished data set", _ANOTHER)
    manifest = Manifest.load(output)
    keys = dict.fromkeys([*settings, *manifest.mixture])
    different = [key for key in keys if settings.get(key) != manifest.mixture.get(key)]
    if different:
        told = ", ".join(f"{key} {manifest.mixture.get(key)} there and {settings.get(key)} here" for key in different)
        raise InputError(output, f"it was made with other settings ({told})", _ANOTHER)
    sizes = {file.path: file.bytes for file in manifest.files}
    sizes |= {report.path: report.bytes for report in manifest.reports}
    sizes |= {file.label_mask: file.tokens for file in manifest.files if file.label_mask}
    for path, size in sizes.items():
        if not (output / path).is_file() or (output / path).stat().st_size != size:
            raise InputError(output / path, "it is missing or cut off", f"remove {output} and generate it again")
    return manifest


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """An empty folder beside `output`, held against other runs and removed unless it was renamed."""
    scratch = output.absolute().with_name(f".{output.absolute().name}.partial")
    with held_folder(scratch, output) as lock:
        if not scratch.exists() or not os.path.samestat(os.fstat(lock), scratch.stat()):
            raise InputError(output, "another run has just finished it", "give the command again")
        try:
            for left in scratch.iterdir():  # of a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, output: Path) -> None:
    try:
        os.rename(scratch, output)
    except OSError:
        raise InputError(output, "it was filled in the meantime", _ANOTHER) from None


def _made(shards: list[_Shard], processes: int) -> Iterator[tuple[ShardFile, Counter[str]]]:
    """Make the shards and give them in order, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=sum(shard.count for shard in shards), unit=" examples", unit_scale=True, leave=False) as bar:
        if processes == 1 or len(shards) == 1:
            for shard in shards:
                yield shard.make()
                bar.update(shard.count)
            return
        # New interpreters: a fork of a process with threads, such as one that has loaded torch, may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(shards)), context, initializer=_start_worker) as pool:
            try:
                for shard, made in zip(shards, pool.map(_Shard.make, shards), strict=True):
                    yield made
                    bar.update(shard.count)
            finally:
                pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process; the main one tells the others to stop, without their tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker once the main process is gone: killed, it cannot tell, and the worker would wait for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _write_report(path: Path, **counts: Counter[str]) -> None:
    told = {}
    for split, found in counts.items():
        lengths = {int(key.removeprefix("length ")): n for key, n in found.items() if key.startswith("length ")}
        others = {key: n for key, n in sorted(found.items()) if not key.startswith("length ")}
        told[split] = {"path_lengths": dict(sorted(lengths.items()))} | others if lengths else others
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _manifest(task: Task, files: list[ShardFile], settings: dict[str, Any], folder: Path) -> Manifest:
    (folder / TOKENIZER).write_bytes(task.vocabulary.tokenizer_json())
    size = len(task.vocabulary.words)
    tokenizer = TokenizerInfo(task.name, sha256_of(folder / TOKENIZER), size, EOS, PAD)
    installed = package_versions()
    return Manifest(
        tokenizer=tokenizer,
        dtype=smallest_dtype(size),
        files=files,
        mixture=settings,
        seed=settings["seed"],
        versions={name: installed[name] for name in ("python", "numpy")},
        asked={task.name: {"tokens": None, "share": None, "epochs": 1}},
        reports=[describe_report(folder, path) for path in (QUERIES, REPORT)],
    )
