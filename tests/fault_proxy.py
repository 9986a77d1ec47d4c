"""A TCP proxy on the loopback that fails as told: it refuses, cuts, slows down or hangs, and counts what it did."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    `kind` is "refuse" (nobody listens any more), "cut" (connections are reset), "hang" (nothing passes) or "slow".
    It begins with the first request that holds `request`, and with the `times`-th connection it is over.
    """

    kind: str
    request: bytes = b""
    times: int | None = None
    after: int = 0
    """Bytes of answers that pass on a connection before it is cut."""
    upwards: bool = False
    """The bytes are those of requests."""
    closes: bool = False
    """A cut connection is closed in order, as by a server that ends, instead of reset."""
    bytes_per_second: int = 0


class FaultProxy:
    """Passes connections on to `upstream`; :meth:`fail` says what happens to them from now on."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = (str(address.hostname), int(address.port or 80))
        self._door = _listen(0)
        self.port = self._door.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.counts: Counter[str] = Counter()
        """Connections by what happened to them: "accepted", or the kind of a fault."""
        self._fault: Fault | None = None
        self._begun = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def fail(self, fault: Fault) -> None:
        """Begin, or with `request` wait for it, and reset the connections of before."""
        self.heal()
        with self._lock:
            self._fault, self._begun = fault, False
        if not fault.request:
            self._begin()
        self._reset_all()

    def heal(self) -> None:
        """Work again."""
        with self._lock:
            self._fault, self._begun = None, False
            if self._door.fileno() < 0 and not self._closed:
                self._door = _listen(self.port)
                threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def close(self) -> None:
        self._closed = True
        _shut(self._door)
        self._reset_all()

    def _begin(self) -> None:
        with self._lock:
            if self._fault is None or self._begun:
                return
            self._begun = True
            refuses = self._fault.kind == "refuse"
            self.counts["refuse"] += refuses
        if refuses:
            _shut(self._door)
            self._reset_all()

    def _reset_all(self) -> None:
        with self._lock:
            held, self._open = self._open, set()
        for one in held:
            _reset(one)

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                client, _ = door.accept()
                server = socket.create_connection(self._upstream)
            except OSError:
                return
            self.counts["accepted"] += 1
            with self._lock:
                self._open |= {client, server}
            pair = _Pair(self, client, server)
            for upwards in (True, False):
                threading.Thread(target=pair.pump, args=(upwards,), daemon=True).start()

    def now(self, request: bytes | None = None) -> Fault | None:
        """The fault at work; one that waits for this request begins."""
        with self._lock:
            fault, begun = self._fault, self._begun
        if fault is not None and not begun and request is not None and fault.request in request:
            self._begin()
            begun = True
        return fault if begun else None

    def happened(self, fault: Fault) -> bool:
        """Count a connection that failed; False where the fault has been over before."""
        with self._lock:
            if self._fault is not fault:
                return False
            self.counts[fault.kind] += 1
            if fault.times is not None and self.counts[fault.kind] >= fault.times:
                self._fault, self._begun = None, False
            return True


class _Pair:
    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.hung = self.slowed = False
        self.end: Callable[[socket.socket], None] = _reset
        self.passed = {True: 0, False: 0}

    def pump(self, upwards: bool) -> None:
        source, target = (self.client, self.server) if upwards else (self.server, self.client)
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if not self._passes(chunk, upwards, target):
                    for one in (target, source):
                        self.end(one)
        for one in (self.client, self.server):
            _shut(one)

    def _passes(self, chunk: bytes, upwards: bool, target: socket.socket) -> bool:
        fault = self.proxy.now(chunk if upwards else None)
        if fault is not None and fault.kind == "hang" and (self.hung or self.proxy.happened(fault)):
            self.hung = True
        if self.hung:  # until whoever waits has enough of it
            return True
        if fault is not None and fault.kind == "slow":
            if not self.slowed:
                self.slowed = self.proxy.happened(fault)
            time.sleep(len(chunk) / fault.bytes_per_second)
        if fault is not None and fault.kind == "cut" and fault.upwards is upwards:
            left = fault.after - self.passed[upwards]
            if len(chunk) > left and self.proxy.happened(fault):
                target.sendall(chunk[: max(0, left)])
                self.end = _shut if fault.closes else _reset
                return False
            self.passed[upwards] += len(chunk)
        target.sendall(chunk)
        return True


def _listen(port: int) -> socket.socket:
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", port))
    door.listen(128)
    return door


def _shut(one: socket.socket) -> None:
    """What was sent still arrives; a thread that waits for this socket goes on."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD)  # a thread that waits for it goes on, and nothing is sent yet
    one.close()


@contextmanager
def running_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy that is closed with the block."""
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
