"""The worked examples that stand before a problem: drawn from a training set, or from the packages that carry them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from lm_eval.api.samplers import ContextSampler

from olmoe_parrots.errors import InputError


class SameExamples(ContextSampler):
    """Draws by the seed alone, so the same examples for every question.

    lm-evaluation-harness's own goes on drawing, so that what a question gets depends on those before it on its rank.
    """

    seed: int | None = 1234

    def set_rnd(self, rnd: int | None) -> SameExamples:
        """Draw by this seed."""
        self.seed = rnd
        return self

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Sequence[dict[str, Any]]:
        """``n`` examples, in an order of their own. Raises InputError where there are fewer."""
        if len(self.df) < n:
            what = f"{n} are asked for and the training split has {len(self.df)}"
            raise InputError("worked examples", what, "bring the whole training split")
        return Random(self.seed).sample(list(self.df), n)


def chain_of_thought() -> list[dict[str, Any]]:
    """The eight worked problems of Wei et al. (2022, arXiv 2201.11903), from lm-evaluation-harness's gsm8k_cot."""
    import lm_eval
    import yaml

    path = Path(lm_eval.__path__[0], "tasks", "gsm8k", "gsm8k-cot.yaml")
    samples = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    return [{"question": sample["question"], "answer": sample["target"]} for sample in samples]


def minerva() -> list[dict[str, Any]]:
    """The four worked problems of Minerva (Lewkowycz et al. 2022, arXiv 2206.14858, appendix D), from math-verify.

    lm-evaluation-harness has them in a module that only an old antlr4 lets load. math-verify's copy lost the second
    backslash of LaTeX's line breaks and two words of each last line, which are put back.
    """
    from math_verify.few_shots import MATH_HARD_FEW_SHOTS

    return [
        {
            "problem": example["question"].replace(",\\\n", ",\\\\\n"),
            "answer": example["answer"]
            .replace("\\\n", "\\\\\n")
            .replace("\nThe final answer", "\nFinal Answer: The final answer"),
        }
        for example in MATH_HARD_FEW_SHOTS
    ]
