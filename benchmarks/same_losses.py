"""Whether a change keeps the losses: small models trained by the code before and after it, compared step by step.

    python benchmarks/same_losses.py BEFORE [AFTER]
    python benchmarks/same_losses.py --series BEFORE

BEFORE and AFTER are git revisions; AFTER is the working tree if not given. Each revision's code trains the same models
on the same shards from the same seed, in fp32 and in bf16 (autocast). Compared are cross-entropy, load-balancing loss,
router z-loss and gradient norm of every step; the exit code is 1 where one differs more than its tolerance. With
--series each commit after BEFORE that touches the computation is compared with the one before it, and the last one with
BEFORE; a last line says what rounding alone does: the newest code with one thread instead of two. Rows go to
same_losses.jsonl beside this file, and the report to same_losses.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rounds import append_rows, write_report
from small_runs import CASES, SEQUENCE, SEQUENCES, VOCABULARY, WORKING_TREE, Losses, git, losses_of, write_shards

COMPUTATION = ["moe", "loss.py", "optimizer.py", "model.py", "trainer.py"]
"""In the package: what a commit of the series touches."""

TOLERANCES = {
    "fp32": {"cross-entropy": 1e-6, "load balancing": 1e-6, "z-loss": 1e-6, "gradient norm": 2e-6},
    "amp_bf16": {"cross-entropy": 2e-4, "load balancing": 4e-3, "z-loss": 1e-3, "gradient norm": 1.6e-2},
}
"""Largest relative difference that passes. Sums in another order cannot be equal to the last bit. In fp32 a loss may
differ by eight units of the last place (2^-23), and the norm by twice that. In bf16, whose last place is 2^-8, the
cross-entropy may by a twentieth of that, being a mean over a thousand positions; the load-balancing loss by all of it,
as one token that goes to another expert changes it; the norm by four times that."""


class Comparison(NamedTuple):
    """Of one metric's values over two runs."""

    largest: float
    """The largest relative difference."""
    first: int | None
    """The first step at which it is not equal to the last bit."""


def compare(before: list[float], after: list[float]) -> Comparison:
    """Values of as many steps each, the first of step 1."""
    pairs = list(zip(before, after, strict=True))
    found = [abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs]
    return Comparison(max(found), next((step for step, one in enumerate(found, start=1) if one), None))


class Row(NamedTuple):
    """One comparison: what it is called, of which revisions, and what was found by case, precision and metric."""

    name: str
    before: str
    after: str
    found: dict[tuple[str, str], dict[str, Comparison]]

    @classmethod
    def of(cls, name: str, before: tuple[str, Losses], after: tuple[str, Losses]) -> Row:
        found = {
            key: {name: compare(values, after[1][key][name]) for name, values in losses.items()}
            for key, losses in before[1].items()
        }
        return cls(name, before[0], after[0], found)

    def too_large(self) -> list[str]:
        """What differs more than its tolerance, in words."""
        return [
            f"{self.name}: {case}, {precision}: {metric} differs by {one.largest:.1e}, more than {limit:.0e}"
            for (case, precision), metrics in self.found.items()
            for metric, one in metrics.items()
            if one.largest > (limit := TOLERANCES[precision][metric])
        ]

    def as_json(self) -> list[dict[str, Any]]:
        about = {"name": self.name, "before": self.before, "after": self.after}
        return [
            {**about, "case": case, "precision": precision, **{name: one._asdict() for name, one in metrics.items()}}
            for (case, precision), metrics in self.found.items()
        ]


def cell(metrics: dict[str, Comparison]) -> str:
    """``=``, or the largest difference of a loss and of the gradient norm, and the first step that has one."""
    steps = [one.first for one in metrics.values() if one.first is not None]
    if not steps:
        return "="
    losses = max(one.largest for name, one in metrics.items() if name != "gradient norm")
    return f"{losses:.0e}, {metrics['gradient norm'].largest:.0e}; {min(steps)}"


def table(rows: list[Row], precision: str) -> str:
    cases = [case for case, its in rows[0].found if its == precision]
    lines = ["| | " + " | ".join(cases) + " |", "|---|" + "---|" * len(cases)]
    for row in rows:
        lines.append(f"| {row.name} | " + " | ".join(cell(row.found[case, precision]) for case in cases) + " |")
    return "\n".join(lines) + "\n"


def report_of(rows: list[Row], steps: int, threads: int) -> str:
    body = f"""# Losses before and after each change

Four layers, d = 64, {VOCABULARY} words, {SEQUENCES} sequences of {SEQUENCE} tokens a step, {steps} steps from one seed,
on {threads} CPU thread{"s" * (threads > 1)}; fp32 and bf16. `=`: cross-entropy, load-balancing loss, z-loss and
gradient norm of all steps are equal to the last bit. Else: the largest relative difference of a loss, and of the
gradient norm; the first step at which anything differs.
"""
    for precision, limits in TOLERANCES.items():
        said = ", ".join(f"{name} {limit:.0e}" for name, limit in limits.items())
        body += f"\n## {precision}\n\nTolerances: {said}.\n\n{table(rows, precision)}"
    failures = [failure for row in rows for failure in row.too_large()]
    return body + "\n" + ("\n".join(f"- {one}" for one in failures) or "All within the tolerances.") + "\n"


def series(first: str) -> list[str]:
    """`first` and the commits after it that touch the computation, as commit hashes."""
    paths = [f"olmoe_parrots/{name}" for name in COMPUTATION]
    return [resolve(first), *git("rev-list", "--reverse", f"{first}..HEAD", "--", *paths).decode().split()]


def resolve(revision: str) -> str:
    if revision == WORKING_TREE:
        return revision
    try:
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError:
        raise SystemExit(f"{revision}: no such revision") from None


def named(revision: str) -> str:
    if revision == WORKING_TREE:
        return revision
    return git("show", "-s", "--format=%h %s", revision).decode().strip().replace("|", "\\|")


def measure(options: argparse.Namespace) -> list[Row]:
    revisions = series(options.before) if options.series else [resolve(options.before), resolve(options.after)]
    jobs = [(revision, options.threads) for revision in revisions]
    other = 1 if options.threads > 1 else 2
    if options.series:
        jobs.append((revisions[-1], other))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "data")
        losses = losses_of(jobs, folder, options.cases, options.steps)
    runs = list(zip([revision for revision, _ in jobs], losses, strict=True))
    rows = [Row.of(named(runs[i][0]), runs[i - 1], runs[i]) for i in range(1, len(revisions))]
    if options.series:
        rows.append(Row.of("all of them", runs[0], runs[-2]))
        rows.append(Row.of(f"no change, {other} thread{'s' * (other > 1)}", runs[-2], runs[-1]))
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", metavar="BEFORE", help="a git revision")
    parser.add_argument("after", metavar="AFTER", nargs="?", default=WORKING_TREE)
    parser.add_argument("--series", action="store_true", help="each commit after BEFORE that touches the computation")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    options = parser.parse_args(argv)
    if options.series and options.after != WORKING_TREE:
        parser.error("--series goes up to HEAD and takes no AFTER")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    rows = measure(options)
    script = str(options.output / Path(__file__).name)
    append_rows(script, [one for row in rows for one in row.as_json()])
    body = report_of(rows, options.steps, options.threads)
    command = f"python benchmarks/same_losses.py {' '.join(sys.argv[1:] if argv is None else argv)}"
    print(body)
    print(write_report(script, command, body, "fp32 and bf16"))
    return 1 if any(row.too_large() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
