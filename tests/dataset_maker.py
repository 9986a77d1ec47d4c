"""Dataset folders written by the contract's words, with nothing of the modules under test."""

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

EOS, PAD, VOCABULARY = 2, 0, 128
TOKENIZER = b'{"version": "1.0"}'


def draw_documents(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """`count` documents of `length` random tokens each, without their EOS."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, length).tolist() for _ in range(count)]


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_shard(root: Path, name: str, documents: list[list[int]], *, mask: bool = False) -> dict[str, Any]:
    """A token file `name`, such as train/SOURCE-00000.npy, and what the manifest says of it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([np.array([*d, EOS]) for d in documents]).astype("<u2").tobytes())
    ends = np.cumsum([len(d) + 1 for d in documents]).tolist()
    rows = io.StringIO()
    csv.writer(rows).writerows(
        [start, end, f"{path.stem}/doc, {i}", "documents/x.jsonl.gz", i + 1]
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    boundaries = path.with_suffix(".csv.gz")
    boundaries.write_bytes(gzip.compress(rows.getvalue().encode(), mtime=0))
    entry = {
        "path": name,
        "split": name.split("/")[0],
        "source": path.stem.rsplit("-", 1)[0],
        "bytes": 2 * ends[-1],
        "sha256": sum_of(path),
        "tokens": ends[-1],
        "documents": len(documents),
        "boundaries_sha256": sum_of(boundaries),
        "label_mask": None,
        "label_mask_sha256": None,
    }
    if mask:
        path.with_suffix(".mask").write_bytes((np.arange(ends[-1]) % 3 == 0).tobytes())
        entry["label_mask"] = str(Path(name).with_suffix(".mask"))
        entry["label_mask_sha256"] = sum_of(path.with_suffix(".mask"))
    return entry


def write_dataset(
    root: Path,
    documents: dict[str, list[list[int]]] | None = None,
    *,
    tokenizer: bytes = TOKENIZER,
    masks: bool = False,
    **fields: Any,
) -> Path:
    """A dataset folder of the given documents by token file; by default two sources, one of them in two files."""
    documents = documents or {
        "train/web-00000.npy": draw_documents(20, 20, 1),
        "train/web-00001.npy": draw_documents(12, 30, 2),
        "train/wiki-00000.npy": draw_documents(3, 31, 3),
        "validation/web-00000.npy": draw_documents(6, 25, 4),
    }
    files = [write_shard(root, name, texts, mask=masks) for name, texts in documents.items()]
    (root / "tokenizer.json").write_bytes(tokenizer)
    manifest = {
        "format": "olmoe_parrots.shards/2",
        "tokenizer": {
            "name": "test",
            "sha256": hashlib.sha256(tokenizer).hexdigest(),
            "vocabulary_size": VOCABULARY,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
        "dtype": "uint16",
        "files": files,
        "mixture": {},
        "seed": 0,
        "versions": {"python": "3"},
        "asked": {},
        "reports": [],
        **fields,
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def edit_manifest(root: Path, edit: Any) -> None:
    """Change the manifest by `edit`, a function of its raw content."""
    raw = json.loads((root / "manifest.json").read_text())
    edit(raw)
    (root / "manifest.json").write_text(json.dumps(raw))


def flip_a_bit(path: Path, place: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
