"""Bad input to the training command: one clear line that names file or option, value and remedy, before any work."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, free_port

from olmoe_parrots.errors import InputError
from olmoe_parrots.train import main

ConfigWriter = Callable[..., Path]


def refusal(config: Path | str, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        main([str(config), *overrides])
    line = str(refused.value)
    assert "\n" not in line
    assert line.count(";") >= 1, "a remedy follows"
    return line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--model.n_laers=2", ["--model.n_laers", "no such option", "model.n_layers"]),
        ("--modell.n_layers=2", ["--modell", "no such option"]),
        ("--model.n_layers=many", ["model.n_layers", "many"]),
        ("--model.moe_top_k=5", ["model.moe_top_k=5", "4 experts"]),
        ("--model.moe_top_k=0", ["model.moe_top_k=0"]),
        ("--model.n_heads=3", ["model.n_heads=3", "32"]),
        ("--model.n_heads=32", ["model.n_heads=32", "even head size"]),
        ("--model.n_kv_heads=4", ["model.n_kv_heads=4"]),
        ("--model.vocab_size=127", ["127", "128"]),
        ("--model.eos_token_id=3", ["eos", "3"]),
        ("--model.max_sequence_length=100000", ["100000"]),
        ("--data.memmap_dtype=uint32", ["uint32", "uint16"]),
        ("--model.moe_mlp_impl=fast", ["model.moe_mlp_impl=fast", "grouped"]),
        ("--model.moe_expert_model_parallelism=true", ["moe_expert_model_parallelism", "FSDP"]),
        ("--global_train_batch_size=1000000", ["global_train_batch_size=1000000", "fewer than one batch"]),
        ("--device_train_microbatch_size=3", ["device_train_microbatch_size=3", "8 sequences"]),
        ("--data.drop_last=false", ["data.drop_last"]),
        ("--max_duration=4x", ["max_duration=4x", "1ep"]),
        ("--max_duration=0", ["max_duration=0"]),
        ("--precision=fp8", ["precision=fp8", "amp_bf16"]),
        ("--distributed_strategy=null", ["distributed_strategy"]),
        ("--sharded_checkpointer=local", ["sharded_checkpointer", "torch_new"]),
        ("--load_path=/nowhere/step4", ["/nowhere/step4", "not a checkpoint"]),
        ("--data.paths=[/nowhere/x.npy]", ["/nowhere/x.npy", "does not exist"]),
        ("--save_folder=/proc/run", ["/proc/run", "--save_folder"]),
    ],
)
def test_a_bad_option_is_named(tiny_config: ConfigWriter, tmp_path: Path, override: str, words: list[str]) -> None:
    line = refusal(tiny_config(), override)
    for word in words:
        assert word in line, line
    assert not (tmp_path / "run").exists(), "nothing may be written before the refusal"


def test_a_config_that_is_missing_or_does_not_parse(tmp_path: Path) -> None:
    assert "no such config" in refusal(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model:\n  d_model: [1\noptimizer: {}\n")
    assert "line 3" in refusal(broken)
    broken.write_text("- a list\n")
    assert "mapping" in refusal(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "not YAML" in refusal(broken)


def test_an_argument_that_is_no_override(tiny_config: ConfigWriter) -> None:
    assert "--key=value" in refusal(tiny_config(), "max_duration=3")
    assert "--key=value" in refusal(tiny_config(), "--max_duration", "3")


def test_no_data(tiny_config: ConfigWriter) -> None:
    config = tiny_config()
    fields = yaml.safe_load(config.read_text())
    fields["data"]["paths"] = "${path.glob:/nowhere/train/*.npy}"
    config.write_text(yaml.safe_dump(fields))
    assert "/nowhere/train/*.npy" in refusal(config)
    assert "data_folder" in refusal(config, "--data.paths=[]")


def test_an_unknown_task(tiny_config: ConfigWriter) -> None:
    tokenizer = "--tokenizer.identifier=tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    line = refusal(tiny_config(), tokenizer, "--evaluators=[{label: piqqa, type: downstream}]")
    assert "piqqa" in line
    assert "piqa" in line.split(";")[1]


def test_a_truncated_shard(tiny_config: ConfigWriter, shards: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(shards, tmp_path / "copy")
    shard = copy / "train" / "0000.npy"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert "0000.npy" in refusal(tiny_config(), f"--data.paths=[{shard}]")


def test_a_full_disk(tiny_config: ConfigWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose checkpoints no disk holds: 10^6 wide, 10^13 parameters a layer."""
    line = refusal(tiny_config(), "--model.d_model=1000000", "--model.n_heads=1000")
    assert "GB" in line
    assert "save_folder" in line


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_config: ConfigWriter, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    line = refusal(tiny_config())
    assert "already holds a run" in line
    assert "--try_load_latest_save" in line


def test_two_ranks_are_refused_once(tiny_config: ConfigWriter) -> None:
    """More ranks than sequences, under torchrun: the line is printed by one rank only, and torchrun fails."""
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [sys.executable, "-m", *torchrun, "-m", "olmoe_parrots.train", str(tiny_config())]
    command += ["--global_train_batch_size=1"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ)
    )
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "more ranks (2) than sequences" in done.stderr


def test_exit_code_and_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "olmoe_parrots.train", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_help_needs_neither_torch_nor_olmo() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['train', '--help']\n"
        "try:\n    runpy.run_module('olmoe_parrots.train', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'olmo', 'omegaconf'} & set(sys.modules), 'imported too much'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--key=value" in done.stdout
