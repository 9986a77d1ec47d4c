"""Bad input to training on a synthetic task: one line, before anything is written."""

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from synthetic_data import make_data

from olmoe_parrots.errors import InputError
from olmoe_parrots.train import main

CONFIG = REPOSITORY / "configs" / "synthetic" / "tiny_moe.yaml"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "book", "phone_book")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "paths", "shortest_path", test_size=8)


def refusal(config: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        main([str(config), *[f"--{override}" for override in overrides]])
    line = str(refused.value)
    assert "\n" not in line and ";" in line
    return line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # rows of 3 + 1 + 4 + 1 tokens
        ("model.max_sequence_length=8", ["manifest.json", "rows are of 9 tokens", "sequences of 8", "to 9"]),
        ("model.max_sequence_length=18", ["rows are of 9 tokens", "sequences of 18"]),
        ("data.label_mask_paths=null", ["data.label_mask_paths", "train/phone_book-00000.npy", "every token"]),
        ("model.vocab_size=40", ["39", "40"]),
        ("device_eval_batch_size=0", ["device_eval_batch_size=0"]),
        ("evaluators=[{label: x, type: synthetic, folder: /nowhere}]", ["/nowhere", "manifest"]),
        ("evaluators=[{label: x, type: synthetik}]", ["synthetik", "synthetic"]),
    ],
)
def test_a_bad_option_is_named(book: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    line = refusal(CONFIG, f"data_folder={book}", f"save_folder={tmp_path / 'run'}", override)
    for word in words:
        assert word in line, line
    assert not (tmp_path / "run").exists()


def test_queries_of_another_task(book: Path, paths: Path, tmp_path: Path) -> None:
    options = f"data_folder={book}", f"save_folder={tmp_path / 'run'}"
    line = refusal(CONFIG, *options, f"evaluators=[{{label: other, type: synthetic, folder: {paths}}}]")
    # 15 edges of 3 tokens, 4 of the question, 11 of the answer
    assert "evaluator other: its queries and answers take 60 tokens, the model's sequences 9" in line
    options = f"data_folder={paths}", f"save_folder={tmp_path / 'run'}"
    line = refusal(CONFIG, *options, f"evaluators=[{{label: other, type: synthetic, folder: {book}}}]")
    assert "evaluator other: the vocab_size of the task is 39 and the model's is 15" in line


def test_data_of_no_synthetic_task(shards: Path, tmp_path: Path) -> None:
    """The tokenizer's size is in every manifest, the length of the rows is not."""
    line = refusal(CONFIG, f"data_folder={shards}", f"save_folder={tmp_path / 'run'}")
    assert f"{shards}/manifest.json: it has no mixture." in line and "--data_folder" in line


def test_no_data(tmp_path: Path) -> None:
    assert f"{tmp_path}/none/manifest.json: there is no manifest" in refusal(CONFIG, f"data_folder={tmp_path}/none")
    assert "it names no folder" in refusal(CONFIG, "data_folder=null")


def test_a_row_is_a_sequence_whatever_the_config(book: Path, tmp_path: Path) -> None:
    """In a config that reads nothing from the manifest."""
    fields = yaml.safe_load(CONFIG.read_text())
    fields["data_folder"], fields["run_name"], fields["evaluators"] = str(book), "x", []
    of_task = {"max_sequence_length": 16, "vocab_size": 39, "embedding_size": 39, "eos_token_id": 1, "pad_token_id": 0}
    fields["model"] |= of_task
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(fields))
    assert "set model.max_sequence_length to 9" in refusal(config, f"save_folder={tmp_path / 'run'}")
