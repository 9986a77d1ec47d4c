"""Checkpoints on disk: which ones a folder holds, which are whole, and what a run may do with the folder.

Writing and reading themselves are OLMo's: ``step{N}`` (sharded, resumable on another number of ranks) and
``step{N}-unsharded`` (``model.pt``, ``optim.pt``, ``train.pt``), each written beside and renamed into place. Before
it is renamed, :func:`seal` puts the sizes and SHA-256 of its files into its ``manifest.json``.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .shards import sha256_of

NAME = re.compile(r"step(\d+)(-unsharded)?")
UNSHARDED_FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml")
SHARDED_FILES = ("model_and_optim/.metadata", "train/rank0.pt", "config.yaml")
MANIFEST, FORMAT = "manifest.json", "olmoe_parrots.checkpoint/1"
DAMAGED = "damaged-"
"""Before the name of a checkpoint that was set aside."""
REMOVED = ".removed-"
"""Before the name of one that is being removed."""

log = logging.getLogger(__name__)


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint whose files are all there; all of it is on disk when this returns."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = list(pool.map(sha256_of, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    sync(folder)


def sync(folder: Path) -> None:
    """Have the files and folders below `folder` on disk, not in a cache that a power failure empties."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """The same for a single file, or for the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    path: Path
    step: int
    sharded: bool

    def missing_files(self) -> list[str]:
        """What a whole checkpoint of its kind has and this one lacks, its manifest aside."""
        expected = SHARDED_FILES if self.sharded else UNSHARDED_FILES
        return [name for name in expected if not (self.path / name).is_file()]

    @property
    def is_sealed(self) -> bool:
        """Whether it has a manifest. Ours all have; those that OLMo itself wrote have none."""
        return (self.path / MANIFEST).is_file()

    def damage(self, *, every_byte: bool = True) -> str | None:
        """What is wrong with it by its manifest, naming a file; ``None`` for a whole checkpoint.

        :param every_byte: compare contents; otherwise sizes alone.
        """
        if missing := self.missing_files():
            return f"it is not whole: {', '.join(missing)} missing"
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            expected = {name: (int(told["bytes"]), str(told["sha256"])) for name, told in files.items()}
        except FileNotFoundError:
            return f"it has no {MANIFEST}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"its {MANIFEST} is damaged ({error})"

        def wrong(name: str) -> str | None:
            size, digest = expected[name]
            path = self.path / name
            if not path.is_file():
                return f"it is not whole: {name} missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            return f"the content of {name} has changed" if every_byte and sha256_of(path) != digest else None

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return next((what for what in pool.map(wrong, expected) if what), None)


def checkpoint_at(path: Path, *, every_byte: bool = True) -> Checkpoint:
    """The checkpoint that a ``load_path`` names, following ``latest`` links, compared with its manifest.

    One that OLMo wrote has no manifest: its files must be there, and a warning says that no more is known.

    :raises InputError: when it is not there, is not a checkpoint, or is not whole.
    """
    resolved = path.resolve()
    match = NAME.fullmatch(resolved.name)
    if not resolved.is_dir() or match is None:
        raise InputError(path, "this is not a checkpoint folder", "give one named step{N} or step{N}-unsharded")
    checkpoint = Checkpoint(resolved, int(match[1]), sharded=match[2] is None)
    if checkpoint.is_sealed:
        problem = checkpoint.damage(every_byte=every_byte)
    else:
        missing = checkpoint.missing_files()
        problem = f"it is not whole: {', '.join(missing)} missing" if missing else None
        if not problem:
            log.warning("%s has no %s: it is loaded without verification", path, MANIFEST)
    if problem:
        raise InputError(path, f"the checkpoint is damaged: {problem}", "load another checkpoint")
    return checkpoint


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Every checkpoint folder of a run, oldest first and the sharded one last within a step; whole or not."""
    found = []
    for path in folder.resolve().glob("step*"):
        if path.is_dir() and (match := NAME.fullmatch(path.name)):
            found.append(Checkpoint(path, int(match[1]), sharded=match[2] is None))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.sharded))


def latest_checkpoint(
    folder: Path,
    *,
    sharded_too: bool = True,
    every_byte: bool = True,
    report: Callable[[str], None] = log.warning,
) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or ``None``; each newer one that is damaged is reported.

    :param sharded_too: whether the strategy can load sharded checkpoints (FSDP can, DDP cannot).
    """
    for checkpoint in reversed(checkpoints_in(folder)):
        if checkpoint.sharded and not sharded_too:
            continue
        problem = checkpoint.damage(every_byte=every_byte)
        if problem is None:
            return checkpoint
        report(f"{checkpoint.path} is passed over: {problem}")
    return None


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It loses its name first: what an interruption leaves is never taken for one."""
    nameless = checkpoint.with_name(f"{REMOVED}{checkpoint.name}")
    shutil.rmtree(nameless, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # another machine of a shared disk was faster
        checkpoint.rename(nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def finish_removals(folder: Path) -> None:
    """Remove what interrupted removals left in a save folder."""
    for nameless in folder.glob(f"{REMOVED}step*"):
        shutil.rmtree(nameless, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that cannot be used, so that a whole one can have its place; returns where it is now."""
    place = checkpoint.with_name(DAMAGED + checkpoint.name)
    number = 1
    while place.exists():
        number += 1
        place = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}.{number}")
    checkpoint.rename(place)
    log.warning("%s was set aside as %s", checkpoint, place)
    return place


def set_aside_later(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, which a run that goes on from there would collide with; their new places."""
    return [set_aside(checkpoint.path) for checkpoint in checkpoints_in(folder) if checkpoint.step > step]


def check_save_folder(
    folder: Path,
    resume_from: Checkpoint | None,
    *,
    overwrite: bool,
    goes_on: bool = False,
    sharded_too: bool = True,
) -> None:
    """Refuse a save folder in which this run would overwrite what another one finished.

    :param resume_from: the checkpoint that the run starts from, if any.
    :param goes_on: whether the run was asked to go on from whatever the folder holds, be it nothing: from the newest
        whole checkpoint that it can load, so that later ones of that kind are damaged.
    :param sharded_too: whether the strategy can load sharded checkpoints.
    :raises InputError: when the folder holds a run and this one neither resumes it nor may overwrite it, or resumes
        it from a step that has later checkpoints.
    """
    if overwrite or not folder.exists():
        return
    existing = checkpoints_in(folder)
    resumes = resume_from is not None and resume_from.path.parent == folder.resolve()
    if resumes:
        assert resume_from is not None
        later = [c.path.name for c in existing if c.step > resume_from.step and not c.missing_files()]
        if goes_on:
            later = [] if sharded_too else [name for name in later if not name.endswith("-unsharded")]
        if later:
            what = f"it holds {later[-1]}, later than step {resume_from.step}, which this run would overwrite"
            raise InputError(folder, what, "use another --save_folder, a later --load_path, or --save_overwrite")
        return
    if existing and goes_on and resume_from is None:
        names = ", ".join(checkpoint.path.name for checkpoint in existing)
        what = f"none of its checkpoints is whole and of a kind that this strategy loads: {names}"
        raise InputError(folder, what, "mend or remove it, or use another --save_folder")
    if existing or ((folder / "metrics.jsonl").exists() and not goes_on):
        remedy = "resume it with --try_load_latest_save, use another --save_folder, or --save_overwrite"
        raise InputError(folder, "the save folder already holds a run", remedy)
