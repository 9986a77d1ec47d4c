"""Documents read from a folder, and written split and shuffled."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from data_prep.documents import (
    Document,
    Skipped,
    describe_folder,
    find_files,
    load_index,
    read_folder,
    write_documents,
)
from olmoe_parrots.errors import InputError


def _read(folder: Path) -> tuple[list[Document], dict[str, dict[str, int]]]:
    skipped = Skipped()
    return list(read_folder(folder, find_files(folder, folder.parent / "out"), skipped)), skipped.as_dict()


def _write(documents: list[Document], root: Path, **options) -> tuple[list[dict], list[dict], Skipped]:
    """Write the documents; returns the rows of the training and of the validation files in order."""
    (root / "scratch").mkdir(parents=True)
    skipped = Skipped()
    settings = {"seed": 0, "validation_share": 0.2, "file_size": 10**6} | options
    files = write_documents(documents, root, root / "scratch", skipped=skipped, **settings)
    rows: dict[str, list[dict]] = {"train": [], "validation": []}
    for file in files:
        lines = gzip.decompress((root / file.path).read_bytes()).decode().splitlines()
        assert len(lines) == file.documents
        rows[file.split] += map(json.loads, lines)
    return rows["train"], rows["validation"], skipped


def _documents(n: int = 200) -> list[Document]:
    return [Document(f"doc-{i}", f"text {i} " + "x" * (i * 37 % 100), f"source-{i % 3}") for i in range(n)]


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "web").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("hidden")
    (folder / "a.txt").write_bytes("\ufeffplain é\r\ntext".encode())
    (folder / "web" / "b.MD").write_text("# Title")
    (folder / "web" / "c.pdf").write_text("not read")
    rows = [{"text": "one", "id": 7, "source": "mine"}, {"text": "two"}]
    (folder / "c.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (folder / "web" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three", "id": null}\n'))
    documents, skipped = _read(folder)
    assert [(d.id, d.text, d.source) for d in documents] == [
        ("a.txt", "plain é\r\ntext", "documents"),
        ("7", "one", "mine"),
        ("c.jsonl:3", "two", "documents"),
        ("web/b.MD", "# Title", "web"),
        ("web/d.jsonl.gz:1", "three", "web"),
    ]
    assert skipped == {}


def test_rows_that_are_no_documents_are_counted_by_file_and_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [b'{"text": "good"}', b'{"text": ', b'{"text": null}', b'{"body": "x"}', b"[1]", b'{"text": "\xff"}']
    lines += [b'{"text": 5}', b'{"text": " \\n "}', b'{"text": "\\ud800"}', b"[" * 100_000]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "empty.txt").touch()
    skipped = Skipped()
    documents = read_folder(folder, find_files(folder, tmp_path / "out"), skipped)
    (tmp_path / "scratch").mkdir()
    options = {"seed": 0, "validation_share": 0.0, "file_size": 10**6, "skipped": skipped}
    files = write_documents(documents, tmp_path / "out", tmp_path / "scratch", **options)
    assert [file.documents for file in files] == [1]
    expected = {
        "empty.txt": {"empty text": 1},
        "latin.txt": {"invalid UTF-8": 1},
        "rows.jsonl": {"empty text": 1, "invalid JSON": 2, "invalid UTF-8": 1, "invalid Unicode": 1, "no text": 4},
    }
    assert skipped.as_dict() == expected
    loaded = load_index(tmp_path / "out")
    assert loaded is not None and loaded[0] == files and loaded[1].as_dict() == expected
    assert "rows.jsonl" in skipped.lines()[2] and "4 x no text" in skipped.lines()[2]


@pytest.mark.parametrize("damage", ["truncated", "altered", "not gzip"])
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    content = bytearray(gzip.compress(b'{"text": "abc"}\n' * 1000))
    if damage == "truncated":
        content = content[:-20]
    elif damage == "altered":
        content[-6] ^= 1
    else:
        content = bytearray(b'{"text": "abc"}\n')
    (folder / "rows.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz"):
        _read(folder)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_files(tmp_path / "none", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="holds no documents"):
        find_files(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.txt").write_text("a")
    with pytest.raises(InputError, match="inside the source folder"):
        find_files(tmp_path / "in", tmp_path / "in" / "out")


def test_split_and_order_follow_the_hash_of_seed_and_id(tmp_path: Path) -> None:
    train, validation, _ = _write(_documents(), tmp_path, seed=3)
    digests = {d.id: hashlib.sha256(f"3\0{d.id}".encode()).digest() for d in _documents()}
    held_out = {name for name, digest in digests.items() if int.from_bytes(digest[:8], "big") / 2**64 < 0.2}
    assert {row["id"] for row in validation} == held_out and 20 < len(held_out) < 60
    for rows in (train, validation):
        ids = [row["id"] for row in rows]
        assert ids == sorted(ids, key=lambda name: digests[name][8:16])
    written = {(r["id"], r["text"], r["source"]) for r in train + validation}
    assert written == {(d.id, d.text, d.source) for d in _documents()}
    assert all(set(row) == {"id", "text", "source", "added", "metadata"} for row in train)


def test_the_order_of_reading_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    def contents(name: str) -> dict[str, bytes]:
        files = (tmp_path / name / "documents").rglob("*.jsonl.gz")
        return {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}

    _write(_documents(), tmp_path / "a", file_size=2000)
    _write(_documents()[::-1], tmp_path / "b", file_size=2000)
    _write(_documents(), tmp_path / "c", file_size=2000, seed=1)
    assert contents("a") == contents("b")
    assert contents("a") != contents("c")


def test_files_of_a_split_are_about_equally_long(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    options = {"seed": 0, "validation_share": 0.0, "file_size": 5000, "skipped": Skipped()}
    files = write_documents(_documents(), tmp_path, tmp_path / "scratch", **options)
    assert len(files) == round(sum(file.json_bytes + 16 * file.documents for file in files) / 5000)
    assert max(f.json_bytes for f in files) < 1.2 * min(f.json_bytes for f in files)


def test_nothing_left_for_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is left for training"):
        _write([Document("a", "  ", "s")], tmp_path)


def test_an_index_with_an_altered_file_is_not_used(tmp_path: Path) -> None:
    _write(_documents(), tmp_path)
    assert load_index(tmp_path) is not None
    path = tmp_path / "documents" / "train" / "0000.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert load_index(tmp_path) is None


def test_the_description_follows_contents_not_times(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    describe = lambda: describe_folder(folder, [folder / "a.txt"], tmp_path / "sums", tmp_path / "sums")  # noqa: E731
    first = describe()
    assert first["files"] == 1 and first["bytes"] == 3
    (folder / "a.txt").write_text("one")
    assert describe() == first
    (folder / "a.txt").write_text("two")
    assert describe()["sha256"] != first["sha256"]
