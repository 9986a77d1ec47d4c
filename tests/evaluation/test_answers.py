"""Answers against references: tables of cases, and the reference implementations themselves on the same cases."""

import ast
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from torchmetrics.functional.text import squad

from olmoe_parrots.evaluation.answers import (
    boxed_content,
    exact_match,
    extract_expression,
    extract_number,
    f1,
    is_equivalent,
    normalize_text,
    numbers_equal,
    parse_number,
)

# SQuAD. The rules are those of evaluate-v1.1.py; the first questions and answers are SQuAD's own, of its article on
# Super Bowl 50 (Rajpurkar et al. 2016). (prediction, answers, F1, exact match), counted by hand.
TEXTS = (
    ("Denver Broncos", ("Denver Broncos", "Denver Broncos", "Denver Broncos"), 1, 1),
    ("the Denver Broncos.", ("Denver Broncos",), 1, 1),
    ("Broncos", ("Denver Broncos",), 2 / 3, 0),
    ("Carolina Panthers", ("Denver Broncos",), 0, 0),
    ("the Carolina Panthers and the Denver Broncos", ("Denver Broncos",), 4 / 7, 0),
    ("Levi's Stadium", ("Santa Clara, California", "Levi's Stadium"), 1, 1),
    ("levis stadium in santa clara", ("Santa Clara, California", "Levi's Stadium"), 4 / 7, 0),
    (
        "Levi's Stadium",
        ("Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",),
        2 * 2 / (2 + 11),
        0,
    ),
    ("golden anniversary", ('"golden anniversary"', "gold-themed", "gold"), 1, 1),
    ("gold", ('"golden anniversary"', "gold-themed", "gold"), 1, 1),
    ("gold themed", ("gold-themed",), 0, 0),
    ("February 7, 2016", ("February 7, 2016", "February 7"), 1, 1),
    ("February 7", ("February 7, 2016",), 4 / 5, 0),
    ("7 February 2016", ("February 7, 2016",), 1, 0),
    ("Super Bowl L", ("Super Bowl L", "L"), 1, 1),
    ("L", ("Super Bowl L", "L"), 1, 1),
    ("Super Bowl XL", ("Super Bowl L", "L"), 2 / 3, 0),
    ("2015", ("2015", "the 2015 season", "2015"), 1, 1),
    ("in 2015", ("2015",), 2 / 3, 0),
    ("24-10", ("24–10",), 0, 0),
    ("24 10", ("24-10",), 0, 0),
    ("2410", ("24-10",), 1, 1),
    ("an apple", ("The apple",), 1, 1),
    ("another apple", ("apple",), 2 / 3, 0),
    ("theory", ("the ory",), 0, 0),
    ("  spaces \t everywhere\n", ("spaces everywhere",), 1, 1),
    ("UPPER case", ("upper CASE",), 1, 1),
    ("U.S.A.", ("USA",), 1, 1),
    ("don't", ("dont",), 1, 1),
    ("$1,000", ("1000",), 1, 1),
    ("a b b", ("b b b",), 4 / 5, 0),
    ("b", ("b b b",), 1 / 2, 0),
    ("", ("something",), 0, 0),
    ("something", ("",), 0, 0),
    ("the", ("an",), 1, 1),
    ("Zürich", ("zürich",), 1, 1),
    ("Zurich", ("Zürich",), 0, 0),
)

# What a solution ends with. The phrases are those of the prompts: GSM8K's "####" (Cobbe et al. 2021), chain of
# thought's "The answer is" (Wei et al. 2022), Minerva's last sentence (Lewkowycz et al. 2022).
SOLUTIONS_WITH_NUMBERS = (
    ("There are 15 trees. 21 - 15 = 6. The answer is 6.", "6"),
    ("So 5 * 4 = 20 computers were added. 9 + 20 is 29. The answer is 29.", "29"),
    ("The answer is $8.", "$8"),
    ("The answer is 8 dollars for 3 bagels.", "8"),
    ("the ANSWER IS: 1,234.5", "1,234.5"),
    ("The answer is -3.", "-3"),
    ("The answer is 6.\n\nQ: The answer is 7.", "6"),
    ("He has <<16-3-4=9>>9 eggs.\n#### 9", "9"),
    ("It costs\n#### 70,000", "70,000"),
    ("so \\boxed{42} of 50", "42"),
    ("first \\boxed{1}, then \\boxed{2}.", "2"),
    ("She sold 48/2 = 24 and then 48 + 24 = 72 clips", "72"),
    ("he spent $1,200.50.", "$1,200.50"),
    ("10-5", "5"),
    ("3 - 8 = -5", "-5"),
    ("3 - 8 = −5", "−5"),
    ("a half is .5", ".5"),
    ("the scores 1,2,3", "3"),
    ("2e3", "2e3"),
    ("3/4 of it", "3/4"),
    ("I do not know.", ""),
    ("", ""),
)

# (prediction, answer, whether they are the same number). A difference below 1e-3 does not count, as in the scoring of
# GSM-Hard (reasoning-machines/pal, scripts/gsm_eval.py).
NUMBERS = (
    ("18", "18", True),
    ("18.0", "18", True),
    ("$1,234", "1234", True),
    ("1,234.", "1234.0", True),
    ("40%", "40", True),
    ("-5", "-5.0", True),
    ("−5", "-5", True),
    ("3/4", "0.75", True),
    ("2e3", "2000", True),
    ("5600812.5001", "5600812.5", True),
    ("0.3333", "0.33333333", True),
    ("33.33", "33.333333", False),
    ("19", "18", False),
    ("1,23", "123", False),
    ("5", "-5", False),
    ("", "5", False),
    ("five", "5", False),
    ("1/0", "1", False),
    ("1e999999999", "1", False),
)

# Final answers of worked solutions, as Minerva's prompt, MATH and lm-evaluation-harness's hendrycks_math put them.
SOLUTIONS_WITH_EXPRESSIONS = (
    ("so $\\boxed{[2,5)}$.\nFinal Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
    ("Final Answer: The final answer is $24$. I hope it is correct.", "24"),
    ("Final Answer: The final answer is 16. I hope it is correct.\n\nProblem:\nNext", "16"),
    ("Final Answer: The final answer is $-\\frac{2}{3}$. I hope", "-\\frac{2}{3}"),
    ("The final answer is \\boxed{4}.", "4"),
    ("Thus \\boxed{\\frac{1}{2}} of it", "\\frac{1}{2}"),
    ("first $\\boxed{1}$, then $\\boxed{2}$", "2"),
    ("\\boxed 7$ and", "7"),
    ("so \\fbox{x+1}.", "x+1"),
    ("so $x=2$", "x=2"),
    ("from $a$ and $b$ follows $c$", "a$ and $b$ follows $c"),
    ("costs \\$5 or $7$", "7"),
    ("\\frac{3}{4}", "\\frac{3}{4}"),
    ("12.", "12"),
    ("", ""),
)

# Equal answers of MATH. M: Minerva's normalization (appendix D; lm_eval/tasks/minerva_math/utils.py) makes them one,
# among them the examples in its comments; H: MATH's own is_equiv (Hendrycks et al. 2021; hendrycks_math/utils.py) does;
# otherwise they are equal as mathematics only.
EQUAL = (
    ("100,000", "100000", "M"),
    ("\\frac12", "\\frac{1}{2}", "MH"),
    ("\\fracab", "\\frac{a}{b}", "MH"),
    ("\\sqrt2", "\\sqrt{2}", "MH"),
    ("\\sqrt3y", "\\sqrt{3}y", "MH"),
    ("x=5", "5", "MH"),
    ("2\\pi cm", "2\\pi", "M"),
    ("5 dollars", "5", "M"),
    ("\\$32", "32", "MH"),
    ("30^\\circ", "30", "MH"),
    ("30^{\\circ}", "30", "MH"),
    ("90 degrees", "90", "M"),
    ("5\\text{ feet}", "5", "MH"),
    ("15 \\text{ mph}", "15", "MH"),
    ("100 square inches", "100", "M"),
    ("12\\text{ cm}", "12", "MH"),
    ("3 hours", "3", "M"),
    ("\\text{Evelyn}", "Evelyn", "M"),
    ("\\mbox{red}", "\\text{red}", "M"),
    ("\\textbf{even}", "even", "M"),
    ("\\boxed{24}", "24", "M"),
    ("1{,}000", "1000", "M"),
    ("1,\\!000", "1000", "M"),
    ("(1,2)", "(1, 2)", "MH"),
    ("[2,5)", "[2, 5)", "MH"),
    ("(-\\infty, 3]", "(-\\infty,3]", "MH"),
    ("11\\sqrt2", "11\\sqrt{2}", "MH"),
    ("\\text{A and B}", "A and B", "M"),
    ("\\dfrac{3}{4}", "\\frac{3}{4}", "H"),
    ("\\tfrac{3}{4}", "\\frac{3}{4}", "H"),
    ("0.5", "\\frac{1}{2}", "H"),
    ("1/2", "\\frac{1}{2}", "H"),
    (".5", "0.5", "H"),
    ("12\\%", "12", "H"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", "H"),
    ("x^2+2x+1", "(x+1)^2", ""),
    ("-\\frac{2}{3}", "\\frac{-2}{3}", ""),
    ("2\\sqrt{3}", "\\sqrt{12}", ""),
    ("\\frac{\\sqrt3}{3}", "\\frac{1}{\\sqrt{3}}", ""),
    ("2+3i", "3i+2", ""),
    ("3.50", "3.5", ""),
    ("1\\frac{1}{2}", "1.5", ""),
    ("y=2x+3", "y=3+2x", ""),
    ("2^{10}", "1024", ""),
)
UNEQUAL = (
    ("7", "8"),
    ("(1,2)", "(2,1)"),
    ("12", "1,2"),
    ("\\text{even}", "\\text{odd}"),
    ("\\text{Monday}", "Tuesday"),
    ("\\frac{1}{2}", "\\frac{2}{1}"),
    ("0.333", "\\frac13"),
    ("i", "-i"),
    ("[2,5)", "[2,5]"),
    ("x+1", "x-1"),
    ("", "5"),
    ("5" * 400, "5" * 400),
)


def test_there_are_a_hundred_cases() -> None:
    tables = (TEXTS, SOLUTIONS_WITH_NUMBERS, NUMBERS, SOLUTIONS_WITH_EXPRESSIONS, EQUAL, UNEQUAL)
    assert sum(map(len, tables)) >= 100


@pytest.mark.parametrize(("prediction", "answers", "expected_f1", "expected_match"), TEXTS)
def test_texts(prediction: str, answers: tuple[str, ...], expected_f1: float, expected_match: float) -> None:
    assert f1(prediction, answers) == pytest.approx(expected_f1)
    assert exact_match(prediction, answers) == expected_match
    # torchmetrics' is a port of SQuAD's script; in percent
    target: Any = {"answers": {"answer_start": [0], "text": list(answers)}, "id": "1"}
    reference = squad([{"prediction_text": prediction, "id": "1"}], [target])
    assert float(reference["f1"]) / 100 == pytest.approx(f1(prediction, answers), abs=1e-6)
    assert float(reference["exact_match"]) / 100 == exact_match(prediction, answers)


def test_normalized_text() -> None:
    assert normalize_text("The  quick, brown Fox -- a fox!") == "quick brown fox fox"
    assert f1("anything", []) == exact_match("anything", []) == 0.0


@pytest.mark.parametrize(("solution", "expected"), SOLUTIONS_WITH_NUMBERS)
def test_numbers_are_found(solution: str, expected: str) -> None:
    assert extract_number(solution) == expected
    assert (parse_number(expected) is not None) == bool(expected)


@pytest.mark.parametrize(("prediction", "answer", "same"), NUMBERS)
def test_numbers_are_compared_as_numbers(prediction: str, answer: str, same: bool) -> None:
    assert numbers_equal(prediction, answer) == same


def test_numbers_are_exact() -> None:
    assert parse_number("$1,234,567.10") == Fraction(123456710, 100)
    assert parse_number("-3/4") == Fraction(-3, 4)


@pytest.mark.parametrize(("solution", "expected"), SOLUTIONS_WITH_EXPRESSIONS)
def test_expressions_are_found(solution: str, expected: str) -> None:
    assert extract_expression(solution) == expected


def test_boxes() -> None:
    assert boxed_content("\\boxed{a{b}{c{d}}} e") == "a{b}{c{d}}"
    assert boxed_content("\\boxed{never closed") is None
    assert boxed_content("none") is None


def minerva_normalization() -> Any:
    """The published function, out of a module that only an old antlr4 lets import."""
    import lm_eval

    source = Path(lm_eval.__path__[0], "tasks", "minerva_math", "utils.py").read_text()
    wanted = {"SUBSTITUTIONS", "REMOVED_EXPRESSIONS", "normalize_final_answer"}

    def name_of(node: ast.stmt) -> str:
        return node.name if isinstance(node, ast.FunctionDef) else ast.unparse(getattr(node, "targets", [node])[0])

    kept = [node for node in ast.parse(source).body if name_of(node) in wanted]
    assert len(kept) == 3
    names: dict[str, Any] = {"re": re}
    exec("\n".join(map(ast.unparse, kept)), names)
    return names["normalize_final_answer"]


@pytest.mark.parametrize(("prediction", "answer", "by"), EQUAL)
def test_expressions_are_equal(prediction: str, answer: str, by: str) -> None:
    assert is_equivalent(prediction, answer)


@pytest.mark.parametrize(("prediction", "answer"), UNEQUAL)
def test_expressions_are_not_equal(prediction: str, answer: str) -> None:
    assert not is_equivalent(prediction, answer)


def test_the_reference_implementations_agree() -> None:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    normalize = minerva_normalization()
    for prediction, answer, by in EQUAL:
        assert (normalize(prediction) == normalize(answer)) == ("M" in by), (prediction, answer)
        assert is_equiv(prediction, answer) == ("H" in by), (prediction, answer)
    for prediction, answer in UNEQUAL[:-1]:
        assert not is_equiv(prediction, answer) and normalize(prediction) != normalize(answer), (prediction, answer)


@pytest.mark.slow
def test_a_tower_of_powers_takes_no_longer_than_its_time() -> None:
    assert is_equivalent("2^{3}", "8")
    started = time.monotonic()
    assert not is_equivalent("9^{9^{9^{9}}}", "1")
    assert time.monotonic() - started < 60
    assert is_equivalent("2^{3}", "8"), "what comes after it is compared"
