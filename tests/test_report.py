"""The report: one file that names nothing outside, holds its pictures, and escapes what rows say."""

import base64
import math
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_rows import CATALOGUE, MODELS, grid_rows, law, model_rows
from result_rows import make_row

from olmoe_parrots import report
from olmoe_parrots.errors import InputError
from olmoe_parrots.results import append_rows

NASTY = '<script>alert("1")</script>&'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, texts of cells by table, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Page]]:
    """A report of evaluations and of a synthetic task."""
    rows = [replace(row, model=NASTY, commit="abcdef") for row in model_rows(32, 0)]
    rows += [row for row in model_rows(64, 4) if row.task != "arc"]
    rows += [make_row(width, 0, 10.0 * width, seed=seed) for width in (32, 64, 128) for seed in (0, 1)]
    text = report.make_report(rows, CATALOGUE, f"Title {NASTY}", ["results.jsonl: 31 rows, SHA-256 12ab"], ["line 3"])
    yield text, Page(text)


def test_it_is_one_file_that_names_nothing_outside(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert text.startswith("<!DOCTYPE html>")
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/svg+xml;base64,")), value
    assert not re.search(r"https?://|@import|url\(", text)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    targets = {attributes["href"] for tag, attributes in parsed.elements if tag == "a"}
    assert {f"#{name}" for name in ids} == targets
    assert len(ids) == len(set(ids)) == 3


def test_pictures_are_whole_and_have_words(page: tuple[str, Page]) -> None:
    images = [attributes for tag, attributes in page[1].elements if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Category averages against total parameters",
        "Category averages against active parameters",
        "Category averages against training FLOPs",
        "phone_book: capacity (entries)",
    ]
    for image in images:
        svg = base64.b64decode(str(image["src"]).partition(",")[2], validate=True)
        root = xml.etree.ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter())) > 100


def test_what_rows_say_is_escaped(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert "<script" not in text
    assert parsed.text.count(NASTY) >= 4
    assert NASTY in [row[0] for table in parsed.tables for row in table]


def test_tables_hold_the_values_and_say_what_is_missing(page: tuple[str, Page]) -> None:
    _, parsed = page
    common = next(table for table in parsed.tables if "PIQA" in table[0])
    assert common[0] == ["model", "total", "active", "tokens", "ARC", "PIQA", "SOCIAL", "average"]
    by_name = {row[0]: row[4:] for row in common[1:]}
    assert by_name[NASTY][0] == f"{law('arc', 32, 0):.3f} ± 0.020"
    assert by_name["moe_d64_e4"] == ["missing", "0.230 ± 0.020", "0.240 ± 0.020", "missing"]
    assert "no average for moe_d64_e4, since there is no value of ARC" in parsed.text
    fitted = next(table for table in parsed.tables if table[0][0] == "explained by")
    assert [row[:3] for row in fitted[1:]] == [
        ["log total parameters", "3", "1.000"],
        ["log active parameters", "3", "1.000"],
    ]
    capacities = next(table for table in parsed.tables if "seeds" in table[0])
    assert [(row[0], row[4]) for row in capacities[1:]] == [
        *(("dense_d32", "320"), ("dense_d64", "640"), ("dense_d128", "1,280")),
    ]


def test_gaps_have_a_table_for_each_benchmark() -> None:
    parsed = Page(report.make_report(grid_rows(), CATALOGUE, "Gaps", [], []))
    tables = [table for table in parsed.tables if "gap" in table[0]]
    assert len(tables) == 2
    assert "GSM: accuracy on training problems minus accuracy on test problems" in parsed.text
    for task, table in zip(("gsm", "math_problems"), tables, strict=True):
        by_model = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
        assert len(by_model) == len(MODELS)
        for name, width, experts in (("dense_d32", 32, 0), ("moe_d64_e16", 64, 16)):
            assert by_model[name]["test problems"] == f"{law(task, width, experts):.3f} ± 0.020"
            assert by_model[name]["gap"] == f"{0.15 if experts else 0.05:.3f} ± {math.hypot(0.02, 0.02):.3f}"


def test_provenance_is_printed(page: tuple[str, Page]) -> None:
    _, parsed = page
    origins = next(table for table in parsed.tables if table[0] == ["commit", "device", "versions", "rows"])
    assert ["abcdef", "cpu", "torch 2.13.0", "9"] in origins
    assert [int(row[-1]) for row in origins[1:]] == [9, 8, 6]
    runs = next(table for table in parsed.tables if table[0][1:2] == ["config"])
    assert [NASTY, "32-0", "mixture", "0", "0.001", "1,000", "runs/32-0/step1000", "9"] in runs
    assert "results.jsonl: 31 rows, SHA-256 12ab" in parsed.text


def test_the_command_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, output = tmp_path / "results.jsonl", tmp_path / "new" / "report.html"
    append_rows(results, [make_row(32, 0, 0.5, metric="chosen/right")])
    with results.open("a") as file:
        file.write('{"torn')
    assert report.main([str(results), "--output", str(output), "--title", "Paths"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{output}\n"
    assert "line 2: it ends in the middle" in told.err
    parsed = Page(output.read_text())
    assert "line 2: it ends in the middle" in parsed.text
    assert f"{results}: 1 rows, SHA-256 " in parsed.text
    written = output.read_bytes()
    with pytest.raises(InputError, match="it is there already"):
        report.main([str(results), "--output", str(output)])
    with pytest.raises(InputError, match="it is a results file that is read"):
        report.main([str(results), "--output", str(results), "--overwrite"])
    assert report.main([str(results), "--output", str(output), "--title", "Paths", "--overwrite"]) == 0
    assert output.read_bytes() == written, "equal rows give an equal report"


def test_results_without_anything_to_show_are_one_line(tmp_path: Path) -> None:
    append_rows(tmp_path / "r.jsonl", [replace(make_row(32, 0, 1.0), metric="digit_accuracy")])
    with pytest.raises(InputError, match="they hold neither evaluations nor"):
        report.main([str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()
