"""S3 by boto3: what is under `s3://bucket/prefix`, read and written, with errors in one line.

Credentials come from boto3's usual chain (environment, profiles, instance roles) and nowhere else; `AWS_ENDPOINT_URL`
names another server than Amazon's. `S3_PROFILE` chooses a profile here as it does in OLMo (olmo/util.py:520).
Functions that read raise FileNotFoundError where there is no such object, and InputError for what keeps every object
of the bucket from being read: credentials, a missing bucket, no connection.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olmoe_parrots.errors import InputError

SCHEME = "s3://"
_BLOCK = 1 << 22


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
    bucket, key = _split(path)
    ranged = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
    with _told(path):
        return bytes(_client().get_object(Bucket=bucket, Key=key, **ranged)["Body"].read())


def read_blocks(path: str) -> Iterator[bytes]:
    """The bytes of an object, in blocks of a few MB."""
    bucket, key = _split(path)
    with _told(path):
        yield from _client().get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_BLOCK)


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
    """Copy an object to the file `local`: beside it first, then renamed."""
    bucket, key = _split(path)
    beside = local.with_name(f".{local.name}.{os.getpid()}.partial")
    try:
        with _told(path):
            _client().download_file(bucket, key, str(beside))
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
    if not is_remote(path) or not bucket:
        raise InputError(path, "it is no address of S3", "write s3://bucket/folder")
    return bucket, re.sub("/+", "/", key).lstrip("/")


def _list(bucket: str, prefix: str, told: str) -> list[str]:
    found = []
    with _told(told):
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
    config = Config(retries=retries, connect_timeout=10, max_pool_connections=32)
    try:
        return boto3.Session(profile_name=os.environ.get("S3_PROFILE")).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # no such profile, a setting or an endpoint that is none
        remedy = "correct AWS_PROFILE, S3_PROFILE, AWS_ENDPOINT_URL or the files of ~/.aws"
        raise InputError("S3", f"its settings cannot be used ({error})", remedy) from None


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Errors of boto3 on the way to `path`, in one line."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except Boto3Error as error:  # a failed upload hides its reason
        reason = error.__context__
        raise _told_of(path, reason if isinstance(reason, ClientError | BotoCoreError) else error) from None
    except (ClientError, BotoCoreError) as error:
        raise _told_of(path, error) from None


def _told_of(path: str, error: Exception) -> Exception:
    from botocore import exceptions

    response = getattr(error, "response", None)
    if response is not None:
        return _answer(path, str(response.get("Error", {}).get("Code")), response.get("Error", {}).get("Message", ""))
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return InputError(path, "there are no credentials for S3", remedy)
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
        remedy = "check the network and AWS_ENDPOINT_URL, then run the command again"
        return InputError(path, f"{where} cannot be reached ({type(error).__name__})", remedy)
    return InputError(path, f"S3 failed ({error})", "check the address and the settings of S3")


def _answer(path: str, code: str, message: str) -> Exception:
    bucket = _split(path)[0]
    if code == "404":  # the answer to HEAD, which says no more
        code = "NoSuchKey" if _has_bucket(bucket) else "NoSuchBucket"
    if code == "NoSuchKey":
        return FileNotFoundError(path)
    if code == "NoSuchBucket":
        return InputError(path, f"there is no bucket {bucket!r}", "correct the address or create the bucket")
    if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        what = f"S3 refused the credentials ({'Forbidden' if code == '403' else code})"
        return InputError(path, what, "check the keys or the profile, and what they may do with this bucket")
    return InputError(path, f"S3 answered {code} {message}".rstrip(), "check the address and the settings of S3")


def _has_bucket(bucket: str) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _client().head_bucket(Bucket=bucket)
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code")) not in ("404", "NoSuchBucket")
    except BotoCoreError:
        return True
    return True
