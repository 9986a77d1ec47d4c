"""Generation tasks from local files to scores: a model that was taught the answers gets 1.0."""

import gzip
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from byte_models import EOS, PAD, make_loaded, write_tokenizer
from torch.nn.functional import cross_entropy

from data_prep.evaluation_tasks import TASKS as TEST_ITEMS
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluation.checkpoints import LoadedModel
from olmoe_parrots.evaluation.generation_tasks import (
    GENERATION_GROUPS,
    GENERATION_TASKS,
    Generated,
    GenerationScore,
    evaluate_generation,
    prepare_tasks,
)
from olmoe_parrots.evaluation.lm_adapter import ParrotsLM
from olmoe_parrots.evaluation.lm_tasks import FOLDER
from olmoe_parrots.evaluation.lm_tasks.benchmarks import BENCHMARKS, load
from olmoe_parrots.evaluation.measurements import Settings
from olmoe_parrots.evaluation.rows import Evaluated
from olmoe_parrots.evaluation.task_tokenizer import load_tokenizer
from olmoe_parrots.evaluation.training_problems import PROBLEMS

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")

# A row of each benchmark in the hub's columns (as data_prep/evaluation_tasks.py and the hub's dataset pages have them;
# ComplexWebQuestions' from its loading script), and what the task sees of it.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trivia_qa": (
        {
            "question": "Who sang it?",
            "question_id": "tc_1",
            "answer": {"value": "Queen", "aliases": ["The Queen", "Queen"], "normalized_value": "queen"},
        },
        {"question": "Who sang it?", "answers": ["Queen", "The Queen"]},
    ),
    "natural_questions": (
        {"question": "when was it made", "answer": ["1984", "in 1984"]},
        {"question": "when was it made?", "answers": ["1984", "in 1984"]},
    ),
    "hotpot_qa": (
        {"id": "5a", "question": "Which is older?", "answer": "yes", "type": "comparison", "context": {"title": ["a"]}},
        {"question": "Which is older?", "answers": ["yes"]},
    ),
    "web_questions": (
        {"url": "http://x", "question": "what is it?", "answers": ["a", "b"]},
        {"question": "what is it?", "answers": ["a", "b"]},
    ),
    "complex_web_questions": (
        {"ID": "1", "question": "What was it?", "answers": {"answer": ["A"], "answer_id": ["m.1"], "aliases": [["B"]]}},
        {"question": "What was it?", "answers": ["A", "B"]},
    ),
    "svamp": (
        {"ID": "chal-1", "Body": "There are 7 birds", "Question": "How many?", "Equation": "7", "Answer": "7.0"},
        {"question": "There are 7 birds. How many?", "answer": "7.0"},
    ),
    "gsm8k": (
        {"question": "How many?", "answer": "It is <<2*500=1000>>1,000.\n#### 1,000"},
        {"question": "How many?", "answer": "1,000"},
    ),
    "gsm_hard": (
        {"input": "How many?", "code": "def solution(): ...", "target": 5600812.5},
        {"question": "How many?", "answer": "5600812.5"},
    ),
    "math": (
        {"problem": "Halve 1.", "solution": "So $\\boxed{\\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"},
        {"problem": "Halve 1.", "answer": "\\frac{1}{2}"},
    ),
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)


def test_the_catalogue_says_what_the_task_files_do() -> None:
    found = {}
    for path in FOLDER.glob("*.yaml"):
        task = yaml.load(path.read_text(), Loader=_Names)
        base = yaml.load((FOLDER / task["include"]).read_text(), Loader=_Names)
        found[task["task"]] = {**base, **task}
    assert set(found) == set(GENERATION_TASKS)
    assert len(GENERATION_GROUPS["world_knowledge_gen"]) == len(GENERATION_GROUPS["math_gen"]) == 5
    for name, task in GENERATION_TASKS.items():
        file, benchmark = found[name], BENCHMARKS[found[name]["dataset_kwargs"]["name"]]
        assert task.shots == file["num_fewshot"]
        assert task.split == benchmark.split == (file.get("test_split") or file["validation_split"])
        assert benchmark.examples_split == file.get("training_split")
        assert task.metric == file["metric_list"][0]["metric"]
        word = "PROBLEM" if task.category == "math" else "QUESTION"
        prompt = file["doc_to_text"].replace("{{question}}", word).replace("{{problem}}", word).replace("\n", "\\n")
        assert task.prompt.split("|")[0] == prompt
        assert task.category == ("math" if name in GENERATION_GROUPS["math_gen"] else "world_knowledge")


class _Names(yaml.SafeLoader):
    """Functions by their names."""


_Names.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_data_is_that_which_decontamination_looks_for() -> None:
    assert {name: BENCHMARKS[name].hub for name in BENCHMARKS} == {name: TEST_ITEMS[name].hub for name in BENCHMARKS}
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.split in TEST_ITEMS[name].splits


@pytest.mark.parametrize(
    "layout", ["{}.jsonl", "{}.jsonl.gz", "{}.json", "{}.parquet", "data/{}-00000-of-00001.parquet"]
)
def test_local_files_of_the_hubs_columns_are_read(layout: str, tmp_path: Path) -> None:
    for name, (row, _) in ROWS.items():
        for split in BENCHMARKS[name].splits:
            write_rows(tmp_path / name / layout.format(split), [row, row])
    for name, (_, expected) in ROWS.items():
        found = load(name, local=str(tmp_path), version=1.0)
        assert {split: part.to_list() for split, part in found.items()} == {
            split: [expected, expected] for split in BENCHMARKS[name].splits
        }


def test_math_is_read_by_subject(tmp_path: Path) -> None:
    row, _ = ROWS["math"]
    for subject in BENCHMARKS["math"].configs:
        write_rows(tmp_path / "math" / str(subject) / "test.jsonl", [{**row, "problem": f"{subject}?"}])
        write_rows(tmp_path / "math" / str(subject) / "train.jsonl", [row])
    assert [row["problem"] for row in load("math", local=str(tmp_path))["test"]] == [
        f"{subject}?" for subject in BENCHMARKS["math"].configs
    ]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as told:
        prepare_tasks(["web_questions_gen"], str(tmp_path))
    assert str(told.value) == (
        f"{tmp_path}/web_questions: it has no file of the split test; "
        "bring test.parquet (or .jsonl, .jsonl.gz) of stanfordnlp/web_questions into it"
    )
    # a file that names no split is not taken for both
    write_rows(tmp_path / "web_questions" / "questions.jsonl", [ROWS["web_questions"][0]])
    with pytest.raises(InputError, match="no file of the split test"):
        prepare_tasks(["web_questions_gen"], str(tmp_path))
    write_rows(tmp_path / "svamp" / "test.jsonl", [{"question": "other columns"}])
    with pytest.raises(InputError, match=r"svamp/test\.jsonl, row 1: the row is not of ChilleD/SVAMP's columns"):
        prepare_tasks(["svamp_gen"], str(tmp_path))
    with pytest.raises(InputError, match="did you mean svamp_gen"):
        prepare_tasks(["swamp_gen"])
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as told:
        prepare_tasks(["gsm8k_gen"])
    assert str(told.value).startswith("openai/gsm8k, config main, split test: the hub does not give it (")
    assert str(told.value).endswith(
        "check the network, or bring it as DIR/gsm8k/test.parquet (or .jsonl) and use --local DIR"
    )


NAMES = ("web_questions_gen", "svamp_gen", "hendrycks_math_gen")
COUNT = 6


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions of three tasks, and worked examples for the one that draws them."""
    folder = tmp_path_factory.mktemp("local")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(4 * COUNT)]
    facts = [{"url": "", "question": f"who is {word}?", "answers": [f"the {word[::-1]}", "x"]} for word in words]
    write_rows(folder / "web_questions" / "test.jsonl", facts[:COUNT])
    write_rows(folder / "web_questions" / "train.jsonl", facts[COUNT:])
    problems = [{"Body": "", "Question": f"How many {words[i]}?", "Answer": f"{12 + 7 * i}.0"} for i in range(COUNT)]
    write_rows(folder / "svamp" / "test.jsonl", problems)
    maths = [{"problem": f"Find {words[i]}.", "solution": f"$\\boxed{{\\frac{{{i + 1}}}{{2}}}}$"} for i in range(COUNT)]
    write_rows(folder / "math" / "test.jsonl", maths)
    return folder


@pytest.fixture(scope="module")
def tasks(local: Path) -> dict[str, Any]:
    return prepare_tasks(NAMES, str(local))


def scores_of(found: list[GenerationScore]) -> dict[tuple[str, str], float]:
    return {(score.task.name, score.metric): score.value for score in found}


def solution_of(sample: dict[str, Any]) -> str:
    """What a model that knows it says."""
    if sample["task"] == "svamp_gen":
        return f" The answer is {float(sample['gold']):.0f}.\n\n"
    return f" so ${sample['gold']}$" if sample["task"] == "hendrycks_math_gen" else f" {sample['gold'][0]}\n"


def teach(loaded: LoadedModel, samples: list[dict[str, Any]]) -> None:
    """Train until the model says the gold answer after what it sees of each prompt."""
    lm, length = ParrotsLM(loaded), loaded.cfg.model.max_sequence_length
    rows = []
    for sample in samples:
        said = lm.tok_encode(solution_of(sample))
        kept = length - (32 if sample["task"] == "web_questions_gen" else length // 2)
        rows.append((lm.tok_encode(sample["prompt"])[-kept:], [*said, EOS]))
    longest = max(len(prompt) + len(said) for prompt, said in rows)
    inputs = torch.full((len(rows), longest), PAD)
    labels = torch.full((len(rows), longest), -100)
    for place, (prompt, said) in enumerate(rows):
        inputs[place, : len(prompt) + len(said)] = torch.tensor(prompt + said)
        labels[place, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=3e-3)
    for _ in range(300):
        logits = loaded.model(input_ids=inputs).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if loss.item() < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, loss.item()


@pytest.mark.slow
def test_a_model_that_was_taught_the_answers_gets_all_of_them(tasks: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    loaded = make_loaded(tokenizer, "moe", init_std=0.05)
    file = tmp_path / "made" / "samples.jsonl"
    before = list(evaluate_generation(loaded, tasks, samples=file))
    assert scores_of(before) == {
        ("web_questions_gen", "f1"): 0.0,
        ("web_questions_gen", "exact_match"): 0.0,
        ("svamp_gen", "accuracy"): 0.0,
        ("hendrycks_math_gen", "accuracy"): 0.0,
    }
    assert {score.examples for score in before} == {COUNT}
    assert [score.truncated for score in before] == [COUNT, COUNT, COUNT, 0], "worked examples don't fit into 96 bytes"
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(samples) == 3 * COUNT
    check_prompts(samples)

    teach(loaded, samples)
    after = list(evaluate_generation(loaded, tasks, batch_size=1, samples=file))
    assert scores_of(after) == dict.fromkeys(scores_of(before), 1.0)
    assert {score.standard_error for score in after} == {0.0}
    assert list(evaluate_generation(loaded, tasks, batch_size=16)) == after
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[: len(samples)] == samples, "appended to"
    fact, problem, expression = (lines[len(samples) + i * COUNT] for i in range(3))
    assert fact["checkpoint"] == "a/checkpoint/step7"
    assert (fact["question"], fact["extracted"], fact["f1"]) == (samples[0]["question"], fact["gold"][0], 1.0)
    assert (problem["generated"], problem["extracted"], problem["gold"]) == (" The answer is 12.", "12", "12.0")
    assert (expression["generated"], expression["extracted"]) == (" so $\\frac{1}{2}$", "\\frac{1}{2}")
    check_partial_scores(loaded, tasks)
    check_rows(loaded, tasks)
    check_training_problems(loaded, samples, tmp_path)


def check_training_problems(loaded: LoadedModel, samples: list[dict[str, Any]], folder: Path) -> None:
    """What it was taught, as drawn training problems: GSM8K's tasks ask as SVAMP's do."""
    groups = {"svamp_gen": "gsm8k", "hendrycks_math_gen": "math"}
    rows = [
        {"group": groups[one["task"]], "question": one["question"], "expected_answer": one["gold"]}
        for one in samples
        if one["task"] in groups
    ]
    rows[0]["expected_answer"] = 12  # a number in JSON
    write_rows(folder / "data" / PROBLEMS, rows)
    training = prepare_tasks(["gsm8k_gen", "hendrycks_math_gen"], training_problems=str(folder / "data"))
    found = list(evaluate_generation(loaded, training))
    assert scores_of(found) == dict.fromkeys(scores_of(found), 1.0) and len(found) == 2
    assert [score.examples for score in found] == [COUNT, COUNT]


def check_prompts(samples: list[dict[str, Any]]) -> None:
    """Five drawn examples; eight fixed ones; none."""
    fact, problem, expression = (samples[i * COUNT]["prompt"] for i in range(3))
    assert fact.count("Question: who is ") == 6 and fact.count("\n\n") == 5
    assert fact.startswith("Question: who is ") and fact.endswith(f"\n\nQuestion: {samples[0]['question']}\nAnswer:")
    shown = {sample["prompt"].rpartition("Question: ")[0] for sample in samples[:COUNT]}
    assert len(shown) == 1, "the same for every question, on whatever rank"
    assert " the " in fact.split("\nAnswer:")[1]
    assert problem.startswith("Q: There are 15 trees in the grove.") and problem.count("\nA: ") == 8
    assert problem.endswith(f"The answer is 8.\n\nQ: {samples[COUNT]['question']}\nA:")
    assert expression == f"Problem: {samples[2 * COUNT]['question']}\nAnswer:"


def check_partial_scores(loaded: LoadedModel, tasks: dict[str, Any]) -> None:
    """Three gold answers wrong, and one with a word more: the mean and its standard error are the formulas'."""
    task = tasks["web_questions_gen"]
    golds = [row["answers"][:1] for row in task.dataset["test"]]
    golds = [["nothing of it"], [f"{golds[1][0]} more"], ["nothing of it"], golds[3], ["nothing of it"], golds[5]]
    rows = [{**row, "answers": gold} for row, gold in zip(task.dataset["test"], golds, strict=True)]
    kept = task.dataset["test"]
    task.dataset["test"] = datasets.Dataset.from_list(rows)
    try:
        f1, exact = evaluate_generation(loaded, {"web_questions_gen": task})
    finally:
        task.dataset["test"] = kept
    values = [0, 2 / 3, 0, 1, 0, 1]
    mean = sum(values) / 6
    assert f1.value == pytest.approx(mean)
    assert f1.standard_error == pytest.approx((sum((value - mean) ** 2 for value in values) / 5 / 6) ** 0.5)
    assert exact.value == pytest.approx(2 / 6)
    assert [score.examples for score in evaluate_generation(loaded, {"web_questions_gen": task}, limit=2)] == [2, 2]


def check_rows(loaded: LoadedModel, tasks: dict[str, Any]) -> None:
    """What the evaluation command appends to a results file, and finds there again."""
    settings = Settings(loaded.cfg, torch.device("cpu"), batch_size=4, limit=3)
    one = Generated(GENERATION_TASKS["svamp_gen"], tasks["svamp_gen"], load_tokenizer(loaded.cfg), settings)
    counts = dict.fromkeys(("total_params", "active_params", "non_embedding_params", "training_tokens"), 1)
    facts = {"model": "tiny", "config_digest": "x", **counts, "training_flops": 1.0, "step": 7, "checkpoint": "a/step7"}
    (row,) = one.rows(Evaluated(facts), SimpleNamespace(model=loaded.model))
    assert (row.task, row.split, row.metric, row.value, row.examples) == ("svamp_gen", "test", "accuracy", 1.0, 3)
    assert (row.details["limit"], row.details["shots"], row.details["truncated"]) == (3, 8, 3)
    assert Evaluated(facts).holds([row], one.name, one.metric, one.details)
    json.loads(row.as_line())


def test_minervas_prompt_is_the_published_one(local: Path) -> None:
    """As in lm-evaluation-harness's minerva_math, whose module the environment's antlr4 does not let load."""
    import ast

    import lm_eval

    source = Path(lm_eval.__path__[0], "tasks", "minerva_math", "utils.py").read_text()
    listed = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "list_fewshot_samples")
    published = ast.literal_eval(listed.body[0].value)  # type: ignore[attr-defined]
    expected = "".join(f"Problem:\n{one['problem']}\n\nSolution: {one['solution']}\n\n" for one in published)
    task = prepare_tasks(["minerva_math_gen"], str(local))["minerva_math_gen"]
    document = task.eval_docs[0]
    assert task.fewshot_context(document, num_fewshot=4) == f"{expected}Problem:\n{document['problem']}\n\nSolution:"
