"""Rows as each source's hub dataset has them, with generated texts; and the types of their columns."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import accumulate
from typing import Any

import pyarrow as pa

Row = dict[str, Any]


class Text:
    """Sentences, names and paragraphs from a seed."""

    def __init__(self, seed: str) -> None:
        from pydoc_data.topics import topics

        documentation = "\n\n".join(topics[name] for name in sorted(topics))
        counts = Counter(re.findall(r"[a-z]{2,12}", documentation.lower()))
        common = counts.most_common(6000)
        self._words = [word for word, _ in common]
        self._weights = list(accumulate(count for _, count in common))
        self._paragraphs = [" ".join(p.split()) for p in documentation.split("\n\n") if 80 < len(p) < 600]
        self.random = random.Random(seed)

    def words(self, count: int) -> str:
        return " ".join(self.random.choices(self._words, cum_weights=self._weights, k=count))

    def sentence(self, least: int = 8, most: int = 24, end: str = ".") -> str:
        return self.words(self.random.randint(least, most)).capitalize() + end

    def question(self, least: int = 8, most: int = 16) -> str:
        return self.sentence(least, most, "?")

    def name(self) -> str:
        return self.words(self.random.randint(1, 3)).title()

    def document(self, sentences: int) -> str:
        parts = [" ".join(self.sentence() for _ in range(4)) for _ in range(max(1, sentences // 4))]
        parts.insert(self.random.randrange(len(parts)), self.random.choice(self._paragraphs))
        return "\n\n".join(parts)

    def length(self) -> int:
        return int(self.random.lognormvariate(3.0, 0.6)) + 4


def fineweb_edu(text: Text, i: int) -> Row:
    score = text.random.uniform(2.5, 4.5)
    body = text.document(text.length())
    number = text.random.getrandbits(128)
    return {
        "text": body,
        "id": f"<urn:uuid:{number:032x}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{i}",
        "file_path": "s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segment.warc.gz",
        "language": "en",
        "language_score": 0.97,
        "token_count": len(body) // 4,
        "score": score,
        "int_score": round(score),
    }


def cosmopedia(text: Text, i: int) -> Row:
    body = text.document(text.length())
    return {
        "prompt": f"Write a textbook chapter about {text.name()}.",
        "text_token_length": len(body) // 4,
        "text": body,
        "seed_data": "stanford",
        "format": "textbook_academic_tone",
        "audience": "college_students",
    }


def wikipedia(text: Text, i: int) -> Row:
    title = f"{text.name()} {i}"
    url = f"https://en.wikipedia.org/wiki/{i}"
    return {"id": str(1000 + i), "url": url, "title": title, "text": text.document(text.length())}


def trivia_qa(text: Text, i: int) -> Row:
    value = text.name()
    pages: Row = {"doc_source": [], "filename": [], "title": [], "wiki_context": []}
    results: Row = {key: [] for key in ("description", "filename", "rank", "title", "url", "search_context")}
    answer = {
        "aliases": [value, value.upper()],
        "normalized_aliases": [value.lower()],
        "matched_wiki_entity_name": "",
        "normalized_matched_wiki_entity_name": "",
        "normalized_value": value.lower(),
        "type": "WikipediaEntity",
        "value": value,
    }
    head = {"question": text.question(), "question_id": f"tc_{i}", "question_source": "http://www.triviacountry.com/"}
    return {**head, "entity_pages": pages, "search_results": results, "answer": answer}


def nq_open(text: Text, i: int) -> Row:
    return {"question": text.words(text.random.randint(7, 12)), "answer": [text.name() for _ in range(1 + i % 2)]}


def hotpot_qa(text: Text, i: int) -> Row:
    titles = [text.name(), text.name()]
    return {
        "id": f"{text.random.getrandbits(96):024x}",
        "question": text.question(10, 20),
        "answer": "yes" if i % 9 == 0 else text.name(),
        "type": "bridge",
        "level": "medium",
        "supporting_facts": {"title": titles, "sent_id": [0, 1]},
        "context": {"title": titles, "sentences": [[text.sentence()], [text.sentence(), text.sentence()]]},
    }


def web_questions(text: Text, i: int) -> Row:
    answers = [text.name() for _ in range(1 + i % 3)]
    question = f"{text.words(text.random.randint(6, 10))}?"
    return {"url": f"http://www.freebase.com/view/en/{i}", "question": question, "answers": answers}


def complex_web_questions(text: Text, i: int) -> Row:
    question, name = text.question(10, 18), text.name()
    return {
        "ID": f"WebQTrn-{i}",
        "answers": {"aliases": [[name.upper()]], "answer": [name], "answer_id": [f"m.{i:x}"]},
        "composition_answer": name.lower(),
        "compositionality_type": "conjunction",
        "created": "2018-02-13T00:18:22",
        "machine_question": question.lower(),
        "question": question,
        "sparql": "SELECT DISTINCT ?x WHERE { }",
        "webqsp_ID": f"WebQTrn-{i // 2}",
        "webqsp_question": text.question(),
    }


def _choices(text: Text, count: int) -> Row:
    return {"text": [text.words(text.random.randint(1, 5)) for _ in range(count)], "label": list("ABCDE"[:count])}


def arc(text: Text, i: int) -> Row:
    choices = _choices(text, 4)
    if i % 10 == 0:  # a tenth of ARC counts its choices in digits
        choices["label"] = list("1234")
    key = text.random.choice(choices["label"])
    return {"id": f"Mercury_{i}", "question": text.question(12, 24), "choices": choices, "answerKey": key}


def commonsense_qa(text: Text, i: int) -> Row:
    found = _choices(text, 5)
    head = {
        "id": f"{text.random.getrandbits(128):032x}",
        "question": text.question(),
        "question_concept": text.words(1),
    }
    return {**head, "choices": {"label": found["label"], "text": found["text"]}, "answerKey": "ABCDE"[i % 5]}


def hellaswag(text: Text, i: int) -> Row:
    first, second = text.sentence(14, 28), text.words(2) if i % 2 else ""
    return {
        "ind": i,
        "activity_label": text.name(),
        "ctx_a": f"{first} [step] {text.sentence()}",
        "ctx_b": second,
        "ctx": f"{first} {second}",
        "endings": [text.sentence(12, 30) for _ in range(4)],
        "source_id": f"wikihow~{i}",
        "split": "train",
        "split_type": "indomain",
        "label": str(i % 4),
    }


def openbook_qa(text: Text, i: int) -> Row:
    stem = text.words(text.random.randint(7, 14)).capitalize()
    return {"id": f"7-{i}", "question_stem": stem, "choices": _choices(text, 4), "answerKey": "ABCD"[i % 4]}


def piqa(text: Text, i: int) -> Row:
    goal = f"To {text.words(text.random.randint(7, 12))}"
    return {"goal": goal, "sol1": text.sentence(), "sol2": text.sentence(), "label": i % 2}


def social_i_qa(text: Text, i: int) -> Row:
    answers = {f"answer{letter}": text.words(4) for letter in "ABC"}
    return {"context": text.sentence(12, 20), "question": text.question(5, 9), **answers, "label": str(i % 3 + 1)}


def winogrande(text: Text, i: int) -> Row:
    sentence = f"{text.sentence(9, 14, '')} because the _ {text.words(5)}."
    first, second = text.random.sample(["cup", "shelf", "box", "table", "lamp", "chair"], 2)
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(i % 2 + 1)}


def proof_pile(text: Text, i: int) -> Row:
    n = text.random.randint(2, 99)
    meta: Row = {"id": f"{i}", "timestamp": "2023-02-01"} if i % 2 else {"path": f"src/{i}.lean", "size": n}
    formula = f"$$\\sum_{{k=1}}^{{{n}}} k = \\frac{{{n}({n}+1)}}{{2}} = {n * (n + 1) // 2}$$"
    return {"text": f"{text.document(text.length())}\n\n{formula}", "meta": meta}


def open_math_instruct(text: Text, i: int) -> Row:
    # Three solutions to a problem, as its problems come with many.
    a, b, part = i // 3 + 2, (i // 3) % 89 + 1, i % 3
    asked = f"Kim has {a} cups and buys {b} more of kind {a * b}. How many cups does Kim have?"
    solution = f"{text.sentence()} Adding {a} and {b} gives \\boxed{{{a + b}}} by way {part}."
    return {
        "question": asked,
        "expected_answer": str(a + b),
        "predicted_answer": str(a + b),
        "error_message": "<not_executed>",
        "is_correct": True,
        "generation_type": "without_reference_solution",
        "dataset": "math" if (i // 3) % 2 else "gsm8k",
        "generated_solution": solution,
    }


def meta_math_qa(text: Text, i: int) -> Row:
    query = f"{text.sentence()} What is {i} plus {i % 7}?"
    response = f"{text.sentence()} {i} plus {i % 7} is {i + i % 7}.\nThe answer is: {i + i % 7}"
    return {"type": "GSM_Rephrased", "query": query, "original_question": text.question(), "response": response}


def gsm8k(text: Text, i: int) -> Row:
    answer = f"{text.sentence()} {i}+{i % 9}=<<{i}+{i % 9}={i + i % 9}>>{i + i % 9}\n#### {i + i % 9}"
    return {"question": f"{text.sentence()} How many are {i} and {i % 9}?", "answer": answer}


def math(text: Text, i: int) -> Row:
    problem = f"{text.sentence()} Find ${i}^2$."
    solution = f"{text.sentence()} It is $\\boxed{{{i * i}}}$."
    return {"problem": problem, "level": "Level 3", "type": "Algebra", "solution": solution}


def svamp(text: Text, i: int) -> Row:
    body, question = text.sentence(), text.question()
    head = {"ID": f"chal-{i}", "Body": body, "Question": question, "Equation": f"( {i}.0 + 1.0 )"}
    return {**head, "Answer": f"{i + 1}.0", "Type": "Addition", "question_concat": f"{body} {question}"}


_TEXTS = pa.list_(pa.string())
_CHOICES = pa.struct({"text": _TEXTS, "label": _TEXTS})
_ANSWER_TEXTS = (
    "matched_wiki_entity_name normalized_matched_wiki_entity_name normalized_value type value"  # of TriviaQA
)


def _columns(strings: str, **others: pa.DataType) -> dict[str, pa.DataType]:
    return {name: pa.string() for name in strings.split()} | others


# The columns of the sources that lie as parquet or arrow on the hub; JSON carries no types.
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "fineweb_edu": _columns(
        "text id dump url file_path language",
        language_score=pa.float64(),
        token_count=pa.int64(),
        score=pa.float64(),
        int_score=pa.int64(),
    ),
    "cosmopedia": _columns("prompt text seed_data format audience", text_token_length=pa.int64()),
    "wikipedia": _columns("id url title text"),
    "trivia_qa": _columns(
        "question question_id question_source",
        entity_pages=pa.struct(dict.fromkeys(("doc_source", "filename", "title", "wiki_context"), _TEXTS)),
        search_results=pa.struct(
            dict.fromkeys(("description", "filename"), _TEXTS)
            | {"rank": pa.list_(pa.int32())}
            | dict.fromkeys(("title", "url", "search_context"), _TEXTS)
        ),
        answer=pa.struct(_columns("", aliases=_TEXTS, normalized_aliases=_TEXTS) | _columns(_ANSWER_TEXTS)),
    ),
    "nq_open": _columns("question", answer=_TEXTS),
    "hotpot_qa": _columns(
        "id question answer type level",
        supporting_facts=pa.struct({"title": _TEXTS, "sent_id": pa.list_(pa.int32())}),
        context=pa.struct({"title": _TEXTS, "sentences": pa.list_(_TEXTS)}),
    ),
    "complex_web_questions": _columns(
        "ID composition_answer compositionality_type created machine_question question sparql webqsp_ID",
        webqsp_question=pa.string(),
        answers=pa.struct({"aliases": pa.list_(_TEXTS), "answer": _TEXTS, "answer_id": _TEXTS}),
    ),
    "arc_challenge": _columns("id question answerKey", choices=_CHOICES),
    "arc_easy": _columns("id question answerKey", choices=_CHOICES),
    "commonsense_qa": _columns(
        "id question question_concept answerKey", choices=pa.struct({"label": _TEXTS, "text": _TEXTS})
    ),
    "hellaswag": _columns(
        "activity_label ctx_a ctx_b ctx source_id split split_type label", ind=pa.int32(), endings=_TEXTS
    ),
    "openbook_qa": _columns("id question_stem answerKey", choices=_CHOICES),
    "piqa": _columns("goal sol1 sol2", label=pa.int64()),
    "social_i_qa": _columns("context question answerA answerB answerC label"),
    "winogrande": _columns("sentence option1 option2 answer"),
    "gsm8k": _columns("question answer"),
    "math": _columns("problem level type solution"),
}
