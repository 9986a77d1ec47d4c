"""How the runs of a grid stand, by their folders and what a queue or a launcher has of them."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from launch.config_grid import GridJob
from launch.metrics_tail import last_row
from launch.processes import last_state
from olmoe_parrots.stopping import REQUEUE

LOSS, RATE = "train/CrossEntropyLoss", "throughput/tokens_per_second"
ASKED = (REQUEUE, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)
"""Exit codes of a run that was asked to stop: after it had saved, or before its first step."""


@dataclass(frozen=True)
class RunState:
    """How a run stands: "done", "running", "queued", "failed", "stopped" (it has begun) or "waiting".

    `seconds_left` is None where no rate is known, or the run is not at work. `restarts` counts Slurm's.
    """

    job: GridJob
    name: str
    step: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    restarts: int
    reason: str = ""


def is_done(job: GridJob) -> bool:
    """Whether the run has ended well, and as far as its config goes."""
    if last_state(job.folder).get("exit_code") != 0:
        return False
    row = last_row(job.folder, LOSS)
    return row is None or job.steps is None or row["step"] >= job.steps


def state_of(job: GridJob, at_work: Mapping[str, tuple[str, str]]) -> RunState:
    """How a run stands.

    Args:
        at_work: "running" or "queued", and why it waits, by the names of the runs that a queue or a launcher has.
    """
    told = last_state(job.folder)
    row = last_row(job.folder, LOSS) or {}
    rate = (last_row(job.folder, RATE) or {}).get(RATE)
    name, reason = _name(job, told, at_work)
    left = None
    if name == "running" and row and job.steps and rate:
        left = (job.steps - row["step"]) * row["tokens"] / row["step"] / rate
    return RunState(job, name, row.get("step", 0), row.get(LOSS), rate, left, int(told.get("restarts", 0)), reason)


def _name(job: GridJob, told: Mapping[str, object], at_work: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if is_done(job):
        return "done", ""
    if job.name in at_work:
        return at_work[job.name]
    code = told.get("exit_code")
    if isinstance(code, int) and code > 0 and code not in ASKED:
        return "failed", f"exit code {code}"
    return ("stopped" if told else "waiting"), ""
