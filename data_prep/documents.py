"""Documents: reading them from a folder, and writing them split, shuffled and compressed as dolma reads them.

Split and order are functions of the seed and a document's id alone, so the same input and seed give the same bytes.
Memory holds one bucket of the shuffle at a time, a 64th of each split.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import SPLITS, sha256_of, write_atomically

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz")
FOLDER = "documents"
INDEX = f"{FOLDER}/index.json"
INPUTS = f"{FOLDER}/inputs.json"
# dolma's format asks for the time a document was added; the time of the run would change the bytes.
ADDED = "1970-01-01T00:00:00.000Z"
_BUCKETS = 64


@dataclass(frozen=True)
class Document:
    """One document of the corpus."""

    id: str
    text: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DocumentFile:
    """One file of documents: `path` relative to the dataset folder; `bytes` and `sha256` of the compressed file;
    `json_bytes` before compression."""

    path: str
    split: str
    documents: int
    json_bytes: int
    bytes: int
    sha256: str


class Skipped:
    """Counts what was left out, by file and reason."""

    def __init__(self, counts: dict[str, dict[str, int]] | None = None) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        for file, reasons in (counts or {}).items():
            self.counts[file].update(reasons)

    def add(self, file: str, reason: str) -> None:
        """Count one document or row of `file` left out for `reason`."""
        self.counts[file][reason] += 1

    def as_dict(self) -> dict[str, dict[str, int]]:
        """{file: {reason: count}}, in sorted order."""
        return {file: dict(sorted(reasons.items())) for file, reasons in sorted(self.counts.items())}

    def lines(self) -> list[str]:
        """One line per file: its name and how many were left out for which reason."""
        told = {f: ", ".join(f"{n} x {reason}" for reason, n in r.items()) for f, r in self.as_dict().items()}
        return [f"{file}: left out {reasons}" for file, reasons in told.items()]


def find_files(folder: Path, output: Path) -> list[Path]:
    """The document files under `folder`, sorted by relative path; hidden files and folders are not looked at.

    Raises InputError if the folder does not exist or holds no documents, or if `output` lies inside it.
    """
    endings = ", ".join(SUFFIXES)
    if not folder.is_dir():
        raise InputError(folder, "there is no such folder", f"name a folder of {endings} files, or python-docs")
    if output.resolve().is_relative_to(folder.resolve()):
        what = "lies inside the source folder, so its files would be read as documents"
        raise InputError(output, what, "choose an --output outside it")
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not files:
        raise InputError(folder, "it holds no documents", f"put {endings} files into it")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def describe_folder(folder: Path, files: list[Path], known_sums: Path, new_sums: Path) -> dict[str, Any]:
    """What identifies the input: number and size of files and one SHA-256 over their names and contents.

    Each file's sum is written to `new_sums` with its size and time; a file that `known_sums`, the same of an earlier
    run, lists with that size and time is not read again.
    """
    try:
        known = json.loads(known_sums.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    sums: dict[str, list[Any]] = {}
    for path in files:
        status, name = path.stat(), _name_of(path, folder)
        same = known.get(name, [])[:2] == [status.st_size, status.st_mtime_ns]
        sums[name] = [status.st_size, status.st_mtime_ns, known[name][2] if same else sha256_of(path)]
    write_atomically(new_sums, json.dumps(sums).encode())
    content = json.dumps([[name, entry[2]] for name, entry in sums.items()])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"kind": "folder", "files": len(files), "bytes": sum(s[0] for s in sums.values()), "sha256": digest}


def _name_of(path: Path, folder: Path) -> str:
    # A file name need not be valid Unicode; an id must be.
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def read_folder(folder: Path, files: Iterable[Path], skipped: Skipped) -> Iterator[Document]:
    """The documents of `files`; rows that are none are counted in `skipped`.

    A document's id is its row's `id`, else the file's path relative to `folder` (with the line number for JSON
    lines); its source is its row's `source`, else the first folder below `folder`, else "documents". Raises
    InputError naming a file that cannot be read to its end, such as a damaged gzip file.
    """
    for path in files:
        name = _name_of(path, folder)
        source = name.split("/")[0] if "/" in name else "documents"
        try:
            if name.lower().endswith((".jsonl", ".jsonl.gz")):
                with gzip.open(path, "rb") if name.lower().endswith(".gz") else path.open("rb") as stream:
                    yield from _read_rows(stream, name, source, skipped)
            else:
                yield Document(name, path.read_bytes().decode("utf-8-sig"), source, {"path": name})
        except UnicodeDecodeError:
            skipped.add(name, "invalid UTF-8")
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(path, f"it cannot be read ({error})", "replace the file or take it away") from None


def _read_rows(stream: Iterable[bytes], name: str, source: str, skipped: Skipped) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            skipped.add(name, "invalid UTF-8")
            continue
        except (ValueError, RecursionError):
            skipped.add(name, "invalid JSON")
            continue
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            skipped.add(name, "no text")
            continue
        identifier = row.get("id")
        identifier = f"{name}:{number}" if identifier is None else str(identifier)
        given = row.get("source")
        yield Document(identifier, text, given if isinstance(given, str) else source, {"path": name, "line": number})


def write_documents(
    documents: Iterable[Document],
    output: Path,
    scratch: Path,
    *,
    seed: int,
    validation_share: float,
    file_size: int,
    skipped: Skipped,
) -> list[DocumentFile]:
    """Write documents to `output`/documents/{train,validation}/NNNN.jsonl.gz and an index of these files.

    Args:
        scratch: an existing folder for the shuffle; the documents lie there once, uncompressed.
        validation_share: a document is held out when its hash with the seed falls under this share.
        file_size: the size of a file before compression, in bytes; files of a split are made about equally long.
        skipped: empty and invalid texts are added to it.

    Raises InputError if no document is left for training.
    """
    files: list[DocumentFile] = []
    with ExitStack() as stack:
        spool = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
        buckets = _fill_buckets(documents, spool, seed, validation_share, skipped, stack)
        for split in SPLITS:
            total = sum(bucket.tell() for (s, _), bucket in buckets.items() if s == split)
            parts = max(1, round(total / file_size))
            lines = _sorted_lines([buckets[key] for key in sorted(buckets) if key[0] == split])
            files += _write_split(lines, output, split, total, parts)
    if not any(file.split == "train" for file in files):
        raise InputError("documents", "none is left for training", "add documents or lower --validation-share")
    index = {"files": [asdict(file) for file in files], "skipped": skipped.as_dict()}
    write_atomically(output / INDEX, json.dumps(index, indent=1).encode())
    return files


def _fill_buckets(
    documents: Iterable[Document], spool: Path, seed: int, share: float, skipped: Skipped, stack: ExitStack
) -> dict[tuple[str, int], BinaryIO]:
    """Spread the documents, each a line led by its place in the order, over buckets of that order."""
    buckets: dict[tuple[str, int], BinaryIO] = {}
    for document in documents:
        name = str(document.metadata.get("path", document.id))
        if not document.text.strip():
            skipped.add(name, "empty text")
            continue
        row = {"id": document.id, "text": document.text, "source": document.source}
        try:
            "".join(row.values()).encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which UTF-8 cannot hold
            skipped.add(name, "invalid Unicode")
            continue
        digest = hashlib.sha256(f"{seed}\0{document.id}".encode()).digest()
        split = "validation" if int.from_bytes(digest[:8], "big") < share * 2**64 else "train"
        key = split, digest[8] * _BUCKETS // 256
        if key not in buckets:
            buckets[key] = stack.enter_context((spool / f"{split}-{key[1]:02d}").open("w+b"))
        line = json.dumps({**row, "added": ADDED, "metadata": document.metadata})
        buckets[key].write(f"{digest[8:16].hex()}{line}\n".encode())
    return buckets


def _sorted_lines(buckets: Iterable[BinaryIO]) -> Iterator[bytes]:
    for bucket in buckets:
        bucket.seek(0)
        for line in sorted(bucket):
            yield line[16:]


def _write_split(lines: Iterable[bytes], output: Path, split: str, total: int, parts: int) -> Iterator[DocumentFile]:
    """Cut lines of `total` bytes, order prefixes included, into at most `parts` files of about equal length."""
    seen, part, number = 0, 0, 0
    pending: list[bytes] = []
    for line in lines:
        if pending and seen * parts // total > part:
            yield _write_file(pending, output, split, number)
            part, number, pending = seen * parts // total, number + 1, []
        pending.append(line)
        seen += len(line) + 16
    if pending:
        yield _write_file(pending, output, split, number)


def _write_file(lines: list[bytes], output: Path, split: str, number: int) -> DocumentFile:
    name = f"{FOLDER}/{split}/{number:04d}.jsonl.gz"
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(b"".join(lines), compresslevel=6, mtime=0)
    write_atomically(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return DocumentFile(name, split, len(lines), sum(map(len, lines)), len(content), digest)


def load_index(output: Path) -> tuple[list[DocumentFile], Skipped] | None:
    """The document files an earlier run finished and what it left out; None if any is missing or altered."""
    try:
        index = json.loads((output / INDEX).read_text(encoding="utf-8"))
        files = [DocumentFile(**file) for file in index["files"]]
        whole = all(sha256_of(output / file.path) == file.sha256 for file in files)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (files, Skipped(index["skipped"])) if whole else None
