"""One HTML file of a sweep's tables and figures: ``python -m olmoe_parrots.report RESULTS.jsonl --output report.html``.

It holds its pictures and styles itself, has no scripts and names nothing outside, so that it reads the same offline.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArgumentParser, InputError, report_and_exit
from .results import Row, read_rows
from .results_command import check_output, write_text

CAPTIONS = {
    "averages_by_total_params": "Category averages against total parameters",
    "averages_by_active_params": "Category averages against active parameters",
    "averages_by_training_flops": "Category averages against training FLOPs",
    "averages_by_perplexity": "Category averages against validation perplexity",
    "generalization_gap": "Generalization gap: accuracy on training problems minus test accuracy",
}


@dataclass(frozen=True)
class HtmlTable:
    """A table as texts: the first column is a row's name, the others are numbers."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An SVG picture as a data URI."""

    caption: str
    data: str


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    tables: Sequence[HtmlTable]
    pictures: Sequence[Picture]
    notes: Sequence[str]


def make_report(rows: Iterable[Row], catalogue: Any, title: str, sources: Sequence[str], notes: Sequence[str]) -> str:
    """The report as HTML.

    Args:
        rows: of all results files.
        catalogue: the ``columns.Catalogue`` of evaluation tasks.
        title: of the page.
        sources: a line on each results file.
        notes: what else the reader must know, such as lines that could not be read.

    Raises InputError where the rows hold nothing to show.
    """
    from jinja2 import Environment

    from .report_page import PAGE

    known = list(rows)
    with tempfile.TemporaryDirectory() as folder:
        sections = [*_evaluations(known, catalogue, Path(folder)), *_gaps(known, catalogue)]
        sections += _synthetic(known, Path(folder))
    if not sections:
        what = "they hold neither evaluations nor what a sweep of a synthetic task comes to"
        raise InputError("results", what, "run a sweep to its end, or evaluate checkpoints")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return page.render(
        title=title, sections=sections, sources=sources, notes=notes, runs=_runs(known), origins=_origins(known)
    )


def _evaluations(rows: Sequence[Row], catalogue: Any, folder: Path) -> list[Section]:
    from .columns import evaluations
    from .evaluation_figures import draw_evaluations
    from .table_formats import block_rows
    from .tables import build_table

    if not evaluations(rows):
        return []
    table = build_table(rows, catalogue)
    tables = []
    for block in table.blocks():
        heading, *lines = block_rows(table, block)
        tables.append(HtmlTable(block.title, heading, lines))
    paths, lacking = draw_evaluations(rows, catalogue, folder, ["svg"])
    pictures = [_picture(path, CAPTIONS) for path in paths]
    notes = [*table.notes, *(line for line in lacking if line not in table.notes)]
    return [Section("Evaluations", tables, pictures, notes)]


def _gaps(rows: Sequence[Row], catalogue: Any) -> list[Section]:
    """Training minus test accuracy by benchmark, where training problems were measured."""
    from .columns import evaluations
    from .gaps import build_gap_table, gaps
    from .table_formats import block_texts

    if not gaps(evaluations(rows), catalogue):
        return []
    table = build_gap_table(rows, catalogue)
    tables = [HtmlTable(title, heading, lines) for title, (heading, *lines) in block_texts(table)]
    return [Section("Generalization gap", tables, [], table.notes)]


def _synthetic(rows: Sequence[Row], folder: Path) -> list[Section]:
    """A section for each synthetic task: who is best explained by what, and each model's values."""
    from .analysis import CAPACITY, fits, measures
    from .figures import draw

    sections = []
    for measure in measures(rows):
        name = f"{measure.name}: {measure.metric.split('/')[-1]} ({measure.unit})"
        notes = []
        explained = [
            [f"log {f.explained_by} parameters", str(f.models), *_decimals(f.spearman, f.r_squared)]
            for f in fits(measure)
        ]
        what = "log capacity" if measure.metric == CAPACITY else measure.unit
        tables = [HtmlTable(f"What explains {what}", ["explained by", "models", "Spearman", "R² of a line"], explained)]
        if not explained:
            tables, notes = [], ["Fewer than three models have different values: nothing is fitted."]
        if left_out := [f"{point.model} ({point.bound})" for point in measure.points if point.bound]:
            notes.append(f"Left out of fits, since they lie beyond the sizes tried: {', '.join(left_out)}.")
        lines = []
        for p in measure.points:
            mean, low, high = (f"{value:,.0f}" if p.log else f"{value:.3f}" for value in (p.mean, *p.interval))
            interval = f"{low} to {high}" if len(p.values) > 1 else "-"
            lines.append([p.model, f"{p.total_params:,}", f"{p.active_params:,}", str(len(p.values)), mean, interval])
        heading = ["model", "total", "active", "seeds", "mean", "95% interval"]
        tables.append(HtmlTable("Models", heading, lines))
        pictures = [_picture(path, {path.stem: name}) for path in draw(measure, folder, ["svg"])]
        sections.append(Section(name, tables, pictures, notes))
    return sections


def _decimals(*numbers: float) -> list[str]:
    return [f"{number:.3f}" for number in numbers]


def _picture(path: Path, captions: dict[str, str]) -> Picture:
    stem = next((stem for stem in captions if path.stem.startswith(stem)), "")
    rest = path.stem[len(stem) :].strip("_")
    caption = f"{captions.get(stem, path.stem)}{f', {rest}' if stem and rest else ''}"
    return Picture(caption, f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}")


def _runs(rows: Iterable[Row]) -> HtmlTable:
    """The runs and checkpoints that were measured."""
    found: dict[tuple[str, ...], int] = {}
    for row in rows:
        rate = "" if row.learning_rate is None else f"{row.learning_rate:g}"
        data, step = str(row.data.get("name") or ""), "" if row.step is None else f"{row.step:,}"
        seed = "" if row.seed is None else str(row.seed)
        key = (row.model, row.config_digest, data, seed, rate, step, row.checkpoint or "")
        found[key] = found.get(key, 0) + 1
    heading = ["model", "config", "data", "seed", "learning rate", "step", "checkpoint", "rows"]
    return HtmlTable("Runs", heading, [[*key, str(count)] for key, count in found.items()])


def _origins(rows: Iterable[Row]) -> HtmlTable:
    """By which code and on what the rows came about."""
    found: dict[tuple[str, ...], int] = {}
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
        key = (row.commit or "unknown", row.device or "unknown", versions or "unknown")
        found[key] = found.get(key, 0) + 1
    heading = ["commit", "device", "versions", "rows"]
    return HtmlTable("Code and machines", heading, [[*key, str(count)] for key, count in found.items()])


def _source(path: Path, count: int) -> str:
    return f"{path}: {count:,} rows, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns 0. Raises InputError for unreadable results and an output that may not be replaced."""
    parser = ArgumentParser(prog="python -m olmoe_parrots.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="where the report goes")
    parser.add_argument("--title", default="Results", help="of the page")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    options = parser.parse_args(arguments)
    check_output(options.output, options.results, overwrite=options.overwrite, option="--output")
    rows, sources, notes = [], [], list[str]()
    for path in options.results:
        of_file = read_rows(path, notes.append)
        rows += of_file
        sources.append(_source(path, len(of_file)))
    for note in notes:
        print(note, file=sys.stderr)
    from .columns import Catalogue

    write_text(options.output, make_report(rows, Catalogue.load(), options.title, sources, notes))
    print(options.output)
    return 0


if __name__ == "__main__":
    report_and_exit(main)
