"""Training and held-out data on S3, which OLMo's loader reads a sequence at a time while a run trains.

OLMo's own reading (olmo/util.py:629) gives up after seconds, waits for minutes where a connection is silent, does not
try again where one was cut, and ends in a traceback without the file's name. Here it goes through
:mod:`olmoe_parrots.remote`: a run waits `S3_PATIENCE` seconds (300) for S3 to come back, then ends with one line.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from . import remote
from .errors import InputError, RunError
from .remote_errors import Unreachable, seconds_of

log = logging.getLogger("olmoe_parrots")
Read = TypeVar("Read")


class DataError(RunError):
    """Data that can't be read any more. Of its text alone it can be made anew, as torch does with the errors of a
    loader's workers (torch/_utils.py, ExceptionWrapper)."""

    def __init__(self, where: object, what: str | None = None, remedy: str = "") -> None:
        if what is None:
            line = str(where).strip().splitlines()[-1].partition(f"{DataError.__name__}: ")[2]
            where, _, rest = line.partition(": ")
            what, _, remedy = rest.rpartition("; ")
        super().__init__(where, what, remedy)


def read_through_our_client() -> None:
    """Have OLMo's loader read `s3://` by our client, patiently; calling it again changes nothing."""
    import olmo.util

    util: Any = olmo.util
    of_others = util._s3_get_bytes_range, util._s3_file_size
    if of_others[0] is _get_bytes_range:
        return
    _OF_OTHERS.extend(of_others)
    util._s3_get_bytes_range = _get_bytes_range
    util._s3_file_size = _file_size


_OF_OTHERS: list[Callable[..., Any]] = []
"""OLMo's functions, for the schemes that are not ours."""


def _get_bytes_range(scheme: str, bucket: str, key: str, start: int, count: int, *args: Any, **kwargs: Any) -> bytes:
    if scheme != "s3":
        return bytes(_OF_OTHERS[0](scheme, bucket, key, start, count, *args, **kwargs))
    path = f"{remote.SCHEME}{bucket}/{key}"
    return _patiently(lambda: remote.read_bytes(path, start, start + count), path)


def _file_size(scheme: str, bucket: str, key: str, *args: Any, **kwargs: Any) -> int:
    if scheme != "s3":
        return int(_OF_OTHERS[1](scheme, bucket, key, *args, **kwargs))
    path = f"{remote.SCHEME}{bucket}/{key}"
    return _patiently(lambda: remote.size(path), path)


def _patiently(read: Callable[[], Read], path: str) -> Read:
    patience, since = seconds_of("S3_PATIENCE", 300.0), time.monotonic()
    while True:
        try:
            return read()
        except FileNotFoundError:
            raise _ended(InputError(path, "the file does not exist any more", "copy it anew")) from None
        except InputError as error:
            left = since + patience - time.monotonic()
            if not isinstance(error, Unreachable) or left <= 0:
                raise _ended(error) from None
            log.warning("%s: %s; going on to try for %.0f s", error.where, error.what, left)
            time.sleep(min(left, 1.0))


def _ended(error: InputError) -> DataError:
    if os.environ.get("RANK", "0") not in ("", "0"):
        log.error("%s", error)  # only the first rank's last line is shown
    return DataError(error.where, error.what, error.remedy)
