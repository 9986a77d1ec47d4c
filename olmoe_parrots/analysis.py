"""What a sweep's rows come to: ``python -m olmoe_parrots.analysis RESULTS.jsonl`` prints Markdown tables.

For each task: every model's mean and confidence interval over seeds, and how well total and active parameters explain
it, as Spearman's rank correlation and as R² of a straight line. Capacities and parameters enter as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArgumentParser, InputError, report_and_exit
from .results import Row, read_rows

CAPACITY = "capacity"
MEASURES = {("phone_book", CAPACITY): "entries", ("shortest_path", "chosen/right"): "share right"}
"""What is drawn and analysed, by task and metric, and its unit."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """One model's values over its seeds."""

    model: str
    total_params: int
    active_params: int
    architecture: dict[str, Any]
    values: tuple[float, ...]
    """One a seed."""
    log: bool
    """Whether mean and interval are those of the logarithm, as for capacities."""
    bound: str | None = None
    """"above" (or "below") where a seed's capacity lies beyond the largest (or smallest) size that was tried."""

    @property
    def mean(self) -> float:
        """Over the seeds; the geometric mean of capacities."""
        return self._interval()[0]

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95% confidence interval of the mean over seeds; the mean twice where there is one seed.

        A share's ends at 0 and at 1, beyond which Student's goes where three seeds differ much.
        """
        return self._interval()[1:]

    def _interval(self) -> tuple[float, float, float]:
        values = [math.log(value) for value in self.values] if self.log else list(self.values)
        low, mean, high = mean_interval(values)
        if self.log:
            return math.exp(mean), math.exp(low), math.exp(high)
        return mean, max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Measure:
    """All models' points of one task with one choice of options."""

    name: str
    task: str
    metric: str
    points: tuple[Point, ...]
    queries: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return MEASURES[self.task, self.metric]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of Student's 95% confidence interval of the mean; all the mean for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    from scipy.stats import t

    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * math.sqrt(variance / len(values))
    return mean - reach, mean, mean + reach


def measures(rows: Iterable[Row]) -> list[Measure]:
    """What the rows hold of MEASURES, by name of the data. Of a model and seed that come twice the last row counts."""
    found: dict[tuple[str, str, str], dict[tuple[str, int | None], Row]] = {}
    for row in rows:
        if (row.task, row.metric) in MEASURES:
            key = str(row.data.get("name", row.task)), row.task, row.metric
            found.setdefault(key, {})[row.model, row.seed] = row
    return [_measure(*key, list(chosen.values())) for key, chosen in found.items()]


def _measure(name: str, task: str, metric: str, rows: list[Row]) -> Measure:
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    points = [_point(model, of_model, metric == CAPACITY) for model, of_model in by_model.items()]
    return Measure(name, task, metric, tuple(sorted(points, key=_order)), rows[-1].examples, rows[-1].data)


def _order(point: Point) -> tuple[int, int, str]:
    return point.architecture.get("width", 0), point.total_params, point.model


def _point(model: str, rows: list[Row], log: bool) -> Point:
    last = rows[-1]
    bound = next((str(row.details["bound"]) for row in rows if row.details.get("bound")), None)
    values = tuple(row.value for row in rows)
    return Point(model, last.total_params, last.active_params, last.architecture, values, log, bound)


@dataclass(frozen=True)
class Fit:
    """How well a count of parameters explains a measure, over `models` models."""

    explained_by: str
    models: int
    spearman: float
    r_squared: float


def fits(measure: Measure) -> list[Fit]:
    """By total and by active parameters. Models with a bound in place of a value are left out; needs three others."""
    from scipy.stats import pearsonr, spearmanr

    points = [point for point in measure.points if point.bound is None]
    if len(points) < 3 or len({point.mean for point in points}) < 2:
        return []
    values = [math.log(point.mean) if point.log else point.mean for point in points]
    found = []
    for name in ("total", "active"):
        counts = [math.log(getattr(point, f"{name}_params")) for point in points]
        if len(set(counts)) > 1:
            rank, line = spearmanr(counts, values).statistic, pearsonr(counts, values).statistic
            found.append(Fit(name, len(points), float(rank), float(line) ** 2))
    return found


def markdown(measure: Measure) -> str:
    """The measure's tables."""
    what = "log capacity" if measure.metric == CAPACITY else measure.unit
    lines = [f"### {measure.name}: {measure.metric.split('/')[-1]} ({measure.unit})", ""]
    lines += [f"| {what} explained by | models | Spearman's rank correlation | R² of a line |", "|---|---:|---:|---:|"]
    found = fits(measure)
    lines += [f"| log {f.explained_by} parameters | {f.models} | {f.spearman:.3f} | {f.r_squared:.3f} |" for f in found]
    if not found:
        lines[2:] = ["Fewer than three models have different values: nothing is fitted."]
    left_out = [point for point in measure.points if point.bound]
    if left_out:
        names = ", ".join(f"{point.model} ({point.bound})" for point in left_out)
        lines += ["", f"Left out, since they lie beyond the sizes tried: {names}."]
    lines += ["", "| model | total | active | seeds | mean | 95% interval |", "|---|---:|---:|---:|---:|---:|"]
    for p in measure.points:
        mean, low, high = (f"{value:,.0f}" if p.log else f"{value:.3f}" for value in (p.mean, *p.interval))
        interval = f"{low} to {high}" if len(p.values) > 1 else "-"
        lines.append(
            f"| {p.model} | {p.total_params:,} | {p.active_params:,} | {len(p.values)} | {mean} | {interval} |"
        )
    return "\n".join(lines) + "\n"


def load_measures(paths: Iterable[Path]) -> list[Measure]:
    """The measures of results files, taken together.

    Raises InputError where a file is missing, or where there is nothing to draw in any.
    """
    names = list(paths)
    found = measures(row for path in names for row in read_rows(path))
    if not found:
        known = ", ".join(f"{metric} of {task}" for task, metric in MEASURES)
        what = f"there is no {known} in it"
        raise InputError(", ".join(map(str, names)), what, "run a sweep to its end: python -m launch local SWEEP.yaml")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns 0. Raises InputError for files without results."""
    parser = ArgumentParser(prog="python -m olmoe_parrots.analysis", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    options = parser.parse_args(arguments)
    print("\n".join(markdown(measure) for measure in load_measures(options.results)), end="")
    return 0


if __name__ == "__main__":
    report_and_exit(main)
