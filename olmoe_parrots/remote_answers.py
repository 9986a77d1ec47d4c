"""Answers of S3 that are whole, or errors: a connection that is closed early must not look like an empty listing.

http.client takes the end of a connection for the end of an answer's head (http/client.py, `_read_headers`), and for
that of its body where it is read in pieces (`HTTPResponse.read`); urllib3 compares lengths only since 2.0. A listing
that was cut in its head would then read as a folder without files.
"""

from __future__ import annotations

from http.client import HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any


class WholeResponse(HTTPResponse):
    """Raises RemoteDisconnected where the head has no end, IncompleteRead where the body is shorter than it says."""

    def begin(self) -> None:
        if self.headers is not None:  # it was read before
            return
        file = self.fp
        self.fp = _WholeLines(file)  # type: ignore[assignment]
        super().begin()
        if self.fp is not None:
            self.fp = file

    def read(self, amt: int | None = None) -> bytes:
        content = super().read(amt)
        if amt and not content and self.length:
            raise IncompleteRead(content, self.length)
        return content


class _WholeLines:
    def __init__(self, file: Any) -> None:
        self._file = file

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            raise RemoteDisconnected("the connection ended within the head of an answer")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def require_whole_answers() -> None:
    """Have the connections of botocore, also those of other clients in this process, read a WholeResponse each."""
    from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection

    for connection in (AWSHTTPConnection, AWSHTTPSConnection):
        connection.response_class = WholeResponse
