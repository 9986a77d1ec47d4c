"""Checkpoints on disk: which ones a folder holds, which are whole, and what a run may do with the folder.

Writing and reading themselves are OLMo's: ``step{N}`` (sharded, resumable on another number of ranks) and
``step{N}-unsharded`` (``model.pt``, ``optim.pt``, ``train.pt``), each written beside and renamed into place.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

NAME = re.compile(r"step(\d+)(-unsharded)?")
UNSHARDED_FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml")
SHARDED_FILES = ("model_and_optim/.metadata", "train/rank0.pt", "config.yaml")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    path: Path
    step: int
    sharded: bool

    def missing_files(self) -> list[str]:
        """What a whole checkpoint of its kind has and this one lacks."""
        expected = SHARDED_FILES if self.sharded else UNSHARDED_FILES
        return [name for name in expected if not (self.path / name).is_file()]


def checkpoint_at(path: Path) -> Checkpoint:
    """The checkpoint that a ``load_path`` names, following ``latest`` links.

    :raises InputError: when it is not there, is not a checkpoint, or is not whole.
    """
    resolved = path.resolve()
    match = NAME.fullmatch(resolved.name)
    if not resolved.is_dir() or match is None:
        raise InputError(path, "this is not a checkpoint folder", "give one named step{N} or step{N}-unsharded")
    checkpoint = Checkpoint(resolved, int(match[1]), sharded=match[2] is None)
    if missing := checkpoint.missing_files():
        raise InputError(path, f"the checkpoint is not whole: {', '.join(missing)} missing", "load another checkpoint")
    return checkpoint


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Every checkpoint folder of a run, oldest first and the sharded one last within a step; whole or not."""
    found = []
    for path in folder.resolve().glob("step*"):
        if path.is_dir() and (match := NAME.fullmatch(path.name)):
            found.append(Checkpoint(path, int(match[1]), sharded=match[2] is None))
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.sharded))


def latest_checkpoint(folder: Path, *, sharded_too: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or ``None``.

    :param sharded_too: whether the strategy can load sharded checkpoints (FSDP can, DDP cannot).
    """
    usable = [c for c in checkpoints_in(folder) if not c.missing_files() and (sharded_too or not c.sharded)]
    return usable[-1] if usable else None


def check_save_folder(folder: Path, resume_from: Checkpoint | None, *, overwrite: bool, goes_on: bool = False) -> None:
    """Refuse a save folder in which this run would overwrite what another one finished.

    :param resume_from: the checkpoint that the run starts from, if any.
    :param goes_on: whether the run was asked to go on from whatever the folder holds, be it nothing.
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
