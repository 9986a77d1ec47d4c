"""Exact deduplication beside dolma's own, which flags duplicates by a Bloom filter."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main


@pytest.mark.slow
def test_what_stays_is_what_dolma_does_not_flag(tmp_path: Path) -> None:
    """With one process and a filter far larger than the corpus dolma's choice is exact, and the first one stays."""
    rng = random.Random(0)
    rows = [
        {"id": str(i), "text": f"text {rng.randrange(700)} {'x' * rng.randrange(3)}", "source": "a"}
        for i in range(2000)
    ]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "0.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    output = tmp_path / "out"
    main([str(tmp_path / "in"), "--output", str(output), "--validation-share", "0", "--processes", "1"])
    with gzip.open(output / "documents/documents/00000.jsonl.gz", "rt") as stream:
        kept = [json.loads(line)["id"] for line in stream]

    (tmp_path / "nltk" / "tokenizers" / "punkt").mkdir(parents=True)
    shutil.copytree(tmp_path / "in", tmp_path / "theirs" / "documents")
    command = [str(Path(sys.executable).with_name("dolma")), "dedupe", "--processes", "1", "--dedupe.name", "exact"]
    command += ["--documents", f"{tmp_path}/theirs/documents/*.gz", "--dedupe.documents.key", "$.text"]
    command += ["--dedupe.documents.attribute_name", "duplicate", "--bloom_filter.file", str(tmp_path / "bloom")]
    command += ["--bloom_filter.estimated_doc_count", "100000", "--no-bloom_filter.read_only"]
    command += ["--bloom_filter.desired_false_positive_rate", "0.0000000001"]
    environment = os.environ | {"NLTK_DATA": str(tmp_path / "nltk")}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    with gzip.open(tmp_path / "theirs/attributes/exact/0.jsonl.gz", "rt") as stream:
        flagged = [json.loads(line) for line in stream]
    assert kept == [row["id"] for row in flagged if not row["attributes"]]
    assert 1000 < len(kept) < 2000
