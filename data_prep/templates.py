"""How a row of each dataset family becomes a document: the one place where this is decided.

A template takes a row (column names to values, as Hugging Face `datasets` gives them) and returns the document's text
and metadata. Every choice below is assumed: the paper does not say how rows were written out.

    text                  FineWeb-edu, Cosmopedia, Proof-Pile 2: the column `text` as it is
    title_text            Wikipedia: title, blank line, text
    trivia_qa             TriviaQA: Question: … / Answer: answer.value
    nq_open               Natural Questions: Question: … / Answer: the first of the listed answers
    hotpot_qa             HotpotQA: Question: … / Answer: answer (the supporting paragraphs are not used)
    web_questions         WebQuestions: Question: … / Answer: the first of the listed answers
    complex_web_questions ComplexWebQuestions: Question: … / Answer: the first answer, without its aliases
    multiple_choice       ARC-C, ARC-E, CommonsenseQA: Question: … / Answer: the text of the right choice
    openbook_qa           OpenBookQA: the same with question_stem
    hellaswag             HellaSwag: activity: context and its true ending, as running text
    piqa                  PIQA: Question: goal / Answer: the right solution
    social_i_qa           SocialIQA: Question: context and question / Answer: the text of the right answer
    winogrande            WinoGrande: the sentence with the right option filled in
    open_math_instruct    OpenMathInstruct-1: Question: … / Answer: generated_solution, rows marked correct only
    meta_math             MetaMathQA: Question: query / Answer: response
    gsm8k                 GSM8K: Question: … / Answer: answer, with its <<…>> and #### marks
    math                  MATH: Question: problem / Answer: solution
    svamp                 SVAMP: Question: Body and Question / Answer: Answer

"/" is a line break. Multiple choice is written as the full text of the right choice and the other choices are left out:
that is the string whose likelihood the evaluation ranks, and letters would teach a format rather than the fact. Where
several answers are accepted the first is taken, since F1 counts the best match with a single accepted answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rendered = tuple[str, dict[str, Any]]


class TemplateError(ValueError):
    """A row that cannot become a document; the message is the reason that is counted."""


@dataclass(frozen=True)
class Template:
    """A template: `columns` are those it needs; calling it makes (text, metadata) or raises TemplateError."""

    columns: tuple[str, ...]
    render: Callable[[Row], Rendered]

    def __call__(self, row: Row) -> Rendered:
        return self.render(row)


TEMPLATES: dict[str, Template] = {}


def _template(name: str, *columns: str) -> Callable[[Callable[[Row], Rendered]], Callable[[Row], Rendered]]:
    def register(render: Callable[[Row], Rendered]) -> Callable[[Row], Rendered]:
        TEMPLATES[name] = Template(columns, render)
        return render

    return register


@_template("text", "text")
def plain_text(row: Row) -> Rendered:
    """{"text": "Tides follow the moon."} becomes "Tides follow the moon."."""
    return _text(row, "text"), {}


@_template("title_text", "title", "text")
def title_text(row: Row) -> Rendered:
    """{"title": "Tide", "text": "Tides are …"} becomes "Tide\\n\\nTides are …"."""
    return f"{_text(row, 'title').strip()}\n\n{_text(row, 'text')}", {}


@_template("trivia_qa", "question", "answer")
def trivia_qa(row: Row) -> Rendered:
    """{"question": "Who wrote Emma?", "answer": {"value": "Jane Austen", …}} becomes
    "Question: Who wrote Emma?\\nAnswer: Jane Austen"."""
    answer = row.get("answer")
    if not isinstance(answer, dict):
        raise TemplateError("no answer")
    return _question_answer(_text(row, "question"), _text(answer, "value", "answer"))


@_template("nq_open", "question", "answer")
def nq_open(row: Row) -> Rendered:
    """{"question": "who wrote emma", "answer": ["Jane Austen", "Austen"]} becomes
    "Question: who wrote emma?\\nAnswer: Jane Austen". Its questions carry no question mark, so one is added."""
    return _question_answer(_asked(_text(row, "question")), _first(row.get("answer")))


@_template("hotpot_qa", "question", "answer")
def hotpot_qa(row: Row) -> Rendered:
    """{"question": "Is Emma older than Persuasion?", "answer": "yes"} becomes
    "Question: Is Emma older than Persuasion?\\nAnswer: yes"."""
    return _question_answer(_text(row, "question"), _text(row, "answer"))


@_template("web_questions", "question", "answers")
def web_questions(row: Row) -> Rendered:
    """{"question": "who wrote emma?", "answers": ["Jane Austen"]} becomes
    "Question: who wrote emma?\\nAnswer: Jane Austen"."""
    return _question_answer(_text(row, "question"), _first(row.get("answers")))


@_template("complex_web_questions", "question", "answers")
def complex_web_questions(row: Row) -> Rendered:
    """{"question": "Who wrote Emma?", "answers": [{"answer": "Jane Austen", "aliases": ["Austen"], …}]} becomes
    "Question: Who wrote Emma?\\nAnswer: Jane Austen". The answers may also be a dict of lists."""
    answers = row.get("answers")
    if isinstance(answers, dict):
        answers = answers.get("answer")
    elif isinstance(answers, list):
        answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    return _question_answer(_text(row, "question"), _first(answers))


@_template("multiple_choice", "question", "choices", "answerKey")
def multiple_choice(row: Row) -> Rendered:
    """{"question": "What pulls the tides?", "choices": {"text": ["wind", "the moon"], "label": ["A", "B"]},
    "answerKey": "B"} becomes "Question: What pulls the tides?\\nAnswer: the moon"."""
    return _question_answer(_text(row, "question"), _labelled_choice(row))


@_template("openbook_qa", "question_stem", "choices", "answerKey")
def openbook_qa(row: Row) -> Rendered:
    """{"question_stem": "Tides follow", "choices": {"text": ["wind", "the moon"], "label": ["A", "B"]},
    "answerKey": "B"} becomes "Question: Tides follow\\nAnswer: the moon"."""
    return _question_answer(_text(row, "question_stem", "question"), _labelled_choice(row))


@_template("hellaswag", "activity_label", "ctx_a", "ctx_b", "endings", "label")
def hellaswag(row: Row) -> Rendered:
    """{"activity_label": "Sailing", "ctx_a": "A boat leaves [step] the port.", "ctx_b": "the crew", "endings":
    ["sets sail.", "sleeps."], "label": "0"} becomes "Sailing: A boat leaves the port. The crew sets sail.".

    The marks in brackets that its WikiHow part carries are taken out, as the evaluation does.
    """
    second = row.get("ctx_b") or ""
    if not isinstance(second, str):
        raise TemplateError("no context")
    context = f"{_text(row, 'ctx_a', 'context')} {second[:1].upper()}{second[1:]}".strip()
    ending = _chosen(row.get("endings"), row.get("label"), first=0)
    text = f"{_text(row, 'activity_label', 'context')}: {context} {ending}".replace(" [title]", ". ")
    return re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]", "", text)).strip(), {}


@_template("piqa", "goal", "sol1", "sol2", "label")
def piqa(row: Row) -> Rendered:
    """{"goal": "Dry a shirt", "sol1": "Hang it up.", "sol2": "Wet it.", "label": 0} becomes
    "Question: Dry a shirt\\nAnswer: Hang it up."."""
    answer = _chosen([row.get("sol1"), row.get("sol2")], row.get("label"), first=0)
    return _question_answer(_text(row, "goal", "question"), answer)


@_template("social_i_qa", "context", "question", "answerA", "answerB", "answerC", "label")
def social_i_qa(row: Row) -> Rendered:
    """{"context": "Kim missed the bus.", "question": "How does Kim feel?", "answerA": "late", "answerB": "glad",
    "answerC": "full", "label": "1"} becomes "Question: Kim missed the bus. How does Kim feel?\\nAnswer: late"."""
    answer = _chosen([row.get("answerA"), row.get("answerB"), row.get("answerC")], row.get("label"), first=1)
    return _question_answer(f"{_text(row, 'context').strip()} {_text(row, 'question').strip()}", answer)


@_template("winogrande", "sentence", "option1", "option2", "answer")
def winogrande(row: Row) -> Rendered:
    """{"sentence": "The cup fell off the shelf as _ was smooth.", "option1": "the cup", "option2": "the shelf",
    "answer": "2"} becomes "The cup fell off the shelf as the shelf was smooth."."""
    sentence = _text(row, "sentence")
    if sentence.count("_") != 1:
        raise TemplateError("no blank in the sentence")
    return sentence.replace("_", _chosen([row.get("option1"), row.get("option2")], row.get("answer"), first=1)), {}


@_template("open_math_instruct", "question", "generated_solution", "expected_answer", "is_correct", "dataset")
def open_math_instruct(row: Row) -> Rendered:
    """{"question": "1 + 1?", "generated_solution": "It is \\\\boxed{2}.", "expected_answer": "2", "is_correct": true,
    "dataset": "gsm8k"} becomes "Question: 1 + 1?\\nAnswer: It is \\\\boxed{2}.", with question, expected_answer and
    dataset as metadata, from which the items for the generalization gap are drawn."""
    if row.get("is_correct") is not True:
        raise TemplateError("solution not marked correct")
    metadata = {key: row.get(key) for key in ("question", "expected_answer", "dataset")}
    return _question_answer(_text(row, "question"), _text(row, "generated_solution", "answer"))[0], metadata


@_template("meta_math", "query", "response")
def meta_math(row: Row) -> Rendered:
    """{"query": "1 + 1?", "response": "1 + 1 = 2. The answer is: 2"} becomes
    "Question: 1 + 1?\\nAnswer: 1 + 1 = 2. The answer is: 2"."""
    return _question_answer(_text(row, "query", "question"), _text(row, "response", "answer"))


@_template("gsm8k", "question", "answer")
def gsm8k(row: Row) -> Rendered:
    """{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\\n#### 2"} becomes
    "Question: 1 + 1?\\nAnswer: 1 + 1 = <<1+1=2>>2\\n#### 2"."""
    return _question_answer(_text(row, "question"), _text(row, "answer"))


@_template("math", "problem", "solution")
def math(row: Row) -> Rendered:
    """{"problem": "Find $1+1$.", "solution": "It is $\\\\boxed{2}$."} becomes
    "Question: Find $1+1$.\\nAnswer: It is $\\\\boxed{2}$."."""
    return _question_answer(_text(row, "problem", "question"), _text(row, "solution", "answer"))


@_template("svamp", "Body", "Question", "Answer")
def svamp(row: Row) -> Rendered:
    """{"Body": "Kim has 2 cups.", "Question": "How many cups?", "Answer": "2.0"} becomes
    "Question: Kim has 2 cups. How many cups?\\nAnswer: 2". A whole number loses its ".0"."""
    question = f"{_text(row, 'Body', 'question').strip()} {_text(row, 'Question', 'question').strip()}"
    answer = row.get("Answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    return _question_answer(question, re.sub(r"\.0+$", "", _text({"answer": answer}, "answer").strip()))


def _text(row: Row, column: str, called: str | None = None) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise TemplateError(f"no {called or column}")
    if not value.strip():
        raise TemplateError(f"empty {called or column}")
    return value


def _question_answer(question: str, answer: str) -> Rendered:
    return f"Question: {question.strip()}\nAnswer: {answer.strip()}", {}


def _asked(question: str) -> str:
    question = question.strip()
    return question if question.endswith("?") else f"{question}?"


def _first(answers: Any) -> str:
    for answer in answers if isinstance(answers, list) else ():
        if isinstance(answer, str) and answer.strip():
            return answer
    raise TemplateError("no answer")


def _chosen(options: Any, label: Any, first: int) -> str:
    """The option that the label, a number or its digits, counts from `first`."""
    if not isinstance(options, list):
        raise TemplateError("no options")
    if isinstance(label, str):
        if not label.strip():
            raise TemplateError("no label")
        if not re.fullmatch(r"-?[0-9]{1,3}", label.strip()):
            raise TemplateError("label is not a number")
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool):
        raise TemplateError("no label")
    if not first <= label < first + len(options):
        raise TemplateError("label out of range")
    return _option(options[label - first])


def _labelled_choice(row: Row) -> str:
    choices, key = row.get("choices"), row.get("answerKey")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
    if not isinstance(choices, dict) or not isinstance(choices.get("text"), list):
        raise TemplateError("no options")
    labels = choices.get("label")
    if not isinstance(labels, list) or len(labels) != len(choices["text"]):
        raise TemplateError("no options")
    if not isinstance(key, str) or not key.strip():
        raise TemplateError("no label")
    if key not in labels:
        raise TemplateError("label out of range")
    return _option(choices["text"][labels.index(key)])


def _option(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TemplateError("empty option")
    return value
