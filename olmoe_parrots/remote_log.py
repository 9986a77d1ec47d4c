"""What a run says of itself, beside its checkpoints on S3: ``metrics.jsonl``, its configs and where they come from.

S3 can't append, so the whole log goes there anew; never less than what is there, as :func:`fetch_log` comes first.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from pathlib import Path

from . import remote
from .shards import read_blocks, sha256_of

LOG = "metrics.jsonl"
BESIDE = ("config*.yaml", "provenance*.json")


def copy_log(folder: Path, address: str) -> None:
    """Copy the log of the save folder `folder`, as far as its rows are whole, to the S3 folder `address`.

    Raises InputError where S3 does not take it, OSError where it cannot be read.
    """
    for path in sorted(path for pattern in BESIDE for path in folder.glob(pattern)):
        remote.upload(path, f"{address}/{path.name}", sha256_of(path))
    if not (folder / LOG).is_file():
        return
    copy = folder / f".{LOG}.copied"  # the run goes on writing
    try:
        shutil.copyfile(folder / LOG, copy)
        if whole := _whole_rows(copy):
            os.truncate(copy, whole)
            remote.upload(copy, f"{address}/{LOG}", sha256_of(copy))
    finally:
        copy.unlink(missing_ok=True)


def _whole_rows(log: Path) -> int:
    """Bytes up to the end of the last whole row."""
    at = whole = 0
    for block in read_blocks(log):
        if (newline := block.rfind(b"\n")) >= 0:
            whole = at + newline + 1
        at += len(block)
    return whole


def holds_log(address: str) -> bool:
    """Whether a run's log is in the S3 folder `address`."""
    return remote.exists(f"{address.rstrip('/')}/{LOG}")


def fetch_log(address: str, folder: Path) -> None:
    """Append to the log of `folder` the rows on S3 that it lacks, and fetch the files of BESIDE that it lacks.

    After a lost disk the log therefore goes on; where the disk is the one of before, nothing is read.
    """
    address = address.rstrip("/")
    names = {path.removeprefix(f"{address}/") for path in remote.list_files(address)}
    for name in sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in BESIDE)):
        if "/" not in name and not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            remote.download(f"{address}/{name}", folder / name)
    if LOG in names and not _starts_with(folder / LOG, remote.stat(f"{address}/{LOG}")):
        with remote.local_copy(f"{address}/{LOG}") as copy:
            _append_missing(Path(copy), folder / LOG)


def _starts_with(log: Path, copied: remote.RemoteFile) -> bool:
    if not log.is_file() or log.stat().st_size < copied.bytes:
        return False
    digest, left = hashlib.sha256(), copied.bytes
    for block in read_blocks(log):
        digest.update(block[:left])
        left -= len(block[:left])
    return digest.hexdigest() == copied.sha256


def _append_missing(copied: Path, log: Path) -> None:
    """In place: a run that is at work there may hold the file open."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+b") as file, copied.open("rb") as rows:
        file.seek(0)
        last, held = b"\n", set()
        for last in file:
            held.add(hash(last))
        torn = b"" if last.endswith(b"\n") else b"\n"
        missing = [row for row in rows if hash(row) not in held]
        if missing:
            file.write(torn + b"".join(missing))
