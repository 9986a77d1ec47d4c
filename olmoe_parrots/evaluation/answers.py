"""Generated answers held against references: text by F1 and exact match, numbers as such, mathematics by equivalence.

Text is normalized as in SQuAD's scripts (Rajpurkar et al. 2016; evaluate-v1.1.py, and evaluate-v2.0.py for answers of
which nothing is left): lower case, without punctuation, without articles, single spaces.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

NUMBER_TOLERANCE = Fraction(1, 1000)
"""Numbers that differ by less are equal, as in the scoring of GSM-Hard's authors (reasoning-machines/pal,
scripts/gsm_eval.py)."""

LONGEST_EXPRESSION = 300
"""Characters; what is longer is no final answer."""

SECONDS = 10.0
"""The time for one comparison of two expressions."""

_MEMORY = 4 << 30
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?(?:/\d+)?"
# A minus after a digit or a bracket is a difference, not a sign.
_NUMBER = re.compile(rf"(?:(?<![\d)])[-\u2212])?\s?(?:\$-?)?{_DIGITS}")
_WHOLE_NUMBER = re.compile(rf"[-+]?{_DIGITS}")
_MARKS_OF_NUMBERS = re.compile(r"\\?[$%]|\\[!,]")
_ANSWER_IS = re.compile(r"answer\s+is:?", re.IGNORECASE)
_FINAL_ANSWER = re.compile(r"answer is:?[ \t]*(.+?)[ \t]*(?:\.?[ \t]*I hope it is correct.*)?(?:\n|$)", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm)\s*\{([^{}]*)\}")
_WITH_UNIT = re.compile(r"(.*\d)\s+(?!pi\b)[A-Za-z]{2,}(?:\s+[A-Za-z]+)*")


def normalize_text(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation (ASCII's), no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 when the normalized prediction is one of the normalized answers, else 0.0."""
    normalized = normalize_text(prediction)
    return float(any(normalized == normalize_text(answer) for answer in answers))


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The best F1 over the answers, of the words of the normalized texts as bags; 0.0 where there is no answer.

    With c words in common, p in the prediction and a in the answer: 2c / (p + a). Where either has no words, 1.0 if
    both have none.
    """
    words = normalize_text(prediction).split()
    return max((_f1(words, normalize_text(answer).split()) for answer in answers), default=0.0)


def _f1(words: list[str], answer: list[str]) -> float:
    if not words or not answer:
        return float(words == answer)
    common = sum((Counter(words) & Counter(answer)).values())
    return 2 * common / (len(words) + len(answer))


def parse_number(text: str) -> Fraction | None:
    """The number that a text is, exactly: 1,234.50 and $5 and 40% and 3/4 and 2e3; None for anything else."""
    bare = _MARKS_OF_NUMBERS.sub("", text.replace("\u2212", "-").replace("{,}", ",")).strip().rstrip(".")
    if not _WHOLE_NUMBER.fullmatch(bare):
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def numbers_equal(prediction: str, answer: str) -> bool:
    """Whether both texts are numbers that differ by less than NUMBER_TOLERANCE."""
    left, right = parse_number(prediction), parse_number(answer)
    return left is not None and right is not None and abs(left - right) < NUMBER_TOLERANCE


def extract_number(text: str) -> str:
    """The number that a worked solution ends with; "" where it has none.

    The first number of the last box, else after ``####`` (GSM8K), else after the first "answer is" (chain of thought);
    where there is none, the last number of the text.
    """
    marked = [boxed_content(text), text.partition("####")[2], *_ANSWER_IS.split(text, maxsplit=1)[1:]]
    for part in marked:
        if part and (found := _NUMBER.search(part)):
            return found[0].strip()
    every = [found[0].strip() for found in _NUMBER.finditer(text)]
    return every[-1] if every else ""


def boxed_content(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` (or ``\fbox{...}``, or ``\boxed x``) of a solution; None without one."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("box")[2].removeprefix("ed")
    if not rest.lstrip().startswith("{"):
        return rest.split("$")[0].strip() or None
    rest, depth = rest.lstrip(), 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    return None


def extract_expression(text: str) -> str:
    """The final answer of a worked solution in LaTeX.

    What follows "answer is" (the last one), up to "I hope it is correct" or the end of the line (Minerva, Lewkowycz et
    al. 2022, appendix D); else the last box; else what stands between the first and the last dollar sign, as in
    lm-evaluation-harness's hendrycks_math; else the whole text.
    """
    final = _FINAL_ANSWER.findall(text)
    boxed = boxed_content(final[-1] if final else text)
    if boxed is not None:
        return boxed
    if final:
        return _without_dollars(final[-1])
    return _without_dollars(text)


def _without_dollars(text: str) -> str:
    text = text.strip().rstrip(".").rstrip()
    unescaped = text.replace("\\$", "\0\0")  # a sum of money, of the same length
    first, last = unescaped.find("$"), unescaped.rfind("$")
    return text[first + 1 : last].strip() if first != last else text


def is_equivalent(prediction: str, answer: str) -> bool:
    """Whether two answers in LaTeX are the same: as text, as numbers (units aside), or as mathematics by math-verify.

    An answer that math-verify takes longer than SECONDS over, such as a tower of powers, is not.
    """
    left, right = _plain(prediction), _plain(answer)
    if not left or len(left) > LONGEST_EXPRESSION:
        return False
    if "".join(left.split()) == "".join(right.split()):
        return True
    numbers = parse_number(_without_unit(left)), parse_number(_without_unit(right))
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _verifier().verify(prediction, answer)


def _plain(text: str) -> str:
    return _TEXT.sub(r"\1", text.replace("\\ ", " ")).strip()


def _without_unit(text: str) -> str:
    found = _WITH_UNIT.fullmatch(text)
    return found[1] if found else text


class _Verifier:
    """math-verify in a process of its own: no time limit inside a process stops sympy at a tower of powers."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def verify(self, prediction: str, answer: str) -> bool:
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(json.dumps([prediction, answer]) + "\n")
        self._process.stdin.flush()
        told = self._told(SECONDS)
        if told is None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        return told == "True"

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "olmoe_parrots.evaluation.answers"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._told(120.0) != "ready":
            raise RuntimeError("math-verify did not start; what it said is above")
        return self._process

    def _told(self, seconds: float) -> str | None:
        """The next line; None when it does not come in time, or the process ended."""
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._process.stdout.readline().strip() or None


@functools.lru_cache(maxsize=1)
def _verifier() -> _Verifier:
    return _Verifier()


def _serve() -> None:
    """Answer pairs of (prediction, answer), a JSON line each, until the input ends."""
    import resource
    import signal

    from math_verify import parse, verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is interrupted, and its end is ours
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        gold, target = (parse(f"$\\boxed{{{text}}}$") for text in reversed(json.loads(line)))
        print(bool(verify(gold, target)), flush=True)


if __name__ == "__main__":
    _serve()
