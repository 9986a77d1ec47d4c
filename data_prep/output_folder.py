"""The dataset folder while it is made: held against other runs, with a place for what is unfinished."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_prep.documents import FOLDER
from olmoe_parrots.errors import InputError
from olmoe_parrots.processes import held_folder
from olmoe_parrots.shards import MANIFEST

SETTINGS = f"{FOLDER}/settings.json"
PREPARED = "prepared"
"""In the dataset folder: what the tasks of an array job made of single source files."""
FILES = f"{PREPARED}/files.json"
SCRATCH = ".partial"


@contextlib.contextmanager
def locked(output: Path) -> Iterator[Path]:
    """Hold the dataset folder against another run; yields a scratch folder that is removed afterwards."""
    if output.exists() and not output.is_dir():
        raise InputError(output, "it is not a folder", "choose another --output")
    begun = any((output / name).exists() for name in (MANIFEST, SETTINGS, FILES))
    if output.is_dir() and not begun and any(entry.name != SCRATCH for entry in output.iterdir()):
        raise InputError(output, "it holds other files and no dataset", "choose another --output or empty it")
    with held_folder(output, output):
        scratch = output / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def shared(output: Path) -> Iterator[None]:
    """Hold the dataset folder against a run that holds it alone, beside others that share it."""
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(output, "another run is writing there", "wait for it") from None
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def told_when_full(output: Path) -> Iterator[None]:
    """Make an InputError of a full disk and of a place that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or output
        what = f"it cannot be written ({error.strerror})"
        raise InputError(where, what, "free space or mend permissions, then run again: it goes on there") from None
