"""The generalization gap from drawn problems to rows and their table, against counts of what the model said."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import trained
from s3_server import S3Server

from data_prep.mixture import Draw, load_mixture
from data_prep.prepare import PROBLEMS as WRITTEN
from data_prep.problems import draw_problems
from olmoe_parrots import results_command
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluate import main
from olmoe_parrots.evaluation.generation_tasks import GENERATION_TASKS, prepare_tasks, prompt_digest
from olmoe_parrots.evaluation.lm_tasks.benchmarks import BENCHMARKS
from olmoe_parrots.evaluation.training_problems import PROBLEMS, TASKS_OF, read_problems
from olmoe_parrots.results import Row, read_rows

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
ALL = [name for names in TASKS_OF.values() for name in names]
ASKED = {"gsm8k": 3, "math": 5}


def drawn(seed: int = 0) -> list[dict[str, Any]]:
    """Problems drawn of OpenMathInstruct's documents as data_prep draws them, with answers that nobody gives."""
    documents = [
        {
            "id": f"{group}-{i}",
            "source": "instruct",
            "metadata": {"question": f"{group} {i}?", "expected_answer": str(1000 + i), "dataset": group},
        }
        for group in ASKED
        for i in range(12)
    ]
    return [{"source": "instruct", **row} for row in draw_problems(documents, Draw("dataset", ASKED), seed)]


def write_problems(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROBLEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_tests(folder: Path) -> Path:
    """Test problems whose answers nobody gives."""
    math_rows = [{"problem": f"math {i}?", "solution": f"\\boxed{{{2000 + i}}}"} for i in range(20, 24)]
    gsm_rows = [{"question": f"gsm8k {i}?", "answer": f"#### {2000 + i}"} for i in range(20, 24)]
    for name, rows in (("math", math_rows), ("gsm8k", gsm_rows)):
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_shipped_mixture_draws_groups_that_are_known() -> None:
    sources = load_mixture("math").sources
    assert {group for source in sources if source.draw for group in source.draw.counts} == set(TASKS_OF)
    assert PROBLEMS == WRITTEN
    assert set(TASKS_OF) <= set(BENCHMARKS) and set(ALL) <= set(GENERATION_TASKS)


def test_training_problems_are_asked_as_test_problems_are(tmp_path: Path) -> None:
    folder = write_problems(tmp_path / "data", drawn())
    problems = read_problems(str(folder))
    assert problems == read_problems(str(folder / PROBLEMS))
    assert {group: len(found) for group, found in problems.documents.items()} == ASKED
    training = prepare_tasks(ALL, training_problems=str(folder))
    test = prepare_tasks(ALL, str(write_tests(tmp_path / "local")))
    for name in ALL:
        group = next(group for group, names in TASKS_OF.items() if name in names)
        rows = [row for row in drawn() if row["group"] == group]
        documents = list(training[name].eval_docs)
        assert [document["answer"] for document in documents] == [row["expected_answer"] for row in rows]
        shots = GENERATION_TASKS[name].shots
        of_test = test[name].fewshot_context(test[name].eval_docs[0], num_fewshot=shots)
        for document, row in zip(documents, rows, strict=True):
            prompt = training[name].fewshot_context(document, num_fewshot=shots)
            assert prompt == of_test.replace(f"{group} 20?", row["question"]) != of_test
        assert training[name].config.generation_kwargs == test[name].config.generation_kwargs
        assert prompt_digest(training[name]) == prompt_digest(test[name])
    assert len({prompt_digest(task) for task in test.values()}) == len(ALL)
    test["gsm8k_gen"].config.generation_kwargs["until"] = ["\n"]
    assert prompt_digest(test["gsm8k_gen"]) != prompt_digest(training["gsm8k_gen"])


ROW = {"source": "s", "group": "math", "question": "1 + 1?", "expected_answer": "2", "document": "d"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", ": it holds no problems; draw some"),
        (f"{json.dumps(ROW)}\n{{torn", ", line 2: it is no JSON"),
        ("[]", ", line 1: it is no JSON object"),
        (json.dumps({**ROW, "expected_answer": None}), ", line 1: its expected_answer is missing"),
        ('{"group": "math", "question": " "}', ", line 1: its question and expected_answer are missing"),
        (json.dumps({**ROW, "group": "AIME"}), ", line 1: the group 'AIME' is of no benchmark that is asked"),
    ],
)
def test_what_is_no_drawn_problem_is_told_in_one_line(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / PROBLEMS).write_text(content)
    with pytest.raises(InputError) as error:
        read_problems(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / PROBLEMS}{told}")


def test_problems_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generalization_gap\.jsonl: there is no such file; name a folder"):
        read_problems(str(tmp_path))
    write_problems(tmp_path, [ROW])
    with pytest.raises(InputError, match="it holds no training problems of gsm8k; it holds those of math"):
        prepare_tasks(["gsm8k_gen"], training_problems=str(tmp_path))
    run = str(trained("dense").folder)
    with pytest.raises(InputError, match="it holds no training problems for gsm8k_gen; it holds those of math"):
        local = f"--local={write_tests(tmp_path / 'local')}"
        main([run, f"--training-problems={tmp_path}", "--tasks=gsm8k_gen", local])


def test_problems_are_read_from_s3(tmp_path: Path, s3: S3Server) -> None:
    path = write_problems(tmp_path, drawn()) / PROBLEMS
    s3.client().create_bucket(Bucket="problems")
    s3.client().upload_file(str(path), "problems", f"math/{PROBLEMS}")
    found = read_problems("s3://problems/math")
    assert found.path == f"s3://problems/math/{PROBLEMS}"
    assert (found.sha256, found.documents) == (read_problems(str(path)).sha256, read_problems(str(path)).documents)
    assert read_problems(found.path) == found
    with pytest.raises(InputError, match=r"^s3://problems/generalization_gap\.jsonl: there is no such file"):
        read_problems("s3://problems/")


@pytest.fixture
def measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command on a trained checkpoint; returns what it printed."""
    local, run = write_tests(tmp_path / "local"), trained("dense")

    def call(problems: list[dict[str, Any]], *options: str, folder: str = "data") -> str:
        where = write_problems(tmp_path / folder, problems)
        words = [str(run.folder), f"--training-problems={where}", f"--local={local}", *options]
        assert main([*words, f"--output={tmp_path / 'rows.jsonl'}", f"--samples={tmp_path / 'samples.jsonl'}"]) == 0
        return capsys.readouterr().err

    return call


def last_rows(path: Path) -> dict[tuple[str, str], Row]:
    return {(row.task, row.split): row for row in read_rows(path)}


def table_of(tmp_path: Path, rows: Path) -> dict[str, dict[str, str]]:
    """The gap table's lines by task, from its CSV."""
    assert results_command.main(["gap", str(rows), f"--output={tmp_path / 'gap.csv'}", "--overwrite"]) == 0
    with (tmp_path / "gap.csv").open() as file:
        return {line["task"]: line for line in csv.DictReader(file)}


def test_a_model_that_is_right_on_training_problems_alone_has_a_gap_of_1(
    measure: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, output = "--tasks=hendrycks_math_gen,gsm8k_gen", tmp_path / "rows.jsonl"
    told = measure(drawn(), tasks)
    assert "4 measured, 0 were there before" in told
    assert "training problems, gsm8k_gen: accuracy 0.0000 ± 0.0000 (3)" in told
    assert "problems of other data" not in caplog.text, "the folders have one name"
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(one["task"], one["split"]) for one in samples] == [
        *([("hendrycks_math_gen", "test")] * 4 + [("gsm8k_gen", "test")] * 4),
        *([("hendrycks_math_gen", "train")] * 5 + [("gsm8k_gen", "train")] * 3),
    ]
    rows = last_rows(output)
    assert {key: row.value for key, row in rows.items()} == dict.fromkeys(rows, 0.0) and len(rows) == 4
    details = rows["hendrycks_math_gen", "train"].details
    assert (details["training_problems"], details["groups"]) == (str(tmp_path / "data" / PROBLEMS), ["math"])
    assert (details["problems"], details["limit"]) == (5, None)

    # The answers that the model gives become the expected ones: of three of five problems, then of all.
    said = {one["question"]: one["extracted"] for one in samples if one["split"] == "train"}
    assert all(said[row["question"]] for row in drawn() if row["group"] == "math")
    for right in (3, 5):
        problems = drawn()
        for row in [row for row in problems if row["group"] == "math"][:right]:
            row["expected_answer"] = said[row["question"]]
        told = measure(problems, tasks)
        assert "2 measured, 2 were there before" in told, "the test problems' rows stay, other problems are measured"
        assert "0 measured, 4 were there before" in measure(problems, tasks)
        share, line = right / 5, table_of(tmp_path, output)["hendrycks_math_gen"]
        assert float(line["train"]) == float(line["gap"]) == pytest.approx(share)
        assert float(line["gap:se"]) == pytest.approx(math.sqrt(share * (1 - share) / 4))
        assert (line["train:examples"], line["test:examples"], line["missing"]) == ("5", "4", "")
    assert (last_rows(output)["hendrycks_math_gen", "train"].value, float(line["gap"])) == (1.0, 1.0)

    # Two of the problems against all test problems: no gap, and why.
    capsys.readouterr()
    assert "2 measured, 0 were there" in measure(problems, "--tasks=hendrycks_math_gen", "--limit=2")
    (tmp_path / "mixed.jsonl").write_text(
        "".join(
            row.as_line() + "\n"
            for row in read_rows(output)
            if (row.split == "train") == (row.details["limit"] == 2) and row.task == "hendrycks_math_gen"
        )
    )
    line = table_of(tmp_path, tmp_path / "mixed.jsonl")["hendrycks_math_gen"]
    assert (line["gap"], line["train:examples"], line["test:examples"]) == ("", "2", "4")
    assert line["missing"] == "the two were not measured alike: limit 2 on training problems, none on test problems"
    assert f"Hendrycks-MATH: no gap of dense, {line['missing']}." in capsys.readouterr().out


def test_problems_of_other_data_and_answers_that_no_number_matches_are_warned_of(
    measure: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems = drawn()
    problems[0]["expected_answer"] = "a dozen"
    measure(problems, "--tasks=gsm8k_gen", "--limit=1", folder="other")
    told = "1 of 3 of the group gsm8k expect what is no number, such as 'a dozen'; no answer to them is right"
    assert told in caplog.text
    trained_on = trained("dense").data
    assert f"{tmp_path / 'other'}: the run was trained on {trained_on}, and these are problems of other" in caplog.text
