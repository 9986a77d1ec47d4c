"""The evaluation command, from a checkpoint to rows of a results file."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from evaluation_runs import CONTEXT, STEPS, TASK, tiny_text, trained
from train_server import start_run

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.errors import InputError
from olmoe_parrots.evaluate import main
from olmoe_parrots.evaluation.checkpoints import load_model
from olmoe_parrots.results import Row, read_rows

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")
QUICK = ["--limit=12", f"--tasks={TASK},jeopardy_bpb_5shot"]


def rows_in(path: Path) -> dict[tuple[str, str], Row]:
    rows = read_rows(path)
    found = {(row.task, row.metric): row for row in rows}
    assert len(found) == len(rows), "no measurement is there twice"
    return found


def test_rows_say_what_was_measured_of_which_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = trained("moe"), tmp_path / "out" / "results.jsonl"
    assert main([str(run.folder), *QUICK, f"--perplexity={run.data}", f"--output={output}"]) == 0
    rows = rows_in(output)
    assert [key for key in rows if key[0] == TASK] == [(TASK, "accuracy"), (TASK, "bits_per_byte")]
    texts = ["perplexity", "perplexity/web", "perplexity/wiki"]
    assert [row.task for row in rows.values() if row.metric == "nats_per_token"] == texts
    shape = ModelShape.from_config(load_model(str(run.folder)).cfg.model)
    for row in rows.values():
        assert (row.model, row.step, row.checkpoint) == ("moe", STEPS, str(run.folder / f"step{STEPS}"))
        assert row.training_tokens == STEPS * 8 * CONTEXT
        assert row.training_flops == row.training_tokens * shape.flops_per_token()
        assert (row.total_params, row.active_params) == (shape.total_params(), shape.active_params())
        assert (row.architecture["experts"], row.architecture["top_k"]) == (4, 2)
        assert (row.details["limit"], row.details["precision"], row.details["context"]) == (12, "fp32", CONTEXT)
        assert row.versions["ai2-olmo"] == "0.6.0", "of the run, from its provenance"
    told = rows[TASK, "accuracy"]
    assert (told.split, told.examples, told.details["label"], told.details["shots"]) == ("validation", 12, TASK, 0)
    printed = capsys.readouterr().err
    assert f"{TASK}: accuracy {told.value:.4f} ± {told.standard_error:.4f} (12" in printed
    assert f"3 measured, 0 were there before: rows are in {output}" in printed


def test_a_rerun_measures_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = str(trained("dense").folder), tmp_path / "results.jsonl"
    main([folder, "--limit=5", f"--tasks={TASK}", f"--output={output}"])
    before = output.read_text()
    output.write_text(before + '{"torn')
    capsys.readouterr()
    main([folder, "--limit=5", f"--tasks={TASK},jeopardy_bpb_5shot", f"--output={output}"])
    assert output.read_text().startswith(before)
    assert "1 measured, 1 were there before" in (printed := capsys.readouterr().err)
    assert "it ends in the middle" in printed
    main([folder, "--limit=5", f"--tasks=jeopardy_bpb_5shot,{TASK}", f"--output={output}"])
    assert "0 measured, 2 were there before" in capsys.readouterr().err
    main([folder, "--limit=6", f"--tasks={TASK}", f"--output={output}"])
    main([str(trained("moe").folder), "--limit=5", f"--tasks={TASK}", f"--output={output}"])
    told = [(row.model, row.task, row.examples) for row in read_rows(output, lambda _: None)]
    accuracies = [one for one, _ in zip(told, range(99), strict=False) if one[1] == TASK][::2]
    assert accuracies == [("dense", TASK, 5), ("dense", TASK, 6), ("moe", TASK, 5)]


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    arguments = [str(trained("moe").folder), *QUICK, f"--perplexity={tiny_text()}", "--batch-size=5"]
    main([*arguments, f"--output={tmp_path / 'one'}"])
    words = [*arguments, f"--output={tmp_path / 'two'}"]
    run = start_run(words, 2, {**os.environ, "OMP_NUM_THREADS": "1"}, free_port(), "olmoe_parrots.evaluate")
    printed, _ = run.communicate(300)
    assert run.returncode == 0, printed
    one, two = rows_in(tmp_path / "one"), rows_in(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key].value == pytest.approx(row.value, rel=1e-6), key
        assert two[key].examples == row.examples
        assert two[key].details["ranks"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks=helaswag_rc_0shot"], "there is no such task; did you mean .*hellaswag_rc_0shot"),
        (["--tasks=piqa_rc_0shot", "--tokenizer=gone.json"], "gone.json: there is no such file"),
        (["--perplexity=gone"], "gone/manifest.json: there is no manifest"),
        (["--tasks=piqa_rc_0shot", "--output=/proc"], "/proc: it cannot be written"),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main([str(trained("dense").folder), *arguments])


@pytest.mark.parametrize("arguments", [[], ["run", "--limit=0"], ["run", "--batch-size=-1"], ["run", "--precision=16"]])
def test_bad_arguments_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_that_has_diverged_is_told(tmp_path: Path) -> None:
    import shutil

    import torch

    copy = shutil.copytree(trained("dense").unsharded, tmp_path / f"step{STEPS}-unsharded")
    (copy / "manifest.json").unlink(missing_ok=True)
    weights: dict[str, Any] = torch.load(copy / "model.pt", weights_only=True)
    weights["transformer.wte.weight"].fill_(float("nan"))
    torch.save(weights, copy / "model.pt")
    output = tmp_path / "rows"
    with pytest.raises(InputError, match="its training has diverged"):
        main([str(copy), "--limit=3", "--tasks=jeopardy_bpb_5shot", f"--output={output}"])
    assert not output.exists()


def test_the_catalogue_and_help_need_neither_a_checkpoint_nor_torch() -> None:
    code = (
        "import sys\nfrom olmoe_parrots.evaluate import main\n"
        "main(['--list'])\n"
        "print(sorted({'torch', 'olmo', 'olmo_eval', 'datasets'} & set(sys.modules)))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]" in done.stdout.splitlines()
    for words in ("hellaswag_rc_0shot", "10,042", "world_knowledge", "GSM8K", "--perplexity FOLDER"):
        assert words in done.stdout
    assert done.stderr == ""
