"""Problems for the generalization gap: distinct, of the smallest hashes, in any order of documents."""

import hashlib
import random

import pytest

from data_prep.mixture import Draw
from data_prep.problems import draw_problems, shortfalls
from olmoe_parrots.errors import InputError


def _documents(problems: int = 300, solutions: int = 3) -> list[dict]:
    """Every problem solved several times, as in OpenMathInstruct; every third is of gsm8k."""
    return [
        {
            "id": f"shard-0/{problem * solutions + solution}",
            "source": "open_math_instruct",
            "text": f"What is {problem} + 1?\nIt is {problem + 1}.",
            "metadata": {
                "question": f"What is {problem} + 1?",
                "expected_answer": str(problem + 1),
                "dataset": "gsm8k" if problem % 3 == 0 else "math",
            },
        }
        for problem in range(problems)
        for solution in range(solutions)
    ]


def test_the_smallest_hashes_of_all_distinct_questions() -> None:
    documents = _documents()
    problems = draw_problems(documents, Draw("dataset", {"math": 50, "gsm8k": 20}), seed=7)
    for group, count in (("math", 50), ("gsm8k", 20)):
        questions = {d["metadata"]["question"] for d in documents if d["metadata"]["dataset"] == group}
        ranked = sorted(questions, key=lambda q: hashlib.blake2b(f"7\0{q}".encode(), digest_size=16).digest())
        assert [row["question"] for row in problems if row["group"] == group] == ranked[:count]
    for row in problems:
        number = int(row["expected_answer"]) - 1
        assert row["question"] == f"What is {number} + 1?"
        assert row["document"] == min(f"shard-0/{number * 3 + solution}" for solution in range(3))
        assert set(row) == {"group", "question", "expected_answer", "document"}


def test_the_order_of_documents_decides_nothing_and_the_seed_does() -> None:
    documents = _documents()
    draw = Draw("dataset", {"gsm8k": 20, "math": 50})
    expected = draw_problems(documents, draw, seed=0)
    for seed in range(5):
        random.Random(seed).shuffle(documents)
        assert draw_problems(iter(documents), draw, seed=0) == expected
    other = draw_problems(documents, draw, seed=1)
    assert {row["question"] for row in other} != {row["question"] for row in expected}


def test_too_few_are_all_drawn_and_told() -> None:
    draw = Draw("dataset", {"math": 10, "gsm8k": 1_319, "aime": 3, "none": 0})
    problems = draw_problems(_documents(), draw, seed=0)
    assert len(problems) == 10 + 100
    assert shortfalls(problems, draw) == {"gsm8k": (100, 1_319), "aime": (0, 3)}
    assert (
        shortfalls(draw_problems(_documents(), Draw("dataset", {"math": 10}), 0), Draw("dataset", {"math": 10})) == {}
    )


def test_memory_holds_what_is_drawn() -> None:
    import tracemalloc

    def documents(count: int):
        for i in range(count):
            metadata = {"question": f"{i} " + "x" * 1000, "expected_answer": "1", "dataset": "math"}
            yield {"id": str(i), "source": "s", "text": "", "metadata": metadata}

    peaks = []
    for count in (2_000, 20_000):
        tracemalloc.start()
        draw_problems(documents(count), Draw("dataset", {"math": 100}), seed=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("missing", ["dataset", "question", "expected_answer"])
def test_documents_without_a_problem_are_refused(missing: str) -> None:
    document = _documents(1, 1)[0]
    del document["metadata"][missing]
    with pytest.raises(InputError, match=f"source open_math_instruct: document shard-0/0 has no {missing} in its"):
        draw_problems([document], Draw("dataset", {"math": 1}), seed=0)
