"""A build from and to a real S3 server, and one that looks for real test items."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from s3_server import S3Server
from test_build import _mixture, _run, _write_source

from data_prep.__main__ import main
from data_prep.test_items import load_test_items
from data_prep.verify import main as verify_command
from olmoe_parrots.errors import InputError
from olmoe_parrots.shards import Manifest

SOURCES = [{"name": "web", "share": 0.7, "dataset": "a/web"}, {"name": "books", "share": 0.3, "dataset": "a/books"}]
SMALL = {"tokens": 15_000, "validation": {"sequences": 10, "sequence_length": 64}, "sources": SOURCES}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    _write_source(tmp_path / "local", "web", 2, 200, 40, 1)
    _write_source(tmp_path / "local", "books", 2, 40, 300, 2)
    return tmp_path / "local"


@pytest.mark.slow
def test_from_s3_to_s3(local: Path, tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    client = s3.client()
    client.create_bucket(Bucket="built")
    for path in local.rglob("*.jsonl"):
        client.upload_file(str(path), "built", f"raw/{path.relative_to(local).as_posix()}")
    mixture = _mixture(tmp_path / "m.yaml", **SMALL)
    here = _run(mixture, local, tmp_path / "here")
    command = [str(mixture), "--local", "s3://built/raw", "--output", "s3://built/data", "--processes", "1"]
    with pytest.raises(InputError, match="--work: it is needed"):
        main(command)
    assert main([*command, "--work", str(tmp_path / "work")]) == 0
    there = Manifest.load("s3://built/data")
    assert [file.sha256 for file in there.files] == [file.sha256 for file in here.files]
    assert verify_command(["s3://built/data"]) == 0
    listed = {entry["Key"] for entry in client.list_objects_v2(Bucket="built", Prefix="data/")["Contents"]}
    assert {f"data/{file.path}" for file in here.files} < listed and not any("partial" in key for key in listed)
    capsys.readouterr()
    assert main([*command, "--work", str(tmp_path / "work")]) == 0
    assert re.search("nothing to do", said := capsys.readouterr().err) and re.search("0 of .* files sent", said)
    with pytest.raises(InputError, match="it holds a dataset of other inputs or settings"):
        main([*command, "--work", str(tmp_path / "other"), "--seed", "9"])
    assert Manifest.load("s3://built/data") == there


def _disguised(text: str) -> str:
    """The same words in other case, with other punctuation between them."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text)
    return " -- ".join(word.upper() if number % 2 else word for number, word in enumerate(words)) + " ?!"


@pytest.mark.slow
def test_planted_test_items_are_dropped_and_nothing_else(local: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    items = [item for item in load_test_items(("piqa", "gsm8k", "winogrande"), None) if len(item.text.split()) > 16]
    planted = rng.sample(items, 30)
    for number, item in enumerate(planted):
        path = local / "web" / f"{number % 2}.jsonl"
        text = f"Some words before. {_disguised(item.text) if number % 3 else item.text} And some after."
        lines = path.read_text(encoding="utf-8").splitlines()
        lines.insert(rng.randrange(len(lines)), json.dumps({"text": text}))
        path.write_text("\n".join(lines), encoding="utf-8")
    whole = {"sources": [{"name": name, "dataset": f"a/{name}"} for name in ("web", "books")], "tokens": None}
    mixture = _mixture(tmp_path / "m.yaml", **whole, validation={"share": 0.05})
    tasks = ["--tasks", "piqa,gsm8k,winogrande"]
    for mode in ("report", "drop"):
        manifest = _run(mixture, local, tmp_path / mode, "--decontaminate", mode, *tasks)
        rows = [json.loads(line) for line in (tmp_path / mode / "contamination.jsonl").read_text().splitlines()]
        assert len(rows) == 30 and {row["source"] for row in rows} == {"web"}
        told = json.loads((tmp_path / mode / "contamination.json").read_text())
        assert sum(task["documents"] for task in told["tasks"].values()) >= 30
        assert told["sources"]["web"] == {"documents": 430, "found": 30, "dropped": 30 * (mode == "drop")}
        documents = manifest.totals("train")[1] + manifest.totals("validation")[1]
        assert documents == 430 + 80 - 30 * (mode == "drop")
        assert {report.path for report in manifest.reports} == {"contamination.json", "contamination.jsonl"}
    kept = b"".join(gzip.decompress(path.read_bytes()) for path in (tmp_path / "drop/documents/web").glob("*.jsonl.gz"))
    assert b"Some words before." not in kept
