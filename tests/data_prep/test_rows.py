"""Reading the rows of one file: what is counted, what is refused, and that nothing is lost."""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.documents import Skipped
from data_prep.mixture import Source
from data_prep.rows import read_rows
from data_prep.sources import find_units, read_unit
from olmoe_parrots.errors import InputError

TEXT = Source("web", dataset="someone/web", columns=("text",))
FOLDER = {"kind": "folder", "path": "web"}


def _read(folder: Path, source: Source = TEXT) -> tuple[list[str], dict]:
    skipped = Skipped()
    units = find_units(source, str(folder), 0, None)
    return [d.text for unit in units for d in read_unit(unit, source, skipped)], skipped.as_dict()


def _file(folder: Path, name: str, content: bytes) -> Path:
    (folder / "web").mkdir(exist_ok=True)
    (folder / "web" / name).write_bytes(content)
    return folder / "web" / name


@pytest.mark.parametrize("kind", ["dataset", "folder"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_lines_that_are_no_documents_are_counted_by_file_and_reason(tmp_path: Path, kind: str, suffix: str) -> None:
    lines = [b'\xef\xbb\xbf{"text": "good"}', b"", b'{"text": ', b'{"text": null}', b'{"body": "x"}', b"[1]"]
    lines += [b'{"text": "\xff"}', b'{"text": 5}', b"[" * 100_000, b'{"text": "last"}']
    content = b"\n".join(lines)
    _file(tmp_path, f"rows{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)
    source = TEXT if kind == "dataset" else Source("web", kind="folder", path=str(tmp_path / "web"))
    texts, skipped = _read(tmp_path, source)
    assert texts == ["good", "last"]
    assert skipped == {f"rows{suffix}": {"invalid JSON": 2, "invalid UTF-8": 1, "no text": 4}}


def test_rows_that_a_template_refuses_are_counted(tmp_path: Path) -> None:
    source = Source("web", dataset="someone/web", columns=("goal", "sol1", "sol2", "label"), template="piqa")
    good = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    rows = [good, {**good, "label": -1}, {**good, "label": -1}, {**good, "sol2": ""}, {**good, "goal": None}]
    (tmp_path / "web").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "web" / "a.parquet")
    texts, skipped = _read(tmp_path, source)
    assert texts == ["Question: g\nAnswer: b"]
    assert skipped == {"a.parquet": {"empty option": 1, "label out of range": 2, "no question": 1}}


def test_a_row_without_its_own_id_is_counted(tmp_path: Path) -> None:
    _file(tmp_path, "a.jsonl", b'{"text": "a", "id": 5}\n{"text": "b", "id": null}\n{"text": "c", "id": ""}\n')
    source = Source("web", dataset="someone/web", columns=("text",), id_column="id")
    skipped = Skipped()
    (unit,) = find_units(source, str(tmp_path), 0, None)
    assert [(d.id, d.text) for d in read_unit(unit, source, skipped)] == [("web/5", "a")]
    assert skipped.as_dict() == {"a.jsonl": {"no id": 2}}


def test_text_in_parquet_that_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    bad = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    table = pa.table({"text": pa.StringArray.from_buffers(3, *bad.buffers()[1:3])})
    (tmp_path / "web").mkdir()
    pq.write_table(table, tmp_path / "web" / "a.parquet")
    assert _read(tmp_path) == (["one", "three"], {"a.parquet": {"invalid UTF-8": 1}})


LINES = b"".join(json.dumps({"text": f"text number {i} {i**9}"}).encode() + b"\n" for i in range(3000))
TABLE = pa.table({"text": [f"text number {i} {i**9}" for i in range(3000)]})


def _parquet(compression: str = "snappy") -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=500, compression=compression)
    return sink.getvalue()


def _arrow(stream: bool = True) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=700)
    return sink.getvalue()


def _flip(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0x55
    return bytes(changed)


ARRAY = b"[" + b",".join(LINES.splitlines()) + b"]"
GZIP, ZSTD = gzip.compress(LINES), zstandard.compress(LINES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", ARRAY),
        ("a.json.gz", gzip.compress(ARRAY)),
        ("a.jsonl.gz", GZIP),
        (
            "a.jsonl.gz",
            gzip.compress(LINES[: LINES.index(b"\n", 5000) + 1]) + gzip.compress(LINES[LINES.index(b"\n", 5000) + 1 :]),
        ),
        ("a.jsonl.zst", ZSTD),
        ("a.jsonl.zst", zstandard.compress(LINES[:5000]) + zstandard.compress(LINES[5000:])),
        ("a.parquet", _parquet()),
        ("a.parquet", _parquet("zstd")),
        ("a.arrow", _arrow()),
        ("a.arrow", _arrow(stream=False)),
    ],
)
def test_whole_files_give_all_rows_in_order(tmp_path: Path, name: str, content: bytes) -> None:
    _file(tmp_path, name, content)
    texts, skipped = _read(tmp_path)
    assert texts == TABLE["text"].to_pylist() and skipped == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", GZIP[:-20]),
        ("a.jsonl.gz", _flip(GZIP, -6)),
        ("a.jsonl.gz", _flip(GZIP, len(GZIP) // 2)),
        ("a.jsonl.gz", LINES),
        ("a.jsonl.zst", ZSTD[:-20]),
        ("a.jsonl.zst", ZSTD[: len(ZSTD) // 2]),
        ("a.jsonl.zst", LINES),
        ("a.json", ARRAY[:-1]),
        ("a.json", ARRAY[:5000]),
        ("a.json", ARRAY[:5000] + b"\xff" + ARRAY[5000:]),
        ("a.json.gz", gzip.compress(ARRAY)[:-9]),
        ("a.parquet", _parquet()[:-20]),
        ("a.parquet", _parquet()[:2000]),
        ("a.parquet", b""),
        ("a.parquet", LINES),
        ("a.arrow", _arrow()[:20_000]),
        ("a.arrow", _arrow(stream=False)[:-40]),
        ("a.arrow", LINES),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    _file(tmp_path, name, content)
    with pytest.raises(InputError, match=f"web/{name}: it cannot be read") as error:
        _read(tmp_path)
    assert "replace the file or take it away" in str(error.value)


def test_parquet_with_damaged_pages_is_refused_by_its_checksums(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=500, write_page_checksum=True)
    content = sink.getvalue()
    refused = 0
    for place in range(200, len(content) // 2, 997):
        _file(tmp_path, "a.parquet", _flip(content, place))
        try:  # a changed statistic in a page's header changes no text
            assert _read(tmp_path)[0] == TABLE["text"].to_pylist()
        except InputError as error:
            assert "web/a.parquet: it cannot be read" in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_without_the_templates_columns_is_refused(tmp_path: Path, name: str) -> None:
    _file(tmp_path, name, _parquet() if name.endswith("parquet") else _arrow())
    source = Source("web", dataset="someone/web", columns=("question", "answer"), template="gsm8k")
    with pytest.raises(InputError, match=f"{name}: it has no column question, answer, only text"):
        _read(tmp_path, source)


def test_an_array_longer_than_a_chunk_is_read_element_by_element() -> None:
    rows = [{"text": 'é\\"]},' * (i % 700), "n": [i, {"deep": None}]} for i in range(3000)]
    reasons: list[str] = []
    for content in (json.dumps(rows, indent=2, ensure_ascii=False), json.dumps(rows)):
        encoded = ("\ufeff \n" + content + "\n").encode()
        assert len(encoded) > 3_000_000
        found = list(read_rows(io.BytesIO(encoded), "a.json", (), (), reasons.append))
        assert found == list(enumerate(rows, start=1)) and reasons == []
    mixed = b'[{"text": "a"}, 5, 12345, "x", null, {"text": "b"}]'
    found = list(read_rows(io.BytesIO(mixed), "a.json", (), (), reasons.append))
    assert found == [(1, {"text": "a"}), (6, {"text": "b"})] and reasons == ["no text"] * 4


def test_memory_holds_a_part_of_a_file_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    draw = random.Random(0)
    texts = (" ".join(f"{n:x}" for n in draw.choices(range(5000), k=2500)) for _ in range(1500))
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    array = b"[" + lines.strip().replace(b"\n", b",") + b"]"
    for name, content in (("a.jsonl.zst", zstandard.compress(lines)), ("a.json.gz", gzip.compress(array, 1))):
        path = _file(tmp_path, name, content)
        with path.open("rb") as stream:
            tracemalloc.start()
            count = sum(1 for _ in read_rows(stream, name, (), (), print))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert count == 1500 and len(lines) > 15_000_000 and peak < 7_000_000, name
