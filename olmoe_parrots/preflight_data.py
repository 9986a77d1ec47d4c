"""What can be wrong with the data that a config names: files, manifests, label masks, tokenizer, tasks."""

import difflib
import os
from pathlib import Path
from typing import Any

from . import remote
from .errors import InputError
from .shard_checks import VERIFICATIONS, check_training_shards


def refuse(config_path: str, option: str, value: Any, problem: str, remedy: str) -> InputError:
    """The error of one option of a config."""
    return InputError(f"{config_path}, {option}={value}", problem, remedy)


def check_data(cfg: Any, path: str, world_size: int) -> None:
    """Check the data of a loaded config, for training and for evaluation.

    :raises InputError: for whatever is wrong. Under torchrun only the first rank reads files whole and asks S3: when it
        refuses, torchrun ends the others.
    """
    if cfg.verify_data not in VERIFICATIONS:
        raise refuse(path, "verify_data", cfg.verify_data, "there is no such check", f"use {', '.join(VERIFICATIONS)}")
    if not _files(cfg.data):
        remedy = "name a folder written by data_prep with --data_folder=DIR"
        raise InputError(f"{path}, data.paths", "there are no training files", remedy)
    sequences = _check_files(cfg, cfg.data)
    if sequences is not None and sequences < cfg.global_train_batch_size:
        length = cfg.model.max_sequence_length
        problem = f"the data holds {sequences} sequences of {length} tokens, fewer than one batch"
        raise refuse(path, "global_train_batch_size", cfg.global_train_batch_size, problem, "prepare more text")
    for evaluator in cfg.evaluators:
        if str(evaluator.type) == "lm":
            _check_held_out(cfg, evaluator, path, world_size)
        elif str(evaluator.type) == "synthetic":
            _check_queries(cfg, evaluator, path)
    if cfg.has_tasks:
        _check_tokenizer(cfg.tokenizer.identifier, path)
        _check_tasks([e.label for e in cfg.evaluators if str(e.type) == "downstream"], path)


def _files(data: Any) -> list[str]:
    """The token files of a data section, in the order in which OLMo reads them (olmo/data/__init__.py:23)."""
    by_label = data.datasets or {}
    return [*(data.paths or []), *(file for label in sorted(by_label) for file in by_label[label])]


def _check_files(cfg: Any, data: Any) -> int | None:
    """The sequences that the files hold; None where this rank does not look at them all."""
    files = _files(data)
    first_rank = os.environ.get("RANK", "0") in ("", "0")
    if not first_rank and any(remote.is_remote(file) for file in files):
        return None
    sequences = check_training_shards(
        files,
        vocab_size=cfg.model.vocab_size,
        eos_token_id=cfg.model.eos_token_id,
        pad_token_id=cfg.model.pad_token_id,
        dtype=data.memmap_dtype,
        sequence_length=cfg.model.max_sequence_length,
        label_mask_paths=data.label_mask_paths,
        verification=cfg.verify_data if first_rank else "sizes",
    )
    unchecked = any("://" in str(file) and not remote.is_remote(file) for file in files)
    return None if unchecked else sequences


def _check_held_out(cfg: Any, evaluator: Any, path: str, world_size: int) -> None:
    where = f"{path}, evaluator {evaluator.label}"
    if not _files(evaluator.data):
        remedy = "point data_folder at a folder with validation shards, or set evaluators=[]"
        raise InputError(where, "there are no validation files", remedy)
    sequences = _check_files(cfg, evaluator.data)
    if sequences is not None and sequences < world_size:
        problem = (
            f"its {sequences} sequences of {cfg.model.max_sequence_length} tokens are fewer than {world_size} ranks"
        )
        raise InputError(where, problem, "hold out more text, or set evaluators=[]")


def _check_queries(cfg: Any, evaluator: Any, path: str) -> None:
    """Whether a synthetic task's queries and answers are what the model can read and write."""
    from .synthetic.build import load_task
    from .synthetic.task import EOS, PAD

    where = f"{path}, evaluator {evaluator.label}"
    if (folder := evaluator.folder or cfg.data_folder) is None:
        raise InputError(where, "it names no folder", "give one with --data_folder=DIR, or set evaluators=[]")
    task, queries = load_task(folder)
    length = queries.prompts_QT.shape[1] + task.answer_length
    if length > cfg.model.max_sequence_length:
        problem = f"its queries and answers take {length} tokens, the model's sequences {cfg.model.max_sequence_length}"
        raise InputError(where, problem, f"set model.max_sequence_length to {task.row_length}")
    wanted = {"vocab_size": len(task.vocabulary.words), "eos_token_id": EOS, "pad_token_id": PAD}
    for option, value in wanted.items():
        if getattr(cfg.model, option) != value:
            problem = f"the {option} of the task is {value} and the model's is {getattr(cfg.model, option)}"
            raise InputError(where, problem, f"set the model's to {value}, or name a folder of the same task")
    batch_size = evaluator.device_eval_batch_size or cfg.device_eval_batch_size
    if batch_size < 1:
        raise refuse(path, "device_eval_batch_size", batch_size, "it must be at least 1", "correct it")


def _check_tokenizer(identifier: str, path: str) -> None:
    from olmo_data import is_data_file

    if remote.is_remote(identifier):
        found = remote.exists(identifier)
    else:
        found = Path(identifier).is_file() or is_data_file(identifier)
    if not found:
        remedy = "give a tokenizer.json, such as the one in the data folder"
        raise refuse(path, "tokenizer.identifier", identifier, "there is no such file", remedy)


def _check_tasks(labels: list[str], path: str) -> None:
    from olmo_eval import list_tasks

    known = list_tasks()
    for label in labels:
        if label not in known:
            near = ", ".join(difflib.get_close_matches(label, known, n=3)) or "another"
            raise InputError(f"{path}, evaluator {label}", "ai2-olmo-eval has no such task", f"did you mean {near}?")
