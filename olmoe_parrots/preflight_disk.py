"""Whether a run's save folder can be written and has room, before anything is."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from .accounting import ModelShape
from .errors import InputError


def check_disk(cfg: Any) -> None:
    """Check the save folder of a loaded config.

    :raises InputError: where it cannot be written, or has no room for two checkpoints: the next one is written before
        the oldest is removed.
    """
    if not cfg.save_folder:
        raise InputError("save_folder", "it is empty", "name a folder with --save_folder=DIR")
    folder = Path(cfg.save_folder)
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    _check_writable(folder, existing)
    needed = 2 * ModelShape.from_config(cfg.model).checkpoint_bytes()
    free = shutil.disk_usage(existing).free
    if free < needed:
        what = f"{free / 1e9:.1f} GB are free and two checkpoints take {needed / 1e9:.1f} GB"
        raise InputError(folder, what, "free some space or choose another --save_folder")


def _check_writable(folder: Path, existing: Path) -> None:
    """By writing there: rights alone don't say it of root, nor of a file system that was mounted read-only."""
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        what = f"the save folder cannot be written ({error.strerror})"
        raise InputError(folder, what, "choose another --save_folder") from None
