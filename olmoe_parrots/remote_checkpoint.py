"""Checkpoints on S3: copied after they are saved, and fetched and compared before a run goes on from one.

A checkpoint's manifest goes up last, and down first: without it there is no checkpoint, so that none is seen by half.
What is on disk stays the first copy; S3 keeps every checkpoint that was copied there.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from . import remote
from .checkpoint import DAMAGED, MANIFEST, NAME, Checkpoint, checkpoints_in, set_aside, sync
from .errors import InputError, RunError
from .remote_log import LOG, copy_log, holds_log
from .shards import sha256_of

log = logging.getLogger(__name__)


def upload_checkpoint(local: Path, address: str, *, overwrite: bool = False) -> bool:
    """Copy a sealed checkpoint to the S3 folder `address`; False where that is there already.

    :param overwrite: put it in the place of another checkpoint.
    :raises InputError: when another checkpoint is there, or S3 does not take it.
    """
    manifest = f"{address}/{MANIFEST}"
    sealed = (local / MANIFEST).read_bytes()
    try:
        there = remote.read_bytes(manifest)
    except FileNotFoundError:
        there = None
    if there == sealed:
        return False
    if there is not None:
        if not overwrite:
            remedy = "use another --remote_save_folder, or --save_overwrite"
            raise InputError(address, "another run's checkpoint is there", remedy)
        remote.remove(manifest)  # from now on there is none
    for path in sorted(path for path in local.rglob("*") if path.is_file() and path.name != MANIFEST):
        remote.upload(path, f"{address}/{path.relative_to(local).as_posix()}", sha256_of(path))
    remote.upload(local / MANIFEST, manifest, sha256_of(local / MANIFEST))
    return True


def remote_checkpoints(folder: str) -> list[tuple[int, bool, str]]:
    """Step, whether it is sharded, and address of each checkpoint with a manifest below `folder`, oldest first."""
    found = []
    for address in remote.list_files(folder):
        parent, _, name = address.rpartition("/")
        match = NAME.fullmatch(parent.rpartition("/")[2])
        if name == MANIFEST and match and parent.count("/") == folder.rstrip("/").count("/") + 1:
            found.append((int(match[1]), match[2] is None, parent))
    return sorted(found)


def fetch_checkpoint(address: str, into: Path) -> Checkpoint:
    """Copy a checkpoint from S3 to the folder `into`: beside it first, compared with its manifest, then renamed.

    What stands in its place is set aside. One that OLMo wrote has no manifest: its files must be there, and a warning
    says that no more is known.

    :raises InputError: when it is no checkpoint, or not whole, or damaged.
    """
    match = NAME.fullmatch(into.name)
    if match is None:
        raise InputError(address, "this is no checkpoint", "give one named step{N} or step{N}-unsharded")
    scratch = into.with_name(f".{into.name}.{os.getpid()}.partial")
    try:
        for file in (files := remote.list_files(address)):
            place = scratch / file.removeprefix(f"{address.rstrip('/')}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            remote.download(file, place)
        copied = Checkpoint(scratch, int(match[1]), sharded=match[2] is None)
        if not files:
            raise InputError(address, "there is no such checkpoint", "give one named step{N} or step{N}-unsharded")
        if copied.is_sealed:
            problem = copied.damage()
        else:
            problem = f"it is not whole: {', '.join(missing)} missing" if (missing := copied.missing_files()) else None
            log.warning("%s has no %s: it is loaded without verification", address, MANIFEST)
        if problem:
            raise InputError(address, f"the checkpoint is damaged: {problem}", "load another checkpoint")
        sync(scratch)
        if into.exists():
            set_aside(into)
        scratch.rename(into)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Checkpoint(into, copied.step, copied.sharded)


def fetch_newest(folder: str, into: Path, *, after: int, sharded_too: bool) -> Checkpoint | None:
    """Fetch the newest whole checkpoint of a step later than `after`; each newer one that is damaged is reported.

    :param into: the run's save folder.
    """
    for step, sharded, address in reversed(remote_checkpoints(folder)):
        place = into / address.rpartition("/")[2]
        if step <= after or (sharded and not sharded_too):
            continue
        log.warning("fetching %s", address)
        try:
            return fetch_checkpoint(address, place)
        except InputError as error:
            if "damaged" not in error.what:
                raise
            log.warning("%s is passed over: %s", address, error.what)
            _set_aside(address)
    return None


def _set_aside(address: str) -> None:
    """Leave a damaged checkpoint's files where they are, without the manifest that makes them a checkpoint."""
    with remote.local_copy(f"{address}/{MANIFEST}") as copy:
        remote.upload(Path(copy), f"{address}/{DAMAGED}{MANIFEST}", sha256_of(Path(copy)))
    remote.remove(f"{address}/{MANIFEST}")


def check_remote_save_folder(
    folder: str, resume_from: Checkpoint | None, *, overwrite: bool, goes_on: bool = False
) -> None:
    """Refuse an S3 folder that cannot be read, or whose checkpoints or log this run would collide with.

    :param resume_from: the checkpoint that the run starts from, if any.
    :param goes_on: whether it is the run whose log may be there.
    """
    if not remote.is_remote(folder):
        raise InputError(f"remote_save_folder={folder}", "it is no address of S3", "write s3://bucket/folder")
    there = remote_checkpoints(folder)
    step = -1 if resume_from is None else resume_from.step
    later = [address for found, _, address in there if found > step]
    holds = later[-1].rpartition("/")[2] if later else LOG if not goes_on and holds_log(folder) else None
    if holds and not overwrite:
        what = f"it holds {holds}, which this run would have to overwrite"
        remedy = "resume it with --try_load_latest_save, use another --remote_save_folder, or --save_overwrite"
        raise InputError(folder, what, remedy)


class Uploads:
    """Copies of a run's log and checkpoints, one after the other, beside training.

    The log goes up before each checkpoint, so that on S3 no checkpoint is without the rows of its steps.

    :param folder: ``remote_save_folder``, an address of S3.
    :param save_folder: where the run's log is; without it checkpoints alone are copied.
    :param overwrite: whether other checkpoints there may be replaced.
    """

    def __init__(self, folder: str, save_folder: Path | None = None, *, overwrite: bool = False) -> None:
        self.folder = folder.rstrip("/")
        self._save_folder = save_folder
        self._overwrite = overwrite
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._running: dict[Path, Future[bool]] = {}
        self._is_last_try = False
        self._given_up = threading.Event()

    def add(self, checkpoint: Path) -> None:
        """Copy it as soon as those before it are copied."""
        self._running[checkpoint] = self._pool.submit(self._copy, checkpoint)

    def _copy(self, checkpoint: Path | None = None) -> bool:
        if self._given_up.is_set():
            return False
        try:
            if self._save_folder is not None:
                copy_log(self._save_folder, self.folder)
            if checkpoint is None:
                return True
            return upload_checkpoint(checkpoint, f"{self.folder}/{checkpoint.name}", overwrite=self._overwrite)
        except (InputError, OSError):
            if self._is_last_try:  # the others would wait as long for the same answer
                self._given_up.set()
            raise

    def wait_for(self, checkpoint: Path, seconds: float | None = None) -> bool:
        """Before it is removed: have it copied, or say that it was not.

        :returns: False where S3 is still taking it after so many seconds: then it has to stay.
        """
        if (future := self._running.get(checkpoint)) is None:
            return True
        wait([future], seconds)
        if not future.done():
            log.warning("%s stays on disk: S3 has not taken all of it in %.0f s", checkpoint, seconds)
            return False
        if (error := self._failure(self._running.pop(checkpoint))) is not None:
            log.warning("%s is removed here and was not copied to S3: %s", checkpoint, error)
        return True

    def finish(self) -> None:
        """Wait for all; those that failed are tried once more, and the log is copied as it is now.

        :raises RunError: when some are on disk alone.
        """
        failed = [checkpoint for checkpoint, future in self._running.items() if self._failure(future) is not None]
        self._is_last_try = True
        for checkpoint in failed:
            self.add(checkpoint)
        whole = {str(checkpoint): future for checkpoint, future in self._running.items()}
        if self._save_folder is not None:
            whole[str(self._save_folder / LOG)] = self._pool.submit(self._copy)
        for path, future in whole.items():
            if (error := self._failure(future)) is not None:
                what = f"{path} is whole on disk, but not on S3 ({error})"
                remedy = "mend that and run again with --try_load_latest_save=true"
                raise RunError(self.folder, what, remedy) from error
        self._running.clear()

    def _failure(self, future: Future[bool]) -> InputError | OSError | None:
        try:
            future.result()
        except (InputError, OSError) as error:
            return error
        return None

    def close(self) -> None:
        """End without waiting for those that have not begun."""
        self._given_up.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def uploading(folder: str | None, save_folder: Path, *, overwrite: bool) -> Iterator[Uploads | None]:
    """Uploads to `folder`, if any; whole checkpoints that are in the save folder already are copied too."""
    if folder is None:
        yield None
        return
    uploads = Uploads(folder, save_folder, overwrite=overwrite)
    try:
        for checkpoint in checkpoints_in(save_folder):
            if checkpoint.is_sealed:
                uploads.add(checkpoint.path)
        yield uploads
        uploads.finish()
    finally:
        uploads.close()
