"""Documents to token shards, by dolma's own tokenizer and writer.

Each file of documents becomes one shard, in the order of its lines. dolma's command shuffles unseeded and its output
depends on the number of processes; its pieces do not.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from typing import Any

from data_prep.documents import DocumentFile
from data_prep.tokenizers import INSTALL
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import TOKENIZER, ShardFile, TokenizerInfo, describe_shard, smallest_dtype, write_atomically
from olmoe_parrots.shards import sha256_of as _sha256_of

Record = dict[str, Any]
_PACKAGES = ("dolma", "tokenizers", "transformers", "mistral-common", "ai2-olmo", "numpy")


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """While dolma is imported: let it find the sentence model that it would fetch and that is not used here."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizers", "punkt").mkdir(parents=True)
        before = os.environ.get("NLTK_DATA")
        os.environ["NLTK_DATA"] = folder if before is None else f"{before}{os.pathsep}{folder}"
        if "nltk" in sys.modules:
            sys.modules["nltk"].data.path.append(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["NLTK_DATA"]
            else:
                os.environ["NLTK_DATA"] = before


def _import_dolma() -> tuple[Any, Any]:
    """dolma's `tokenize_file` and `MemmapWriter`; takes about ten seconds the first time."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with _no_download():
            from dolma.tokenizer import tokenize_file
            from dolma.tokenizer.memmap_writer import MemmapWriter
    except ImportError as error:
        raise InputError("dolma", f"it cannot be imported ({error})", INSTALL) from None
    return tokenize_file, MemmapWriter


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that shape the shards."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that end at once, without a traceback, when interrupted or when their parent ends."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def tokenize_documents(
    output: Path, scratch: Path, files: list[DocumentFile], tokenizer: TokenizerInfo, *, processes: int
) -> Iterator[Record]:
    """Make the shard of each file of documents, and yield each file's record as it is finished, in any order.

    A record holds "shard" (the fields of a ShardFile), "sources" (tokens and documents by source) and the sums that
    tell whether it still holds. Shards that an earlier run finished are kept. A shard, its csv.gz and its record
    are each written beside and renamed. Raises InputError naming a file whose documents could not all be tokenized.
    """
    missing = []
    for file in files:
        record = _finished_record(output, file, tokenizer)
        if record is None:
            missing.append(file)
        else:
            yield record
    if processes == 1 or len(missing) < 2:
        for file in missing:
            yield _make_shard(output, scratch, file, tokenizer)
        return
    pool = worker_pool(min(processes, len(missing)))
    try:
        futures = [pool.submit(_make_shard, output, scratch, file, tokenizer) for file in missing]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def merge_records(records: Iterable[Record]) -> tuple[list[ShardFile], dict[str, dict[str, dict[str, int]]]]:
    """The shards in order of their paths, and tokens and documents by split and source."""
    shards: list[ShardFile] = []
    sources: dict[str, dict[str, dict[str, int]]] = {}
    for record in sorted(records, key=lambda record: record["shard"]["path"]):
        shard = ShardFile(**record["shard"])
        shards.append(shard)
        for source, counts in record["sources"].items():
            total = sources.setdefault(shard.split, {}).setdefault(source, {"tokens": 0, "documents": 0})
            for key in total:
                total[key] += counts[key]
    return shards, {split: dict(sorted(by_source.items())) for split, by_source in sources.items()}


def _names(file: DocumentFile) -> tuple[str, str, str]:
    """The paths of a file's shard, its document boundaries and its record, relative to the dataset folder."""
    stem = Path(file.path).name.removesuffix(".jsonl.gz")
    record = f"{file.path.removesuffix('.jsonl.gz')}.shard.json"
    return f"{file.split}/{stem}.npy", f"{file.split}/{stem}.csv.gz", record


def _finished_record(output: Path, file: DocumentFile, tokenizer: TokenizerInfo) -> Record | None:
    shard, boundaries, name = _names(file)
    try:
        record: Record = json.loads((output / name).read_text(encoding="utf-8"))
        same_origin = record["documents_sha256"] == file.sha256 and record["tokenizer"] == asdict(tokenizer)
        whole = same_origin and _sha256_of(output / shard) == record["shard"]["sha256"]
        return record if whole and _sha256_of(output / boundaries) == record["boundaries_sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_shard(output: Path, scratch: Path, file: DocumentFile, tokenizer: TokenizerInfo) -> Record:
    shard, boundaries, name = _names(file)
    work = scratch / shard.replace("/", "-").removesuffix(".npy")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    dtype = smallest_dtype(tokenizer.vocabulary_size)
    sources = _write_tokens(output, file, tokenizer, dtype, work / "tokens")
    # dolma's gzip carries a time and a name; ours neither, so that the same rows are the same bytes.
    rows = gzip.decompress((work / "tokens.csv.gz").read_bytes())
    (output / file.split).mkdir(exist_ok=True)
    write_atomically(output / boundaries, gzip.compress(rows, mtime=0))
    _flush_to_disk(work / "tokens.npy")
    os.replace(work / "tokens.npy", output / shard)
    documents = sum(counts["documents"] for counts in sources.values())
    record = {
        "shard": asdict(describe_shard(output, shard, file.split, dtype, documents)),
        "sources": sources,
        "documents_sha256": file.sha256,
        "boundaries_sha256": _sha256_of(output / boundaries),
        "tokenizer": asdict(tokenizer),
    }
    write_atomically(output / name, json.dumps(record, indent=1).encode())
    shutil.rmtree(work)
    return record


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_tokens(
    output: Path, file: DocumentFile, tokenizer: TokenizerInfo, dtype: str, stem: Path
) -> dict[str, dict[str, int]]:
    """Write `stem`.npy and `stem`.csv.gz; returns tokens and documents by source."""
    import numpy as np

    tokenize_file, memmap_writer = _import_dolma()
    path = output / file.path
    with gzip.open(path, "rb") as stream:
        source_of = [json.loads(line)["source"] for line in stream]
    options = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    outputs = tokenize_file(str(output / TOKENIZER), str(path), encode_special_tokens=True, **options)
    # The writer lays out room beforehand and cuts it off in the end: no tokenizer makes this many tokens.
    room = 4 * (file.json_bytes + file.documents) + 16
    sources: dict[str, dict[str, int]] = {}
    documents_read = 0
    with memmap_writer(str(stem), np.dtype(dtype).newbyteorder("<"), max_tokens=room) as writer:
        for document in outputs:
            documents_read += 1
            if not document.tokens:  # a tokenizer may drop every character of a text
                continue
            if not writer.write(document._replace(src=file.path)):
                raise RuntimeError(f"{path}: more than {room} tokens")
            counts = sources.setdefault(source_of[document.loc - 1], {"tokens": 0, "documents": 0})
            counts["tokens"] += len(document.tokens)
            counts["documents"] += 1
    if documents_read != file.documents or not sources:
        # dolma logs a document or a file that fails and goes on.
        what = f"{documents_read} of its {file.documents} documents were tokenized"
        raise InputError(path, what, "see the messages above; if none explains it, remove the folder and run again")
    return dict(sorted(sources.items()))
