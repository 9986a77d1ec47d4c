"""Mixtures: the shipped ones, budgets and shares, and every way of writing one wrong."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_prep.mixture import SHIPPED, folder_mixture, largest_remainder, load_mixture, shipped_mixtures
from data_prep.templates import TEMPLATES
from olmoe_parrots.errors import InputError

WORLD_KNOWLEDGE = {"trivia_qa", "nq_open", "hotpot_qa", "web_questions", "complex_web_questions"}
COMMONSENSE = {
    *("arc_challenge", "arc_easy", "commonsense_qa", "hellaswag"),
    *("openbook_qa", "piqa", "social_i_qa", "winogrande"),
}
VALID = {
    "tokens": 1000,
    "validation": {"sequences": 3, "sequence_length": 16},
    "sources": [
        {"name": "web", "share": 0.75, "dataset": "someone/web", "columns": ["text"]},
        {"name": "notes", "share": 0.25, "kind": "folder", "path": "notes"},
    ],
}


def _write(folder: Path, content: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def _changed(**changes: object) -> dict:
    """VALID with top-level keys changed, or keys of its first source given as source_KEY; None takes a key away."""
    mixture: dict = {**VALID, "sources": [dict(source) for source in VALID["sources"]]}
    for key, value in changes.items():
        target = mixture["sources"][0] if key.startswith("source_") else mixture
        target[key.removeprefix("source_")] = value
        if value is None:
            del target[key.removeprefix("source_")]
    return mixture


def test_the_shipped_mixtures_name_the_papers_sources() -> None:
    assert shipped_mixtures() == ["math", "natural_language", "quickstart"]
    natural = load_mixture("natural_language")
    names = {source.name for source in natural.sources}
    assert names == {"fineweb_edu", "cosmopedia", "wikipedia"} | WORLD_KNOWLEDGE | COMMONSENSE
    maths = load_mixture("math")
    proof_pile = {"proof_pile_arxiv", "proof_pile_open_web_math", "proof_pile_algebraic_stack"}
    assert {source.name for source in maths.sources} == proof_pile | {"open_math_instruct", "meta_math_qa"}
    for mixture in (natural, maths):
        assert mixture.tokens == 65_000_000_000 and mixture.tokenizer == "mistral-v1"
        assert (mixture.validation.sequences, mixture.validation.sequence_length) == (5000, 2048)
        assert sum(filter(None, mixture.budgets().values())) == mixture.tokens
        assert sum(mixture.validation_sequences().values()) == 5000
    draw = next(source.draw for source in maths.sources if source.name == "open_math_instruct")
    assert draw is not None and draw.column == "dataset" and draw.counts == {"math": 5000, "gsm8k": 1319}
    assert len(next(source.configs for source in natural.sources if source.name == "cosmopedia")) == 8


def test_no_source_of_the_paper_is_read_by_a_script_or_from_another_split() -> None:
    for name in ("natural_language", "math"):
        for source in load_mixture(name).sources:
            assert source.kind == "dataset" and source.dataset and "/" in source.dataset and source.split == "train"
            assert set(TEMPLATES[source.template].columns) <= set(source.columns)
            assert all("train" in pattern or "395K" in pattern for pattern in source.files)


@pytest.mark.parametrize("name", ["natural_language", "math"])
def test_every_number_of_the_papers_mixtures_carries_its_mark(name: str) -> None:
    path = Path(SHIPPED, f"{name}.yaml")
    numbered = re.compile(r"^\s*(tokens|seed|validation|shard_megabytes|decontamination|share|epochs|draw): ?.*\d")
    lines = [line for line in path.read_text().splitlines() if numbered.match(line)]
    assert len(lines) > 10
    assert [line for line in lines if not re.search(r"# (seed|assumed|a second source)", line)] == []


def test_a_source_that_is_off_is_switched_on_by_one_edit(tmp_path: Path) -> None:
    text = Path(SHIPPED, "math.yaml").read_text()
    before, after = text.split("name: gsm8k\n    enabled: false")
    mixture = load_mixture(_write(tmp_path, f"{before}name: gsm8k\n    enabled: true{after}"))
    shares = {source.name: source.share for source in mixture.sources}
    assert shares["gsm8k"] == pytest.approx(0.00003 / 1.00003) and math.fsum(shares.values()) == pytest.approx(1)
    assert shares["proof_pile_arxiv"] == pytest.approx(0.52 / 1.00003) and "svamp" not in shares


@pytest.mark.parametrize("name", ["natural_language", "math", "quickstart"])
def test_what_a_manifest_keeps_of_a_mixture_loads_as_that_mixture(tmp_path: Path, name: str) -> None:
    mixture = load_mixture(name)
    for kept in (mixture, mixture.scaled(1_000_000)):
        assert load_mixture(_write(tmp_path, kept.as_dict())) == kept


def test_defaults_and_paths(tmp_path: Path) -> None:
    mixture = load_mixture(_write(tmp_path, VALID))
    assert mixture.name == "mine" and mixture.seed == 0 and mixture.decontamination.mode == "off"
    assert mixture.budgets() == {"web": 750, "notes": 250}
    assert mixture.sources[1].path == str(tmp_path / "notes")
    assert mixture.scaled(100).budgets() == {"web": 75, "notes": 25}
    assert json.loads(json.dumps(mixture.as_dict())) == mixture.as_dict()


def test_sources_with_tokens_and_sources_taken_whole(tmp_path: Path) -> None:
    tokens = _changed(tokens=None, source_share=None, source_tokens=300)
    tokens["sources"][1] = {"name": "notes", "tokens": 100, "kind": "folder", "path": "notes"}
    mixture = load_mixture(_write(tmp_path, tokens))
    assert mixture.tokens == 400 and mixture.budgets() == {"web": 300, "notes": 100}
    assert mixture.validation_sequences() == {"web": 2, "notes": 1}
    assert mixture.scaled(40).budgets() == {"web": 30, "notes": 10}
    assert load_mixture(_write(tmp_path, mixture.as_dict())) == mixture
    whole = _changed(tokens=None, source_share=None, validation={"share": 0.1})
    del whole["sources"][1]["share"]
    mixture = load_mixture(_write(tmp_path, whole))
    assert mixture.tokens is None and mixture.budgets() == {"web": None, "notes": None}
    assert mixture.validation_sequences() == {}
    with pytest.raises(InputError, match="taken whole"):
        mixture.scaled(10)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokesn": 5}, "tokesn: there is no such key; did you mean tokens?"),
        ({"source_revison": "x"}, r"sources\[web\]: revison: there is no such key; did you mean revision?"),
        ({"tokens": "many"}, "tokens: 'many' is not a whole number"),
        ({"tokens": -5}, "tokens: -5 cannot be used; give a whole number of at least 1"),
        ({"tokens": True}, "tokens: True is not a whole number"),
        ({"tokens": 1.5}, "tokens: 1.5 is not a whole number"),
        ({"tokens": None}, "tokens: it is missing"),
        ({"seed": -1}, "seed: -1 cannot be used"),
        ({"source_share": 0.5}, "the shares add up to 0.75"),
        ({"source_share": -0.1}, r"sources\[web\]: share: -0.1 cannot be used"),
        ({"source_share": math.nan}, "share: nan cannot be used"),
        ({"source_share": None}, "some sources name a share and some tokens or neither"),
        ({"source_tokens": 5}, "give a share or tokens, not both"),
        ({"source_name": "../up"}, "name: '../up' cannot be used; use a-z, 0-9 and underscores only"),
        ({"source_name": "a/b"}, "name: 'a/b' cannot be used"),
        ({"source_name": "Web"}, "name: 'Web' cannot be used"),
        ({"source_name": "notes"}, "name: 'notes' cannot be used; give every source a name of its own"),
        ({"source_name": None}, "name: it is missing"),
        ({"source_dataset": None}, "dataset: it is missing"),
        ({"source_template": "titel_text"}, "template: 'titel_text' cannot be used; did you mean title_text?"),
        ({"source_template": "trivia_qa"}, "columns: .* add question, answer for template trivia_qa"),
        ({"source_files": ["../x.jsonl"]}, "files: '../x.jsonl' cannot be used"),
        ({"source_files": "x.jsonl"}, "files: 'x.jsonl' is not a list of strings"),
        ({"source_epochs": 0}, "epochs: 0 cannot be used"),
        ({"source_enabled": "yes"}, "enabled: 'yes' is not true or false"),
        ({"source_kind": "python_docs"}, "path: it is missing; a source of kind python_docs needs it"),
        ({"source_kind": "web"}, "kind: 'web' cannot be used"),
        ({"source_draw": {"column": "c", "counts": {"a": -1}}}, "counts: a: -1 cannot be used"),
        ({"source_draw": {"counts": {"a": 1}}}, "column: it is missing"),
        ({"tokenizer": "gpt2"}, "tokenizer: 'gpt2' cannot be used; use mistral-v1, olmo or the path"),
        ({"validation": {"sequences": 3, "share": 0.1}}, "validation: it names both or neither"),
        ({"validation": {}}, "validation: it names both or neither"),
        ({"validation": {"share": 1.5}}, "share: 1.5 cannot be used"),
        ({"validation": 5}, "validation: 5 is not a mapping"),
        ({"shard_megabytes": 0}, "shard_megabytes: 0 cannot be used"),
        ({"decontamination": {"mode": "on"}}, "mode: 'on' cannot be used; .*use one of off, report, drop"),
        ({"decontamination": {"ngram": 0}}, "ngram: 0 cannot be used"),
        ({"sources": []}, "sources: the list is empty"),
        ({"sources": None}, "sources: it is missing"),
        ({"sources": ["web"]}, r"sources\[0\]: 'web' is not a mapping"),
    ],
)
def test_what_is_wrong_is_told_with_file_key_value_and_remedy(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        load_mixture(_write(tmp_path, _changed(**changes)))
    assert str(error.value).startswith(str(tmp_path / "mine.yaml")) and "; " in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tokens: 1\nseed: 1\ntokens: 2\n", "'tokens' stands twice"),
        ("sources:\n- {name: a, name: b}\n", "'name' stands twice"),
        ("tokens: [", "not valid YAML"),
        ("- 1\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("? [a]\n: 1\n", "cannot be a key"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("[" * 5000, "nested too deeply|not valid YAML"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_mixture(_write(tmp_path, text))


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or mixture; .*natural_language"):
        load_mixture(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml: it cannot be read"):
        load_mixture(str(tmp_path / "latin.yaml"))


def test_words_and_numbers_are_read_as_they_look(tmp_path: Path) -> None:
    text = yaml.safe_dump(_changed(tokens=None)) + "tokens: 65_000_000_000\ndecontamination: {mode: off}\n"
    mixture = load_mixture(_write(tmp_path, text.replace("share: 0.75", "share: 7.5e-1\n  revision: 2023-11-01")))
    assert mixture.tokens == 65_000_000_000 and mixture.decontamination.mode == "off"
    assert mixture.sources[0].share == 0.75 and mixture.sources[0].revision == "2023-11-01"


WEIGHTS = st.lists(st.floats(1e-9, 1), min_size=1, max_size=30)


@given(st.integers(0, 10**12), WEIGHTS)
def test_parts_add_up_and_none_is_off_by_one_or_more(total: int, weights: list[float]) -> None:
    parts = largest_remainder(total, {str(i): weight for i, weight in enumerate(weights)})
    assert sum(parts.values()) == total
    whole = sum(map(Fraction, weights))
    for i, weight in enumerate(weights):  # floats carry 53 bits, hence the second term
        assert abs(parts[str(i)] - total * Fraction(weight) / whole) < 1 + total * 1e-14


def test_a_folder_has_a_source_for_each_folder_in_it(tmp_path: Path) -> None:
    for name in ("a.txt", "My Notes/b.md", "my-notes/c.jsonl", "Web/deep/d.txt", ".hidden/e.txt", "empty/f.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    mixture = folder_mixture(tmp_path, seed=3)
    found = {source.name: Path(source.path or "").name for source in mixture.sources}
    assert found == {"documents": tmp_path.name, "my_notes": "My Notes", "my_notes_2": "my-notes", "web": "Web"}
    assert mixture.budgets() == dict.fromkeys(found) and mixture.validation.share == 0.02 and mixture.seed == 3
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no documents"):
        folder_mixture(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder"):
        folder_mixture(tmp_path / "nowhere")
