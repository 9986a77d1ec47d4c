"""S3 by boto3: what is under `s3://bucket/prefix`, read and written, with errors in one line.

Credentials come from boto3's usual chain (environment, profiles, instance roles) and nowhere else; `AWS_ENDPOINT_URL`
names another server than Amazon's. `S3_PROFILE` chooses a profile here as it does in OLMo (olmo/util.py:520).
Functions that read raise FileNotFoundError where there is no such object, and InputError for what keeps every object
of the bucket from being read: credentials, a missing bucket, no connection (Unreachable).

A request is tried `AWS_MAX_ATTEMPTS` times (5), with growing waits between; each waits `S3_TIMEOUT` seconds (30) for
an answer. Reading goes on where a connection was cut, and only tries without a byte between them count.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olmoe_parrots.errors import InputError
from olmoe_parrots.remote_answers import require_whole_answers
from olmoe_parrots.remote_errors import timeout, told, torn, without_secrets

SCHEME = "s3://"
_BLOCK, _PART = 1 << 18, 1 << 23
"""Bytes that are read at once, and that a thread of a download fetches."""
_THREADS = 10
_JITTER = random.Random()  # not the run's random state, which its checkpoints hold


@dataclass(frozen=True)
class RemoteFile:
    """An object's size in bytes, and the SHA-256 that `upload` stored with it (None for objects put by others)."""

    bytes: int
    sha256: str | None


def is_remote(path: object) -> bool:
    """Whether `path` is an `s3://` address."""
    return str(path).startswith(SCHEME)


def join(folder: object, name: str) -> str:
    """The path of `name` below `folder`, which is an `s3://` address or a local folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else str(Path(str(folder), name))


def list_files(prefix: str) -> list[str]:
    """The addresses of all objects below the folder `prefix`, sorted; none where there is no such folder."""
    bucket, key = _split(prefix)
    return _list(bucket, f"{key.rstrip('/')}/" if key.strip("/") else "", prefix)


def find(pattern: str) -> list[str]:
    """The addresses that match `pattern`, sorted; `*`, `?` and `[...]` stand within one name, as in `glob.glob`."""
    bucket, key = _split(pattern)
    literal = re.split(r"[*?\[]", key, maxsplit=1)[0]
    wanted = key.split("/")
    found = []
    for address in _list(bucket, literal, pattern):
        names = _split(address)[1].split("/")
        if len(names) == len(wanted) and all(map(_name_matches, names, wanted)):
            found.append(address)
    return found


def read_bytes(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of an object, or its bytes from `start` up to `stop`."""
    return b"" if start == stop else b"".join(read_blocks(path, start, stop))


def read_blocks(path: str, start: int = 0, stop: int | None = None, tag: str | None = None) -> Iterator[bytes]:
    """The bytes of an object, or those from `start` up to `stop`, in blocks of at most 256 KiB.

    Args:
        tag: the object's ETag, if it is known: the bytes are of that state, or InputError is raised.
    """
    bucket, key = _split(path)
    tears = 0
    with _told(path):
        while True:
            wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
            answer = _get_object(Bucket=bucket, Key=key, **wanted, **({"IfMatch": tag} if tag else {}))
            tag = answer["ETag"]
            try:
                for block in answer["Body"].iter_chunks(_BLOCK):
                    start, tears = start + len(block), 0
                    yield block
                return
            except torn():
                tears += 1
                if tears >= _attempts():
                    raise
                _wait(tears)


def _get_object(**wanted: str) -> Any:
    """GET's answer. An error's is read by botocore outside of its own tries, so one that is cut is asked for again."""
    from urllib3.exceptions import ProtocolError

    tears = 0
    while True:
        try:
            return _client().get_object(**wanted)
        except ProtocolError as error:
            tears += 1
            if tears >= _attempts():
                raise ConnectionResetError(str(error)) from None
        _wait(tears)


def stat(path: str) -> RemoteFile:
    """An object's size and stored sum, without reading it."""
    bucket, key = _split(path)
    with _told(path):
        head = _client().head_object(Bucket=bucket, Key=key)
    return RemoteFile(int(head["ContentLength"]), head.get("Metadata", {}).get("sha256"))


def size(path: str) -> int:
    """An object's size in bytes."""
    return stat(path).bytes


def exists(path: str) -> bool:
    """Whether there is an object of this address."""
    try:
        stat(path)
    except FileNotFoundError:
        return False
    return True


def download(path: str, local: Path) -> None:
    """Copy an object to the file `local`, in several parts at once: beside it first, then renamed."""
    bucket, key = _split(path)
    beside = local.with_name(f".{local.name}.{os.getpid()}.partial")
    with _told(path):
        head = _client().head_object(Bucket=bucket, Key=key)
    length, tag = int(head["ContentLength"]), str(head["ETag"])
    try:
        with beside.open("wb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:

            def fetch(start: int) -> None:
                at = start
                for block in read_blocks(path, start, min(start + _PART, length), tag):
                    os.pwrite(file.fileno(), block, at)
                    at += len(block)

            try:
                for _ in pool.map(fetch, range(0, length, _PART)):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)
        os.replace(beside, local)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """The path of a file on disk: `path` itself, or for an `s3://` address a copy that goes with the block."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.rpartition("/")[2])
        download(path, copy)
        yield str(copy)


def upload(local: Path, path: str, sha256: str) -> bool:
    """Copy the file `local` to an object, in several parts where it is large, and store its sum with it.

    Returns False, and copies nothing, where an object of this size and sum is there already.
    """
    bucket, key = _split(path)
    length = local.stat().st_size
    try:
        if stat(path) == RemoteFile(length, sha256):
            return False
    except FileNotFoundError:
        pass
    with _told(path):
        _client().upload_file(str(local), bucket, key, ExtraArgs={"Metadata": {"sha256": sha256}})
    if (found := size(path)) != length:
        raise InputError(path, f"{found} of {length} bytes arrived", "run the command again")
    return True


def remove(path: str) -> None:
    """Remove an object; nothing happens where there is none."""
    bucket, key = _split(path)
    with _told(path):
        _client().delete_object(Bucket=bucket, Key=key)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = str(path).removeprefix(SCHEME).partition("/")
    if "@" in bucket:
        remedy = "write s3://bucket/folder, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise InputError(without_secrets(path), "credentials do not belong into an address", remedy)
    if not is_remote(path) or not bucket:
        raise InputError(path, "it is no address of S3", "write s3://bucket/folder")
    return bucket, re.sub("/+", "/", key).lstrip("/")


def _list(bucket: str, prefix: str, path: str) -> list[str]:
    found = []
    with _told(path):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found += [entry["Key"] for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]
    return [f"{SCHEME}{bucket}/{key}" for key in sorted(found)]


def _name_matches(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatch.fnmatchcase(name, pattern)


def _client() -> Any:
    # Another process or other credentials must not get a client made before.
    settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "S3_"))))
    return _client_of(os.getpid(), settings)


@functools.lru_cache(maxsize=2)
def _client_of(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = 5
    waits = {"connect_timeout": min(10.0, timeout()), "read_timeout": timeout()}
    config = Config(retries=retries, max_pool_connections=32, **waits)
    require_whole_answers()
    try:
        return boto3.Session(profile_name=os.environ.get("S3_PROFILE")).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # no such profile, a setting or an endpoint that is none
        remedy = "correct AWS_PROFILE, S3_PROFILE, AWS_ENDPOINT_URL or the files of ~/.aws"
        raise InputError("S3", f"its settings cannot be used ({without_secrets(error)})", remedy) from None


def _attempts() -> int:
    return int(_client().meta.config.retries["total_max_attempts"])


def _wait(tries: int) -> None:
    """As long as botocore does between its tries (retries/standard.py, ExponentialBackoff)."""
    time.sleep(_JITTER.random() * min(2 ** (tries - 1), 20))


def _told(path: str) -> AbstractContextManager[None]:
    return told(path, lambda: _has_bucket(_split(path)[0]))


def _has_bucket(bucket: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _client().head_bucket(Bucket=bucket)
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code")) not in ("404", "NoSuchBucket")
    except BotoCoreError:
        return True
    return True
