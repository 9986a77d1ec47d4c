"""What boto3 says of S3, in one line: where, what is wrong, and what to do; never with a credential in it."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from olmoe_parrots.errors import InputError

_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_SKEWED = ("RequestTimeTooSkewed", "RequestExpired")
_SKEW = 300.0
"""Seconds by which clocks may differ; S3 takes 15 minutes."""
_BUSY = ("500", "502", "503", "504", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown")


class Unreachable(InputError):
    """S3 gave no answer, or none that was whole, however often it was asked: it may give one yet."""


def timeout() -> float:
    """Seconds that a request waits for an answer, or for more of one: `S3_TIMEOUT`."""
    return seconds_of("S3_TIMEOUT", 30.0)


def seconds_of(variable: str, default: float) -> float:
    """A number of seconds from the environment. Raises InputError where it is none."""
    given = os.environ.get(variable, "")
    try:
        seconds = float(given or default)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{variable}={given}", "it is no number of seconds", f"set it to {default:g}, say")
    return seconds


def torn() -> tuple[type[Exception], ...]:
    """Errors of a connection that ends, or falls silent, in the middle of an object."""
    from botocore import exceptions

    of_botocore = (exceptions.ResponseStreamingError, exceptions.IncompleteReadError, exceptions.ReadTimeoutError)
    return (*of_botocore, ConnectionError, TimeoutError)


@contextmanager
def told(path: str, has_bucket: Callable[[], bool]) -> Iterator[None]:
    """Errors of boto3 on the way to `path`, in one line.

    Raises FileNotFoundError where there is no such object, Unreachable where S3 may yet answer, else InputError.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except Boto3Error as error:  # a failed upload hides its reason
        reason = error.__context__
        raise _line(path, reason if isinstance(reason, ClientError | BotoCoreError) else error, has_bucket) from None
    except (ClientError, BotoCoreError, ConnectionError, TimeoutError) as error:
        raise _line(path, error, has_bucket) from None


def without_secrets(text: object) -> str:
    """A text, without secrets of the environment and without what stands before the `@` of a web address."""
    cleaned = re.sub(r"(\w+://)[^/@\s]+@", r"\1", str(text))
    for name in _SECRETS:
        if value := os.environ.get(name):
            cleaned = cleaned.replace(value, "***")
    return cleaned


def _line(path: str, error: Exception, has_bucket: Callable[[], bool]) -> Exception:
    from botocore import exceptions

    response = getattr(error, "response", None)
    if response is not None:
        return _answer(path, response, has_bucket)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return InputError(path, "there are no credentials for S3", remedy)
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, *torn())):
        where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
        remedy = "check the network and AWS_ENDPOINT_URL, then run the command again"
        return Unreachable(path, f"{without_secrets(where)} {_cause(error)}", remedy)
    return InputError(path, f"S3 failed ({without_secrets(error)})", "check the address and the settings of S3")


def _cause(error: Exception) -> str:
    from botocore import exceptions

    if isinstance(error, exceptions.ReadTimeoutError):
        return f"gives no answer for {timeout():g} s (S3_TIMEOUT)"
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.EndpointConnectionError):
        system = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(getattr(error, "kwargs", {}).get("error", "")))
        return f"cannot be reached ({system[1] if system else type(error).__name__})"
    if isinstance(error, exceptions.ConnectionError):
        return f"cannot be reached ({type(error).__name__})"
    return f"cuts connections ({type(error).__name__})"


def _answer(path: str, response: dict[str, Any], has_bucket: Callable[[], bool]) -> Exception:
    code, message = str(response.get("Error", {}).get("Code")), response.get("Error", {}).get("Message", "")
    bucket = path.partition("://")[2].partition("/")[0]
    if code == "404":  # the answer to HEAD, which says no more
        code = "NoSuchKey" if has_bucket() else "NoSuchBucket"
    if code == "NoSuchKey":
        return FileNotFoundError(path)
    if code == "NoSuchBucket":
        return InputError(path, f"there is no bucket {bucket!r}", "correct the address or create the bucket")
    if code in _SKEWED or (code in _REFUSED and abs(_seconds_ahead(response)) > _SKEW):
        hours = _seconds_ahead(response) / 3600
        what = f"S3 refused the time of the request: this machine's clock is {hours:+.1f} hours off"
        return InputError(path, what, "set the clock, then run the command again")
    if code in _REFUSED:
        what = f"S3 refused the credentials ({'Forbidden' if code == '403' else code})"
        return InputError(path, what, "check the keys or the profile, and what they may do with this bucket")
    if code in _BUSY:
        return Unreachable(path, f"S3 answered {code} {message}".rstrip(), "run the command again later")
    if code in ("412", "PreconditionFailed"):
        return InputError(path, "it changed while it was read", "run the command again")
    what = without_secrets(f"S3 answered {code} {message}".rstrip())
    return InputError(path, what, "check the address and the settings of S3")


def _seconds_ahead(response: dict[str, Any]) -> float:
    """By how much this machine's clock is ahead of the server's, which dates its answers."""
    try:
        date = response["ResponseMetadata"]["HTTPHeaders"]["date"]
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0
