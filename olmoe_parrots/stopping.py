"""Signals that ask a run to stop: the step in progress is finished and saved, and the exit code asks for a requeue."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

REQUEUE = 75
"""Exit code of a run that stopped when asked to: the same command goes on (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Of a preemption, of a keyboard, and of Slurm's ``--signal=USR1@SECONDS`` before the time limit."""

_SAME_REQUEST = 2.0
"""Seconds in which further signals are the same request: torchrun passes on what the terminal has sent already."""


class StopRequest:
    """Notes a signal while it is entered. A second one, later than two seconds after it, ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._noted_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._noted_at > _SAME_REQUEST:
            os._exit(128 + number)
