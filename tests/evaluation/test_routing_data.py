"""The sequences that are counted: which ones, and the source, part and frequency of each token."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from dataset_maker import EOS, PAD, VOCABULARY, draw_documents, write_dataset
from s3_server import S3Server
from synthetic_data import TASKS, make_data

from olmoe_parrots.config import ModelConfig
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.routing_data import Sample, frequency_bands, open_split
from olmoe_parrots.synthetic.build import load_task
from olmoe_parrots.synthetic.task import PAD as TASK_PAD

LENGTH = 16
DOCUMENTS = {
    "validation/web-00000.npy": draw_documents(20, 20, 1),  # 420 tokens, 26 sequences
    "validation/web-00001.npy": draw_documents(12, 30, 2),  # 372 tokens, 23 sequences
    "validation/wiki-00000.npy": draw_documents(10, 31, 3),  # 320 tokens, 20 sequences
    "train/web-00000.npy": draw_documents(1, 5, 4),
}
MODEL = {"max_sequence_length": LENGTH, "eos_token_id": EOS, "pad_token_id": PAD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("text") / "data", DOCUMENTS)


def sequences_by_hand(folder: Path) -> list[tuple[str, list[int]]]:
    """All whole sequences of the validation files, one file after the other, with their sources."""
    found = []
    for name in sorted(DOCUMENTS):
        if name.startswith("validation/"):
            ids = np.fromfile(folder / name, dtype="<u2").tolist()
            source = name.split("/")[1].split("-")[0]
            found += [(source, ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return found


def told(sample: Sample) -> list[tuple[str, list[int]]]:
    return [(sample.sources[s], row) for s, row in zip(sample.source_R, sample.tokens_RS.tolist(), strict=True)]


def test_all_sequences_with_their_sources(folder: Path) -> None:
    sample = open_split(str(folder), None).sample(LENGTH, None, 1000)
    assert told(sample) == sequences_by_hand(folder)
    assert sample.counted_RS.all()
    assert sample.part_RS is None


@pytest.mark.parametrize("most, sequences", [(1000, 23), (23, None)])
def test_fewer_are_spread_evenly(folder: Path, most: int, sequences: int | None) -> None:
    there = sequences_by_hand(folder)
    sample = open_split(str(folder), "validation").sample(LENGTH, sequences, most)
    assert told(sample) == there[::3]
    assert len(there) == 69


def test_sequences_on_s3_are_those_on_disk(folder: Path, s3: S3Server) -> None:
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().create_bucket(Bucket=bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            s3.client().upload_file(str(path), bucket, f"data/{path.relative_to(folder).as_posix()}")
    split = open_split(f"s3://{bucket}/data", None)
    split.check_fit(ModelConfig(vocab_size=VOCABULARY, **MODEL))
    assert told(split.sample(LENGTH, 23, 1000)) == sequences_by_hand(folder)[::3]


def test_what_a_split_has_not_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--sequences: 70 were asked for and validation has 69 of 16 tokens"):
        open_split(str(folder), "validation").sample(LENGTH, 70, 1000)
    with pytest.raises(InputError, match="it has no split test; give --split train or validation"):
        open_split(str(folder), "test")


def test_a_model_of_another_vocabulary_is_refused(folder: Path) -> None:
    split = open_split(str(folder), "validation")
    split.check_fit(ModelConfig(vocab_size=VOCABULARY, **MODEL))
    with pytest.raises(InputError, match="vocabulary_size of its tokenizer test is 128 and the model's is 64"):
        split.check_fit(ModelConfig(vocab_size=64, **MODEL))


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", DOCUMENTS)
    path = folder / "validation" / "wiki-00000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"wiki-00000.npy: it has 638 bytes and its manifest says 640"):
        open_split(str(folder), "validation").check_fit(ModelConfig(vocab_size=VOCABULARY, **MODEL))


def test_the_parts_of_a_phone_book(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "book", "phone_book", size=64, test_size=20)
    sample = open_split(str(folder), "train").sample(9, None, 1000)
    assert sample.part_RS is not None
    names = [sample.parts[part] for part in sample.part_RS[7]]
    expected = ["name 1", "name 2", "name 3", ":", "number 1", "number 2", "number 3", "number 4", "<eos>"]
    assert names == expected
    task, queries = load_task(folder)
    test = open_split(str(folder), None).sample(9, None, 1000)
    assert test.part_RS is not None
    assert [test.parts[part] for part in test.part_RS[7]] == expected[:-1]
    assert np.array_equal(test.tokens_RS[:, : task.prompt_length], queries.prompts_QT)
    assert np.array_equal(test.tokens_RS[:, task.prompt_length :], queries.answers_QT)


def test_the_parts_of_a_shortest_path(tmp_path: Path) -> None:
    """Read from the words of each row: what is before `?`, between `?` and `:`, and after it up to the end."""
    folder = make_data(tmp_path / "paths", "shortest_path", size=64, test_size=50)
    task = TASKS["shortest_path"]
    sample = open_split(str(folder), "test").sample(task.row_length, None, 1000)
    assert sample.part_RS is not None
    lengths = set()
    for tokens, counted, parts in zip(sample.tokens_RS, sample.counted_RS, sample.part_RS, strict=True):
        words = task.vocabulary.decode(tokens).split()
        names = [sample.parts[part] for part, here in zip(parts, counted, strict=True) if here]
        query, colon, end = words.index("?"), words.index(":"), words.index("<eos>")
        edges = ["edge ;" if word == ";" else f"edge, vertex {i % 3 + 1}" for i, word in enumerate(words[:query])]
        path = [f"path {place + 1}" for place in range(end - colon - 1)]
        assert names == [*edges, "?", "source", "target", ":", *path, "<eos>"]
        assert (tokens[end + 1 :] == TASK_PAD).all()
        lengths.add(end)
    assert len(lengths) > 1, "paths of several lengths"


def test_bands_of_frequency() -> None:
    """One id of a third of all tokens, twenty of two each, and twenty of one each: 90 tokens, nine a band."""
    counts = np.array([1] * 20 + [30] + [2] * 20)
    bands = frequency_bands(counts)
    ranked = sorted(range(41), key=lambda i: -counts[i])
    before = 0
    for i in ranked:
        assert bands[i] == int((before + counts[i] / 2) / 9)
        before += int(counts[i])
    assert bands[20] == 1, "its middle is token 15 of 90"
    assert set(bands.tolist()) == {1, 3, 4, 5, 6, 7, 8, 9}, "beside it two bands are empty"


def test_bands_of_equal_ids_are_of_equal_mass() -> None:
    bands = frequency_bands(np.full(50, 7))
    assert np.bincount(bands).tolist() == [5] * 10
