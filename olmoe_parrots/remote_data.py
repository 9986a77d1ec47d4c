"""Training and held-out data on S3, which OLMo's loader reads a sequence at a time while a run trains.

OLMo's own reading (olmo/util.py:629) gives up after seconds, waits for minutes where a connection is silent, does not
try again where one was cut, and ends in a traceback without the file's name. :mod:`.olmo_compat` has it go through
:mod:`olmoe_parrots.remote`: a run waits `S3_PATIENCE` seconds (300) for S3 to come back, then ends with one line.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

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


def read_range(path: str, start: int, count: int) -> bytes:
    """`count` bytes of an object. Raises DataError where S3 stays away, or the object is not there."""
    return _patiently(lambda: remote.read_bytes(path, start, start + count), path)


def file_size(path: str) -> int:
    """The bytes of an object. Raises as :func:`read_range` does."""
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
