"""What a sweep still has to run, decided from result rows alone: nothing else is remembered between two starts.

A study is one model on one task. Its learning rate is chosen first, by the runs of its first seed at one size; the
other seeds then train at that rate only. For a capacity, sizes are searched for each seed as `capacity` says, the
first seed's from the guess of the sweep, the others' from the first one's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.capacity import bounds, nearest_rung, next_rung
from launch.jobs import Job
from launch.sweep import Model, Sweep, TaskSpec
from olmoe_parrots.results import Row

CAPACITY = "capacity"
CHOSEN = "chosen/"
"""Before the deciding metric's name: the value at the learning rate that was chosen for the model."""

_FIRST_TRIES, _LATER_TRIES = 4, 3
"""Runs that the search for a capacity takes as a rule, for a study's first seed and for the others."""


class Results:
    """Rows of one sweep, by the run that they come from."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self._digests: dict[str, str] = {}  # of jobs by name: working one out anew takes a while
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows in; the first of a run and metric counts."""
        for row in rows:
            self._rows.setdefault((row.config_digest, row.metric), row)

    def of(self, job: Job, metric: str | None = None) -> Row | None:
        """The row of a run's deciding metric, or of another one; None where it is missing."""
        if (digest := self._digests.get(job.name)) is None:
            digest = self._digests[job.name] = job.digest
        return self._rows.get((digest, metric or job.task.metric))

    def rows(self) -> list[Row]:
        """All of them."""
        return list(self._rows.values())

    def runs(self) -> int:
        """How many runs have results."""
        return len({row.config_digest for row in self._rows.values() if row.step is not None})

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """Those rows that are not there yet."""
        return [row for row in rows if (row.config_digest, row.metric) not in self._rows]


@dataclass(frozen=True)
class Study:
    """A model on a task: which runs it wants next, and what they come to."""

    sweep: Sweep
    task: TaskSpec
    model: Model

    def job(self, size: int, learning_rate: float, seed: int) -> Job:
        return Job(self.sweep, self.task, self.model, size, learning_rate, seed)

    @property
    def first_size(self) -> int:
        """The size at which the learning rate is chosen: the guessed capacity, or the first size named."""
        if self.task.capacity is None:
            return self.task.sizes[0]
        return self.task.sizes[nearest_rung(self.task.sizes, self.task.guess(self.model))]

    def rate_jobs(self) -> list[Job]:
        """The runs that the learning rate is chosen by."""
        return [self.job(self.first_size, rate, self.task.seeds[0]) for rate in self.task.learning_rates]

    def learning_rate(self, results: Results) -> float | None:
        """The chosen rate: of the best deciding metric, then the lowest training loss, then the lowest rate.

        None until every run that decides has its result.
        """
        jobs = self.rate_jobs()
        if len(jobs) == 1:
            return jobs[0].learning_rate
        found = [(job, results.of(job)) for job in jobs]
        ranked = [(-row.value, _loss(row), job.learning_rate) for job, row in found if row is not None]
        return min(ranked)[2] if len(ranked) == len(jobs) else None

    def pending(self, results: Results) -> list[Job]:
        """The runs that can start now: those wanted next that have no results."""
        rate = self.learning_rate(results)
        if rate is None:
            return _without_results(self.rate_jobs(), results)
        if self.task.capacity is None:
            jobs = [self.job(size, rate, seed) for seed in self.task.seeds for size in self.task.sizes]
            return _without_results([*self.rate_jobs(), *jobs], results)
        return self._next_of_search(rate, results)

    def _next_of_search(self, rate: float, results: Results) -> list[Job]:
        wanted = []
        for seed in self.task.seeds:
            guess = self._guess(rate, seed, results)
            if guess is None:
                break  # the other seeds begin at the first one's answer
            mastered = self.mastered(rate, seed, results)
            if (rung := next_rung(len(self.task.sizes), guess, mastered)) is not None:
                wanted.append(self.job(self.task.sizes[rung], rate, seed))
        return wanted

    def _guess(self, rate: float, seed: int, results: Results) -> int | None:
        guess = self.task.sizes.index(self.first_size)
        if seed == self.task.seeds[0]:
            return guess
        mastered, rungs = self.mastered(rate, self.task.seeds[0], results), len(self.task.sizes)
        if next_rung(rungs, guess, mastered) is not None:
            return None
        return max(0, bounds(rungs, mastered)[0])

    def mastered(self, rate: float, seed: int, results: Results) -> dict[int, bool]:
        """Which rungs of the ladder a seed's runs have shown to be mastered, or not."""
        return {rung: row.value >= self._recall() for rung, row in self._tried(rate, seed, results).items()}

    def _recall(self) -> float:
        assert self.task.capacity is not None
        return self.task.capacity.recall

    def _tried(self, rate: float, seed: int, results: Results) -> dict[int, Row]:
        found = ((rung, results.of(self.job(size, rate, seed))) for rung, size in enumerate(self.task.sizes))
        return {rung: row for rung, row in found if row is not None}

    def expected(self, results: Results) -> list[Job]:
        """The runs that are probably still to come, pending ones among them, for an estimate of the time left."""
        rate = self.learning_rate(results)
        jobs = _without_results(self.rate_jobs(), results) if rate is None else []
        likely = self.task.learning_rates[0] if rate is None else rate
        if self.task.capacity is None:
            runs = [self.job(size, likely, seed) for seed in self.task.seeds for size in self.task.sizes]
            return _without_results([*jobs, *runs], results)
        for seed in self.task.seeds:
            guess, tried = self._guess(likely, seed, results), self._tried(likely, seed, results)
            mastered = self.mastered(likely, seed, results)
            if guess is not None and next_rung(len(self.task.sizes), guess, mastered) is None:
                continue
            left = (_FIRST_TRIES if seed == self.task.seeds[0] else _LATER_TRIES) - len(tried)
            size = self.first_size if guess is None else self.task.sizes[guess]
            jobs += [self.job(size, likely, seed)] * max(1, left)
        return jobs

    def outcomes(self, results: Results) -> list[Row]:
        """The rows that the study comes to so far: a capacity a seed, or the chosen rate's values."""
        rate = self.learning_rate(results)
        if rate is None:
            return []
        rows = []
        for seed in self.task.seeds:
            if self.task.capacity is not None:
                if (row := self._capacity_row(rate, seed, results)) is not None:
                    rows.append(row)
                continue
            for size in self.task.sizes:
                job = self.job(size, rate, seed)
                if (measured := results.of(job)) is not None:
                    rows.append(
                        _summed_up(job, measured, CHOSEN + self.task.metric, measured.value, self._rates(results))
                    )
        return rows

    def _capacity_row(self, rate: float, seed: int, results: Results) -> Row | None:
        tried, sizes = self._tried(rate, seed, results), self.task.sizes
        mastered = {rung: row.value >= self._recall() for rung, row in tried.items()}
        guess = self._guess(rate, seed, results)
        if guess is None or next_rung(len(sizes), guess, mastered) is not None:
            return None
        low, high = bounds(len(sizes), mastered)
        bound = {"bound": "below"} if low < 0 else {"bound": "above"} if high == len(sizes) else {}
        details = {
            "recall": self._recall(),
            "tried": {str(sizes[rung]): tried[rung].value for rung in sorted(tried)},
            **self._rates(results),
            **bound,
        }
        job = self.job(sizes[max(0, low)], rate, seed)
        return _summed_up(job, tried[max(0, low)], CAPACITY, float(job.size), details)

    def _rates(self, results: Results) -> dict[str, Any]:
        """What the learning rate was chosen by."""
        rows: Mapping[float, Row | None] = {job.learning_rate: results.of(job) for job in self.rate_jobs()}
        return {"rates_at": self.first_size, "rates": {f"{k:g}": row.value for k, row in rows.items() if row}}


def _summed_up(job: Job, measured: Row, metric: str, value: float, details: dict[str, Any]) -> Row:
    """A row that sums up several runs, under the name of the one that it is the value of."""
    error = measured.standard_error if metric.startswith(CHOSEN) else None
    return job.row(
        metric,
        value,
        standard_error=error,
        examples=measured.examples,
        details={"sweep": job.sweep.name, **details},
        versions=measured.versions,
        commit=measured.commit,
        device=measured.device,
    )


def _loss(row: Row) -> float:
    loss = row.details.get("training_loss")
    return float(loss) if loss is not None else float("inf")


def _without_results(jobs: Iterable[Job], results: Results) -> list[Job]:
    unique = {job.name: job for job in jobs}
    return [job for job in unique.values() if results.of(job) is None]


def studies_of(sweep: Sweep) -> list[Study]:
    """Every study of a sweep, in the file's order."""
    return [Study(sweep, task, model) for task in sweep.tasks for model in task.models]
