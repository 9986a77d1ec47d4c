"""What a sweep decides to run, against simulated models whose true capacities and best rates are known."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweep_maker import FIXED, SEARCHED, make_sweep, with_model, with_task

from launch.capacity import most_tries
from launch.jobs import Job
from launch.studies import CAPACITY, Results, Study, studies_of
from olmoe_parrots.results import Row


def _recall(job: Job, capacities: dict[str, float], best: float) -> float:
    """A monotone curve of recall over size, which is lower at every rate but the best."""
    capacity = capacities[job.model.name] * (1 + 0.1 * job.seed) * (1.0 if job.learning_rate == best else 0.4)
    return 1 / (1 + (job.size / capacity) ** 8 / 9)


def _row(job: Job, value: float) -> Row:
    return job.row(job.task.metric, value, step=job.steps, details={"training_loss": 1 - value})


def _simulate(study: Study, curve: Any, chance: random.Random | None = None) -> tuple[Results, list[Job]]:
    """Run a study to its end; with `chance` one of the pending runs at a time, from results read anew."""
    rows: list[Row] = []
    run: list[Job] = []
    while True:
        results = Results(rows)
        pending = study.pending(results)
        if not pending:
            return results, run
        for job in [chance.choice(pending)] if chance else pending:
            assert all(job != other for other in run), "nothing runs twice"
            run.append(job)
            rows.append(_row(job, curve(job)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.floats(20, 30_000), st.sampled_from([0.003, 0.01]), st.randoms())
def test_capacities_are_those_of_trying_every_size(
    tmp_path: Path, capacity: float, best: float, chance: random.Random
) -> None:
    sweep = make_sweep(tmp_path, models=with_model(SEARCHED, width=16, experts=0))
    (study,) = studies_of(sweep)
    capacities = {study.model.name: capacity}

    def curve(job: Job) -> float:
        return _recall(job, capacities, best)

    results, run = _simulate(study, curve)
    found = {row.seed: row for row in study.outcomes(results)}
    sizes, answers = study.task.sizes, {}
    rate = study.learning_rate(results)
    assert rate is not None
    for seed in study.task.seeds:
        answers[seed] = max((i for i, n in enumerate(sizes) if curve(study.job(n, rate, seed)) >= 0.9), default=-1)
        assert found[seed].value == sizes[max(0, answers[seed])]
        edges = {-1: "below", len(sizes) - 1: "above"}
        assert found[seed].details.get("bound") == edges.get(answers[seed])
        assert found[seed].learning_rate == rate
    # the promised number: the rates' runs, and each seed's search from its guess
    guess = sizes.index(study.first_size)
    promised = len(study.task.learning_rates) - 1 + most_tries(abs(answers[0] - guess))
    promised += sum(most_tries(abs(answers[seed] - max(0, answers[0]))) for seed in study.task.seeds[1:])
    assert len(run) <= promised
    # interrupted after each run, in any order: the same runs and the same answers
    again, run_again = _simulate(study, curve, chance)
    assert {job.name for job in run_again} == {job.name for job in run}
    values = [[(row.seed, row.value, row.details) for row in study.outcomes(r)] for r in (results, again)]
    assert values[0] == values[1]


def test_the_rate_that_recalls_most_at_the_guessed_size_is_chosen_and_recorded(tmp_path: Path) -> None:
    (study, *_) = studies_of(make_sweep(tmp_path))
    guess = study.task.guess(study.model)
    assert max(guess / study.first_size, study.first_size / guess) < 1.3**0.5 * 1.01
    assert guess == 0.5 * study.task.shape(study.model).total_params() / (4 * math.log2(10))
    results, _ = _simulate(study, lambda job: _recall(job, {study.model.name: guess}, 0.003))
    assert study.learning_rate(results) == 0.003
    row = study.outcomes(results)[0]
    assert row.metric == CAPACITY
    assert row.details["rates_at"] == study.first_size
    assert row.details["rates"]["0.003"] > row.details["rates"]["0.01"]
    assert row.details["tried"][str(int(row.value))] >= 0.9


def test_rates_that_recall_the_same_are_told_apart_by_the_loss(tmp_path: Path) -> None:
    (study, *_) = studies_of(make_sweep(tmp_path))
    rows = [_row(job, 1.0) for job in study.rate_jobs()]
    losses = [replace(r, details={"training_loss": x}) for r, x in zip(rows, (0.2, 0.1), strict=True)]
    assert study.learning_rate(Results(losses)) == 0.01
    assert study.learning_rate(Results(rows)) == 0.003, "and then the lower one is taken"
    assert study.learning_rate(Results(rows[:1])) is None


def test_other_seeds_wait_for_the_rate_and_train_at_no_other(tmp_path: Path) -> None:
    (study, *_) = studies_of(make_sweep(tmp_path, FIXED))
    assert {(job.seed, job.learning_rate) for job in study.pending(Results())} == {(0, 0.003), (0, 0.01)}
    rows = [_row(job, 0.3 if job.learning_rate == 0.01 else 0.2) for job in study.rate_jobs()]
    (pending,) = study.pending(Results(rows))
    assert (pending.seed, pending.learning_rate) == (1, 0.01)
    results, run = _simulate(study, lambda job: 0.3 if job.learning_rate == 0.01 else 0.2)
    assert len(run) == 3
    chosen = study.outcomes(results)
    assert [(row.metric, row.value, row.seed) for row in chosen] == [("chosen/right", 0.3, 0), ("chosen/right", 0.3, 1)]


def test_what_is_expected_is_what_comes(tmp_path: Path) -> None:
    (study, *_) = studies_of(make_sweep(tmp_path, FIXED))
    assert len(study.expected(Results())) == 3
    results, _ = _simulate(study, lambda job: 0.3)
    assert study.expected(results) == []
    (study, *_) = studies_of(make_sweep(tmp_path))
    assert len(study.expected(Results())) >= 8


def test_a_changed_sweep_has_other_runs_and_the_same_sweep_elsewhere_has_not(tmp_path: Path) -> None:
    first, other = (studies_of(make_sweep(tmp_path / name))[0].rate_jobs()[0] for name in "ab")
    assert first.digest == other.digest
    longer = make_sweep(tmp_path, tasks=with_task(SEARCHED, training={"epochs": 101, "batch_size": 32}))
    changed = studies_of(longer)[0].rate_jobs()[0]
    assert changed.name == first.name
    assert changed.digest != first.digest
    assert changed.folder.name != first.folder.name
