"""Rows of evaluations that follow known laws, made for tests of tables, figures and the report.

World knowledge follows total parameters, commonsense and math follow width, as the paper found. Each task has an offset
of its own, so that no two cells of a model are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from result_rows import params_of

from olmoe_parrots.columns import Catalogue
from olmoe_parrots.grid import grid
from olmoe_parrots.results import Row


@dataclass(frozen=True)
class FakeTask:
    title: str
    category: str
    metric: str
    split: str | None = "test"
    examples: int | None = 400


GROUPS = {
    "world_knowledge": ("trivia", "questions"),
    "commonsense": ("arc", "piqa", "social"),
    "math": ("gsm", "math_problems", "gsm_bits", "math_bits"),
}
METRICS = {"world_knowledge": "f1", "commonsense": "accuracy", "math": "accuracy"}
CATALOGUE = Catalogue(
    {
        name: FakeTask(
            name.replace("_", " ").upper(), category, "bits_per_byte" if "bits" in name else METRICS[category]
        )
        for category, names in GROUPS.items()
        for name in names
    }
    | {"arc_5shot": FakeTask("ARC, 5 shots", "commonsense", "accuracy")},
    GROUPS,
)
TASKS = [name for names in GROUPS.values() for name in names]
MODELS = ((32, 0), (64, 0), (128, 0), (32, 4), (32, 16), (64, 4), (64, 16))
"""Width and experts."""
HELD_OUT = {"folder": "data/mixture"}


def law(task: str, width: int, experts: int) -> float:
    """The value of a model on a task."""
    total, _ = params_of(width, experts)
    offset = 0.01 * TASKS.index(task)
    if "bits" in task:
        return 2.0 - 0.1 * math.log10(total) + offset
    if CATALOGUE.tasks[task].category == "world_knowledge":
        return -0.2 + 0.1 * math.log10(total) + offset
    return 0.1 * math.log2(width / 16) + offset


def evaluation_row(task: str, value: float, width: int = 32, experts: int = 0, **others: object) -> Row:
    """A row of one task and model; tasks of the catalogue get their metric and split."""
    total, active = params_of(width, experts)
    known = CATALOGUE.tasks.get(task)
    usual: dict = {
        "model": f"{'moe' if experts else 'dense'}_d{width}" + f"_e{experts}" * bool(experts),
        "config_digest": f"{width}-{experts}",
        "total_params": total,
        "active_params": active,
        "non_embedding_params": total,
        "training_tokens": 2_000_000,
        "training_flops": 6.0 * active * 2_000_000,
        "task": task,
        "split": known.split if known else "validation",
        "metric": known.metric if known else "perplexity",
        "value": value,
        "standard_error": 0.02,
        "examples": 400,
        "architecture": {
            "width": width,
            "layers": 2,
            "experts": experts,
            "hidden_size": width,
            "top_k": 2 * bool(experts),
        },
        "data": {"name": "mixture"},
        "step": 1000,
        "checkpoint": f"runs/{width}-{experts}/step1000",
        "seed": 0,
        "learning_rate": 1e-3,
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "device": "cpu",
        "time": 0.0,
    }
    return Row(**{**usual, **others})


def model_rows(width: int, experts: int, **others: object) -> list[Row]:
    """All tasks of the catalogue's groups of one model."""
    return [evaluation_row(task, law(task, width, experts), width, experts, **others) for task in TASKS]


def perplexity_of(width: int, experts: int) -> float:
    """Of a model, on the held-out sequences."""
    return 60.0 / math.log10(params_of(width, experts)[0])


def grid_rows() -> list[Row]:
    """All models on all tasks, with perplexities in all and by source, and math's accuracy on training problems."""
    rows = []
    for width, experts in MODELS:
        rows += model_rows(width, experts)
        perplexity = perplexity_of(width, experts)
        rows.append(evaluation_row("perplexity", perplexity, width, experts, standard_error=0.1, details=HELD_OUT))
        for source in ("wiki", "code"):
            rows.append(evaluation_row(f"perplexity/{source}", 2 * perplexity, width, experts, details=HELD_OUT))
        for task in ("gsm", "math_problems"):
            train = law(task, width, experts) + (0.15 if experts else 0.05)
            rows.append(evaluation_row(task, train, width, experts, split="train"))
    return rows


def paper_grid_rows() -> list[Row]:
    """Made-up values of the paper's 18 models: knowledge follows total parameters, the rest width and active ones."""
    rows = []
    for run in grid():
        shape = run.shape()
        total, active = shape.total_params(), shape.active_params()
        about = {
            **{"model": run.name, "total_params": total, "active_params": active, "training_tokens": run.tokens},
            **{"training_flops": float(run.tokens * shape.flops_per_token()), "standard_error": 0.008},
            "architecture": {
                "width": shape.d_model,
                "layers": shape.n_layers,
                "experts": shape.num_experts,
                "top_k": 2,
            },
        }
        values = {"world_knowledge": 0.12 * math.log10(total / 2e6), "commonsense": 0.06 * math.log2(shape.d_model / 4)}
        values["math"] = 0.09 * math.log2(shape.d_model / 64) + 0.02 * math.log10(total / active)
        for category, value in values.items():
            tasks = [task for task in GROUPS[category] if "bits" not in task]
            rows += [evaluation_row(task, value + 0.01 * i, **about) for i, task in enumerate(tasks)]
            if category == "math":
                gap = 0.03 + 0.03 * math.log10(total / active)
                rows += [evaluation_row(task, value + gap, **about | {"split": "train"}) for task in tasks]
        perplexity = 45.0 / math.log10(total) + 40.0 / math.log10(active)
        rows.append(evaluation_row("perplexity", perplexity, **about | {"details": HELD_OUT}))
    return rows
