"""Sources from a hub: a server on the loopback, with huggingface_hub and `datasets` themselves between it and us."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, free_port
from hub_server import COMMIT, running_hub

from data_prep.documents import Skipped
from data_prep.mixture import Source
from data_prep.sources import describe_units, find_units, read_unit
from olmoe_parrots.errors import InputError

READ = """
import json, sys
from data_prep.documents import Skipped
from data_prep.mixture import Source
from data_prep.sources import describe_units, find_units, read_unit
from olmoe_parrots.errors import InputError
for fields in json.loads(sys.argv[1]):
    source = Source(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    skipped = Skipped()
    try:
        units = find_units(source, None, 0, None)
        documents = [(document.id, document.text) for unit in units for document in read_unit(unit, source, skipped)]
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        continue
    names = [unit.name for unit in units]
    found = {"names": names, "documents": documents, "described": describe_units(units), "skipped": skipped.as_dict()}
    print(json.dumps(found))
"""
pytestmark = pytest.mark.slow  # each reading imports `datasets` anew
Read = Callable[..., list[dict]]


def _read_at(address: str, home: Path, *sources: Source) -> list[dict]:
    """Find and read sources in a process of its own, since the address of the hub is fixed at import."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-c", READ, json.dumps([asdict(source) for source in sources])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def _repository(root: Path) -> Path:
    """A dataset of two configs with three files of four rows each, files of a third kind, and a test split."""
    folder = root / "someone" / "web"
    for config in ("main", "more"):
        (folder / config).mkdir(parents=True)
        for i in range(3):
            texts = [f"{config} {i} {j}" for j in range(4)]
            ids = [f"{config}-{i}-{j}" for j in range(4)]
            table = pa.table({"text": texts, "id": ids})
            pq.write_table(table, folder / config / f"train-{i:05d}-of-00003.parquet")
        pq.write_table(pa.table({"text": ["test"], "id": ["t"]}), folder / config / "test-00000-of-00001.parquet")
    (folder / "raw" / "train").mkdir(parents=True)
    (folder / "raw" / "train" / "a.jsonl").write_text('{"text": "raw"}\n{"text": null}\n')
    splits = "".join(f"\n  - split: {split}\n    path: CONFIG/{split}-*" for split in ("train", "test"))
    configs = "".join(
        f"\n- config_name: {config}\n  data_files:{splits.replace('CONFIG', config)}" for config in ("main", "more")
    )
    (folder / "README.md").write_text(f"---\nconfigs:{configs}\n---\n")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Read, list[str]]]:
    """The hub's folder, a function that reads a source from it, and the requests so far."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    _repository(root)
    with running_hub(root) as (address, asked):
        yield root, lambda *sources: _read_at(address, home, *sources), asked


def test_a_dataset_is_streamed_file_by_file(hub: tuple[Path, Read, list[str]]) -> None:
    _, read, asked = hub
    del asked[:]
    (found,) = read(Source("web", dataset="someone/web", config=("main", "more"), columns=("text",), id_column="id"))
    names = [f"someone/web/{config} shard {i}/3" for config in ("main", "more") for i in (1, 2, 3)]
    assert sorted(found["names"]) == names != found["names"]
    of_unit = {name: name.split("/")[2].split()[0] + f" {int(name.split()[2][0]) - 1}" for name in names}
    expected = [f"{of_unit[name]} {j}" for name in found["names"] for j in range(4)]
    assert [text for _, text in found["documents"]] == expected
    assert [name for name, _ in found["documents"]] == [f"web/{text.replace(' ', '-')}" for text in expected]
    described = found["described"]
    assert (described["dataset"], described["revision"]) == ("someone/web", COMMIT)
    assert described["configs"] == ["main", "more"] and described["units"] == 6
    assert all(COMMIT in line for line in asked if "/resolve/" in line)


def test_named_files_are_read_without_the_hubs_loader(hub: tuple[Path, Read, list[str]]) -> None:
    _, read, asked = hub
    del asked[:]
    patterns = ("*/train/*.jsonl", "main/train-*.parquet")
    revision = "refs/convert/parquet"
    (found,) = read(Source("web", dataset="someone/web", revision=revision, files=patterns, columns=("text",)))
    assert sorted(found["names"]) == [*(f"main/train-{i:05d}-of-00003.parquet" for i in range(3)), "raw/train/a.jsonl"]
    assert sorted(text for _, text in found["documents"]) == sorted(
        ["raw", *(f"main {i} {j}" for i in range(3) for j in range(4))]
    )
    assert ["web/raw/train/a.jsonl:1", "raw"] in found["documents"]
    assert found["skipped"] == {"raw/train/a.jsonl": {"no text": 1}}
    assert asked[0] == "GET /api/datasets/someone/web/revision/refs/convert/parquet"


def test_what_the_hub_has_not_is_told_in_one_line(hub: tuple[Path, Read, list[str]]) -> None:
    _, read, _ = hub
    told: list[tuple[dict, str]] = [
        ({"dataset": "someone/nothing"}, "someone/nothing, split train: the hub has it not"),
        ({"dataset": "someone/web", "config": "mian"}, "someone/web, config mian, split train: the hub has it not"),
        ({"dataset": "someone/web", "files": ("none/*.jsonl",)}, "none/*.jsonl: the repository has no such file"),
        ({"dataset": "someone/web", "config": "main", "template": "gsm8k"}, "it has no column question, answer"),
    ]
    found = read(*(Source("web", **fields) for fields, _ in told))
    for (_, expected), answer in zip(told, found, strict=True):
        assert expected in answer["error"] and "\n" not in answer["error"]
    assert "put its files into DIR/web and use --local DIR" in found[0]["error"]


def test_a_damaged_file_on_the_hub_is_refused_by_name(hub: tuple[Path, Read, list[str]]) -> None:
    root, read, _ = hub
    folder = root / "someone" / "damaged"
    folder.mkdir()
    pq.write_table(pa.table({"text": [f"text {i} {i**5}" for i in range(5000)]}), folder / "train-0.parquet")
    content = bytearray((folder / "train-0.parquet").read_bytes())
    content[60:4000] = bytes(3940)
    (folder / "train-0.parquet").write_bytes(content)
    source = Source("web", dataset="someone/damaged", columns=("text",))
    streamed, named = read(source, replace(source, files=("*.parquet",)))
    assert streamed["error"].startswith("someone/damaged shard 1/1: it cannot be read to its end")
    assert named["error"].startswith("train-0.parquet: it cannot be read")


def test_a_repositorys_script_is_never_run(hub: tuple[Path, Read, list[str]], tmp_path: Path) -> None:
    root, read, _ = hub
    mark = tmp_path / "ran"
    for place in (root / "someone" / "scripted", tmp_path / "scripted"):
        place.mkdir()
        (place / "scripted.py").write_text(f"import datasets\nopen({str(mark)!r}, 'w').close()\n")
        (place / "train.jsonl").write_text('{"text": "a"}\n')
    source = Source("web", dataset="someone/scripted", columns=("text",))
    on_hub, local, named = read(
        source, replace(source, dataset=str(tmp_path / "scripted")), replace(source, files=("train.jsonl",))
    )
    assert "has it not" in on_hub["error"] and "has it not" in local["error"]
    assert [text for _, text in named["documents"]] == ["a"]
    assert not mark.exists()


def test_without_a_network_it_is_told_what_to_bring(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    source = Source("web", dataset="someone/web", config="main", columns=("text",))
    for answer in _read_at(address, tmp_path, source, replace(source, files=("train/*.parquet",))):
        error = answer["error"]
        assert error.startswith("someone/web, config main, split train") and "the hub does not answer" in error
        assert "put its files into DIR/web and use --local DIR" in error


def test_a_local_folder_laid_out_as_on_the_hub_is_streamed(tmp_path: Path) -> None:
    folder = _repository(tmp_path)
    for source in (
        Source("web", dataset=str(folder), config="more", columns=("text",)),
        Source("web", dataset=str(folder), files=("more/train-*.parquet",), columns=("text",)),
    ):
        units = find_units(source, None, 0, None)
        documents = [d for unit in units for d in read_unit(unit, source, Skipped())]
        assert len(units) == 3 and len({d.id for d in documents}) == 12
        assert sorted(d.text for d in documents) == [f"more {i} {j}" for i in range(3) for j in range(4)]
        before = describe_units(units)
        (folder / "more" / "train-00000-of-00003.parquet").touch()
        assert describe_units(units) == before
        pq.write_table(pa.table({"text": ["other"], "id": ["x"]}), folder / "more" / "train-00000-of-00003.parquet")
        assert describe_units(units) != before
        _repository(tmp_path / "again").joinpath("more", "train-00000-of-00003.parquet").replace(
            folder / "more" / "train-00000-of-00003.parquet"
        )
        assert describe_units(units) == before
        shutil.rmtree(tmp_path / "again")


def test_local_files_may_lie_on_s3(tmp_path: Path, s3) -> None:
    folder = _repository(tmp_path)
    client = s3.client()
    client.create_bucket(Bucket="corpora")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(path), "corpora", f"all/web/{path.relative_to(folder).as_posix()}")
    source = Source("web", dataset="someone/web", config="main", columns=("text",))
    there, here = (find_units(source, place, 0, None) for place in ("s3://corpora/all", str(tmp_path / "someone")))
    assert [unit.name for unit in there] == [unit.name for unit in here] and len(there) == 3
    read = [[d for unit in units for d in read_unit(unit, source, Skipped())] for units in (there, here)]
    assert read[0] == read[1] and len(read[0]) == 12
    assert describe_units(there) == describe_units(here)
    with pytest.raises(InputError, match="s3://corpora/none/web: it holds no"):
        find_units(source, "s3://corpora/none", 0, None)
    client.put_object(Bucket="corpora", Key="all/web/main/train-00001-of-00003.parquet", Body=b"PAR1")
    with pytest.raises(InputError, match=r"s3://corpora/all/web/main/train-00001-of-00003\.parquet: it cannot be read"):
        [d for unit in there for d in read_unit(unit, source, Skipped())]
