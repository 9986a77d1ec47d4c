"""Small models that any revision of the package trains, on the same shards and from the same seed.

The processes that train them import the revision's package from a folder of its own, and nothing else of this tree.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

REPOSITORY = Path(__file__).parent.parent
WORKING_TREE = "working tree"
VOCABULARY, SEQUENCE, SEQUENCES = 512, 64, 16
PRECISIONS = ["fp32", "amp_bf16"]

METRICS = {
    "train/CrossEntropyLoss": "cross-entropy",
    "train/LoadBalancingLoss": "load balancing",
    "train/RouterZLoss": "z-loss",
    "optim/total_grad_norm": "gradient norm",
}
MOE = {"block_type": "moe", "moe_num_experts": 8, "moe_top_k": 2, "moe_loss_weight": 0.01, "moe_zloss_weight": 0.001}
GATED = {"activation_type": "swiglu", "mlp_hidden_size": 128}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({"mlp_hidden_size": 128}, {}),
    "MoE": (MOE, {}),
    "MoE, gated": ({**MOE, **GATED}, {}),
    "MoE, 64 experts": ({**MOE, "moe_num_experts": 64}, {}),
    "MoE, 4 micro-batches": (MOE, {"device_train_microbatch_size": SEQUENCES // 4}),
    "MoE, biases, shared expert": ({**MOE, "include_bias": True, "moe_shared_expert": True}, {}),
}
"""Fields of the model, and of the run."""

MODEL = {
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
    "mlp_hidden_size": 64,
    "activation_type": "gelu",
    "rope": True,
    "layer_norm_type": "rms",
    "include_bias": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "max_sequence_length": SEQUENCE,
    "vocab_size": VOCABULARY,
    "embedding_size": VOCABULARY,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "init_device": "meta",
}
RUN = {
    "seed": 1,
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "eps": 1e-8},
    "scheduler": {"name": "linear_with_warmup", "t_warmup": 4, "alpha_f": 0.0},
    "max_grad_norm": 1.0,
    "global_train_batch_size": SEQUENCES,
    "device_train_microbatch_size": SEQUENCES,
    "device_eval_batch_size": SEQUENCES,
    "distributed_strategy": "fsdp",
    "fsdp": {"wrapping_strategy": "by_block", "precision": "mixed", "sharding_strategy": "FULL_SHARD"},
    "sharded_checkpointer": "torch_new",
    "save_interval": 10_000,
    "save_interval_unsharded": 10_000,
    "eval_interval": 10_000,
    "console_log_interval": 1,
    "no_pre_train_checkpoint": True,
}

CHILD = """
import json, os, sys, traceback
import torch, torch._dynamo, wandb
import olmo.data, olmo.eval, olmo.optim, olmo.tokenizer, olmo.train

def in_a_fork(work, *arguments):
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = work(*arguments)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def train_all(root, threads, runs):
    sys.path.insert(0, root)
    from olmoe_parrots import train, trainer
    assert train.__file__.startswith(root + os.sep), f"{train.__file__} is not in {root}"
    torch.set_num_threads(threads)
    for arguments in runs:
        if code := in_a_fork(train_one, train, arguments):
            return code
        print(flush=True)
    return 0

def train_one(train, arguments):
    os.dup2(2, 1)
    return train.main(arguments)

for job in json.load(sys.stdin):
    if code := in_a_fork(train_all, *job):
        sys.exit(f"exit code {code} with the code in {job[0]}")
"""
"""Trains each run as `python -m olmoe_parrots.train` does, in a fork of a process that has imported its revision's
code, which is a fork of one that has imported what others wrote."""


def write_shards(folder: Path) -> None:
    """Documents whose next token mostly follows from the last, so that there is something to learn."""
    from olmoe_parrots.shards import Manifest, TokenizerInfo, describe_shard

    rng = np.random.default_rng(0)
    ids = (np.cumsum(rng.integers(1, 4, 512 * SEQUENCE)) % (VOCABULARY - 3) + 3).astype("<u2")
    ids[31::32] = MODEL["eos_token_id"]
    (folder / "train").mkdir(parents=True)
    ids.tofile(folder / "train" / "0000.npy")
    (folder / "tokenizer.json").write_bytes(b"no text here")
    digest = hashlib.sha256(b"no text here").hexdigest()
    file = describe_shard(folder, "train/0000.npy", "train", "numbers", "uint16", len(ids) // 32)
    tokenizer = TokenizerInfo("none", digest, VOCABULARY, 2, 0)
    Manifest(tokenizer=tokenizer, dtype="uint16", files=[file], mixture={}, seed=0).save(folder)


def checked_out(revision: str, folder: Path) -> Path:
    """A revision's package in a folder of its own; nothing of the repository changes."""
    if revision == WORKING_TREE:
        return REPOSITORY
    target = folder / revision
    if not target.exists():
        archive = git("archive", "--format=tar", revision, "olmoe_parrots")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(target, filter="data")
    return target


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(REPOSITORY), *arguments], check=True, stdout=subprocess.PIPE).stdout


Losses = dict[tuple[str, str], dict[str, list[float]]]
"""By case and precision, and then by metric: a value each step."""


def losses_of(jobs: list[tuple[str, int]], folder: Path, cases: list[str], steps: int) -> list[Losses]:
    """Train `cases` with the code of each revision, on so many threads, in fp32 and in bf16.

    :param jobs: revision and number of threads.
    :param folder: for checkouts and runs; has the shards in ``data``.
    """
    keys = [(case, precision) for case in cases for precision in PRECISIONS]
    asked, runs = [], [Path(tempfile.mkdtemp(dir=folder)) for _ in jobs]
    for (revision, threads), run in zip(jobs, runs, strict=True):
        arguments = [
            [str(write_config(run / f"{number}.yaml", case, folder / "data", steps)), f"--precision={precision}"]
            for number, (case, precision) in enumerate(keys)
        ]
        asked.append((str(checked_out(revision, folder)), threads, arguments))
    train_in_forks(asked, folder, len(keys) * len(jobs))
    return [
        {key: read_losses(run / f"{number}/metrics.jsonl", steps) for number, key in enumerate(keys)} for run in runs
    ]


def train_in_forks(jobs: list[tuple[str, int, list[list[str]]]], folder: Path, runs: int) -> None:
    """Run :data:`CHILD`; ends the program with what it said when a revision cannot train a model."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command, pipe = [sys.executable, "-W", "ignore", "-c", CHILD], subprocess.PIPE
    with (folder / "log").open("w+") as log:
        child = subprocess.Popen(command, env=environment, cwd=folder, text=True, stdin=pipe, stdout=pipe, stderr=log)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(jobs))
        child.stdin.close()
        for _ in tqdm(child.stdout, total=runs, leave=False):
            pass
        if child.wait():
            log.seek(0)
            raise SystemExit(f"not all models could be trained:\n{log.read()[-3000:]}")


def write_config(path: Path, case: str, data: Path, steps: int) -> Path:
    """The config of a run that goes to the folder of the same name."""
    model, fields = CASES[case]
    config = {**RUN, "run_name": path.stem, "save_folder": str(path.with_suffix("")), "max_duration": steps, **fields}
    config |= {"data_folder": str(data), "data": {"paths": [str(data / "train/0000.npy")], "drop_last": True}}
    path.write_text(json.dumps({**config, "model": {**MODEL, **model}}))
    return path


def read_losses(path: Path, steps: int) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "train/CrossEntropyLoss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1)), f"{path} has not one row a step"
    return {name: [row[key] for row in rows] for key, name in METRICS.items() if key in rows[0]}
