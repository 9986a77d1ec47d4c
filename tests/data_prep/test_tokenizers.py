"""The two built-in tokenizers and one's own."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, models

from data_prep.tokenizers import write_tokenizer
from olmoe_parrots.errors import InputError


def _own(path: Path, **changes) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<eos>": 5}, unk_token="a"))
    path.write_text(json.dumps(json.loads(tokenizer.to_str()) | changes))
    return path


def test_mistral_v1_equals_sentencepiece(tmp_path: Path) -> None:
    import mistral_common
    import sentencepiece

    info = write_tokenizer("mistral-v1", tmp_path / "tokenizer.json")
    assert (info.vocabulary_size, info.eos_token_id, info.pad_token_id) == (32_000, 2, 0)
    model = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [topics[name] for name in ("assignment", "class", "formatstrings", "yield")]
    texts += ["Größe 漢字 🙂 \u200b x\u0301", "a  b   c\n\n\td", "1234567890"]
    assert sum(map(len, texts)) > 20_000
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text)
        assert not {info.eos_token_id, info.pad_token_id} & set(ids)


def test_mistral_v1_is_written_the_same_each_time(tmp_path: Path) -> None:
    first = write_tokenizer("mistral-v1", tmp_path / "a.json")
    assert write_tokenizer("mistral-v1", tmp_path / "b.json") == first


def test_olmo_is_the_file_of_the_package(tmp_path: Path) -> None:
    info = write_tokenizer("olmo", tmp_path / "tokenizer.json")
    assert (info.vocabulary_size, info.eos_token_id, info.pad_token_id) == (50_280, 50_279, 1)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.id_to_token(50_279) == "<|endoftext|>" and tokenizer.id_to_token(1) == "<|padding|>"


def test_an_own_tokenizer_counts_up_to_its_largest_id(tmp_path: Path) -> None:
    path = _own(tmp_path / "own.json")
    info = write_tokenizer(str(path), tmp_path / "tokenizer.json", eos=5)
    assert (info.name, info.vocabulary_size, info.eos_token_id, info.pad_token_id) == ("own.json", 6, 5, 5)
    assert (tmp_path / "tokenizer.json").read_bytes() == path.read_bytes()


def test_tokenizers_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "tokenizer.json"
    own = str(_own(tmp_path / "own.json"))
    (tmp_path / "bad.json").write_text("{}")
    truncating = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    short = str(_own(tmp_path / "short.json", truncation=truncating))
    for name, ids, said in [
        ("gpt5", {}, "neither a known tokenizer nor a file"),
        (str(tmp_path / "bad.json"), {"eos": 1}, r"bad\.json: it is not a tokenizer"),
        (own, {}, "--eos: it is needed"),
        (own, {"eos": 6}, "outside the vocabulary of 6"),
        (own, {"eos": 5, "pad": -1}, "--pad: -1"),
        (short, {"eos": 5}, "truncation would change documents"),
        ("olmo", {"eos": 5}, "has its own"),
    ]:
        with pytest.raises(InputError, match=said):
            write_tokenizer(name, target, **ids)
    assert not target.exists()
