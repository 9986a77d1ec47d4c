"""Runs a sweep on this machine, one process a core, until nothing is left to run or to decide."""

from __future__ import annotations

import time
from pathlib import Path

from launch.jobs import Job
from launch.processes import LOG, Lock, Running, interrupted, last_lines, remove_checkpoints, start, stop_all
from launch.progress import Display
from launch.studies import Results, studies_of
from launch.sweep import Sweep
from olmoe_parrots.errors import InputError
from olmoe_parrots.results import append_rows, read_rows
from olmoe_parrots.stopping import REQUEUE

_POLL = 0.2


class LocalRunner:
    """The state of one start of a sweep. What lies in `results.jsonl` is done; everything else follows from it."""

    def __init__(self, sweep: Sweep, processes: int) -> None:
        self.sweep, self.processes = sweep, processes
        self.studies = studies_of(sweep)
        self.results = Results()
        self.running: list[Running] = []
        self.failed: dict[str, tuple[int, Path]] = {}
        """Exit codes and folders of runs that failed in this start, by name; they are not tried again in it."""
        self.done = 0

    def run(self) -> int:
        """Run what is missing; returns 0, or 1 if a run failed. Raises InputError, or KeyboardInterrupt on a signal."""
        lock = Lock(self.sweep.output)
        with interrupted():
            try:
                with Display(self) as display:
                    self._take_in(display)
                    self._loop(lock, display)
                    return self._told(display)
            finally:
                stop_all(self.running)
                lock.release()

    def _take_in(self, display: Display) -> None:
        if self.sweep.results.exists():
            self.results.add(read_rows(self.sweep.results, display.say))
        self._append_outcomes()

    def _loop(self, lock: Lock, display: Display) -> None:
        wanted = self.wanted()
        while wanted or self.running:
            while wanted and len(self.running) < self.processes:
                job = wanted.pop(0)
                if not self._take_finished(job):
                    self.running.append(start(job, lock))
                    display.say(f"started {job.name}")
                    continue
                display.say(f"found finished {job.name}")
                wanted = self.wanted()
            display.update()
            time.sleep(_POLL)
            ended = [one for one in self.running if one.has_ended()]
            for one in ended:
                self._end(one, display)
            if ended:
                wanted = self.wanted()

    def wanted(self) -> list[Job]:
        """Runs that can start now, the longest first: a long one that is left to the end keeps one core busy alone."""
        busy = {one.job.name for one in self.running} | set(self.failed)
        jobs = [job for study in self.studies for job in study.pending(self.results) if job.name not in busy]
        return sorted(jobs, key=lambda job: -job.flops)

    def _take_finished(self, job: Job, seconds: float | None = None) -> bool:
        """Put a run's rows into the results if its last evaluation is there; so is a run killed just after it."""
        rows = job.rows(seconds)
        if rows is None:
            return False
        rows = self.results.missing(rows)
        append_rows(self.sweep.results, rows)
        self.results.add(rows)
        self._append_outcomes()
        if not job.task.training.keep_checkpoints:
            remove_checkpoints(job.folder)
        return True

    def _append_outcomes(self) -> None:
        for study in self.studies:
            rows = self.results.missing(study.outcomes(self.results))
            append_rows(self.sweep.results, rows)
            self.results.add(rows)

    def _end(self, one: Running, display: Display) -> None:
        code, seconds = one.finish(), round(time.time() - one.started, 1)
        self.running.remove(one)
        if code == REQUEUE:
            display.say(f"stopped {one.job.name}, which was asked to; it goes on")
            return
        problem = f"exit code {code}"
        try:
            if code == 0 and self._take_finished(one.job, seconds):
                self.done += 1
                display.say(f"finished {one.job.name}: {self._value(one.job)} after {seconds:.0f} s")
                return
        except InputError as error:
            problem = str(error)
        self.failed[one.job.name] = code, one.job.folder
        display.say("\n  ".join([f"failed {one.job.name}, {problem}; its log ends:", *last_lines(one.job.folder)]))

    def _value(self, job: Job) -> str:
        row = self.results.of(job)
        return f"{job.task.metric} {row.value:.3f}" if row else "no result"

    def _told(self, display: Display) -> int:
        undecided = sum(bool(study.pending(self.results)) for study in self.studies)
        display.say(f"{self.done} runs trained, {len(self.failed)} failed; results are in {self.sweep.results}")
        for name, (code, folder) in self.failed.items():
            display.say(f"failed: {name}, exit code {code}; its log is {folder / LOG}")
        if undecided:
            display.say(f"{undecided} of {len(self.studies)} studies wait for what failed; start again to try again")
        return 1 if self.failed else 0
