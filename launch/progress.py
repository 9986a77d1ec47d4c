"""How a sweep stands: the time left, and a display that follows it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from launch.jobs import Job
from launch.metrics_tail import last_row
from launch.studies import Results, Study

if TYPE_CHECKING:
    from rich.table import Table

    from launch.local import LocalRunner


def step_and_loss(folder: Path) -> tuple[int, float] | None:
    """The last trained step of a run's metrics.jsonl and its loss; None before the first."""
    row = last_row(folder, "train/CrossEntropyLoss")
    return None if row is None else (row["step"], row["train/CrossEntropyLoss"])


class Clock:
    """Seconds that runs take, learned from those that are finished: by step of the same model, or of all."""

    def __init__(self, results: Results) -> None:
        self._of_model: dict[tuple[str, str], float] = {}
        for row in results.rows():
            seconds, steps = row.details.get("seconds"), row.step
            if seconds and steps:
                self._of_model[(row.data.get("name", ""), row.model)] = seconds / steps
        self._of_all = sum(self._of_model.values()) / len(self._of_model) if self._of_model else None

    def seconds(self, job: Job) -> float | None:
        """Of a whole run; None where nothing has finished yet."""
        rate = self._of_model.get((job.task.label, job.model.name), self._of_all)
        return None if rate is None else rate * job.steps


def time_left(studies: list[Study], results: Results, processes: int) -> float | None:
    """Seconds until a sweep is through, roughly; None where nothing has finished yet."""
    clock, total = Clock(results), 0.0
    for job in (job for study in studies for job in study.expected(results)):
        seconds = clock.seconds(job)
        if seconds is None:
            return None
        at = step_and_loss(job.folder)
        total += seconds * (1 - min(1.0, at[0] / job.steps) if at else 1.0)
    return total / processes


def shown_time(seconds: float | None) -> str:
    """As 1:02:03, or a dash."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Display:
    """A live table on a terminal; anywhere else a line for each event. All of it goes to standard error."""

    def __init__(self, runner: LocalRunner) -> None:
        from rich.console import Console

        self.runner = runner
        self.console = Console(stderr=True)
        self._live: Any = None
        self._left: float | None = None
        self._drawn = self._estimated = -60.0

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        stamp = time.strftime("%H:%M:%S")
        if self._live is not None:
            self.console.print(f"{stamp} {message}", markup=False, highlight=False)
        else:
            print(f"{stamp} {message}", file=sys.stderr, flush=True)

    def update(self) -> None:
        """Draw the table anew, on a terminal, once a second."""
        if self._live is not None and time.monotonic() - self._drawn >= 1:
            self._live.update(self._table(), refresh=True)
            self._drawn = time.monotonic()

    def _table(self) -> Table:
        from rich.table import Table

        runner = self.runner
        if time.monotonic() - self._estimated > 5:
            self._left = time_left(runner.studies, runner.results, runner.processes)
            self._estimated = time.monotonic()
        title = f"{runner.sweep.name}: {runner.results.runs()} runs done, {len(runner.failed)} failed, "
        table = Table(title=f"{title}about {shown_time(self._left)} left", title_justify="left")
        for heading in ("running", "step", "loss", "left"):
            table.add_column(heading, justify="left" if heading == "running" else "right", no_wrap=True)
        for one in runner.running:
            table.add_row(one.job.name, *shown_run(one.job, one.started))
        return table


def shown_run(job: Job, started: float | None) -> tuple[str, str, str]:
    """Step, loss and time left of a run, as text."""
    at = step_and_loss(job.folder)
    if at is None:
        return f"0/{job.steps}", "-", "-"
    step, loss = at
    left = (time.time() - started) / step * (job.steps - step) if started is not None and step else None
    return f"{step}/{job.steps}", f"{loss:.4f}", shown_time(left)
