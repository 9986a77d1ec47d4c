"""Small real data sets and runs that several tests share."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from train_server import Run, start_run

if TYPE_CHECKING:
    from s3_server import S3Server

if not torch.cuda.is_available():
    # MegaBlocks' kernels then run in Triton's interpreter, which has to be known before any test module imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")


LONGEST = ("test_readme.py", "launch/test_slurm.py", "launch/test_local.py", "test_runs.py", "test_elastic.py")
"""The files that take a process longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests: processes share the files, and none should be left to the
    end with a slow one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), item.path not in slow))


REPOSITORY = Path(__file__).parent.parent
VOCABULARY, EOS, PAD = 128, 2, 0

TINY_MODEL = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 32,
    "activation_type": "gelu",
    "rope": True,
    "layer_norm_type": "rms",
    "include_bias": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "max_sequence_length": 16,
    "vocab_size": VOCABULARY,
    "embedding_size": VOCABULARY,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "init_device": "meta",
}
TINY_MOE = {
    "block_type": "moe",
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_mlp_impl": "grouped",
    "moe_loss_weight": 0.01,
    "moe_zloss_weight": 0.001,
}
TINY_RUN = {
    "run_name": "tiny",
    "seed": 1,
    "optimizer": {"name": "adamw", "learning_rate": 0.01, "eps": 1e-8},
    "scheduler": {"name": "linear_with_warmup", "t_warmup": 2, "alpha_f": 0.0},
    "max_grad_norm": 1.0,
    "max_duration": 4,
    "global_train_batch_size": 8,
    "device_train_microbatch_size": 8,
    "device_eval_batch_size": 8,
    "precision": "fp32",
    "distributed_strategy": "fsdp",
    "fsdp": {"wrapping_strategy": "by_block", "precision": "mixed", "sharding_strategy": "FULL_SHARD"},
    "ddp": {"grad_sync_mode": "batch"},
    "sharded_checkpointer": "torch_new",
    "save_interval": 2,
    "save_interval_unsharded": 100,
    "no_pre_train_checkpoint": True,
    "eval_interval": 100,
}


def write_shards(folder: Path, tokens: int = 4096, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """A data set folder of documents whose next token mostly follows from the last, with a manifest by the book."""
    from olmoe_parrots.shards import Manifest, TokenizerInfo, describe_shard

    rng = np.random.default_rng(seed)
    for split in ("train", "validation"):
        ids = (np.cumsum(rng.integers(1, 4, tokens)) % (vocabulary - 3) + 3).astype("<u2")
        ids[31::32] = EOS
        (folder / split).mkdir(parents=True)
        ids.tofile(folder / split / "0000.npy")
    files = [
        describe_shard(folder, f"{split}/0000.npy", split, "test", "uint16", tokens // 32)
        for split in ("train", "validation")
    ]
    (folder / "tokenizer.json").write_bytes(b"no text here")
    digest = hashlib.sha256(b"no text here").hexdigest()
    Manifest(
        tokenizer=TokenizerInfo("test", digest, vocabulary, EOS, PAD),
        dtype="uint16",
        files=files,
        mixture={},
        seed=seed,
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture
def tiny_config(shards: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config of a tiny MoE (or dense) run on the tiny shards; keyword arguments replace top-level fields."""

    def write(*, moe: bool = True, model: dict | None = None, **fields: object) -> Path:
        import yaml

        config = {**TINY_RUN, "data_folder": str(shards), "save_folder": str(tmp_path / "run"), **fields}
        config["model"] = {**TINY_MODEL, **(TINY_MOE if moe else {}), **(model or {})}
        config["data"] = {"paths": [str(shards / "train" / "0000.npy")], "drop_last": True}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3Server"]:
    """A real S3 server on the loopback, with no bucket in it that a test could use."""
    from s3_server import running_server

    with running_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def s3(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "S3Server":
    """The server, with the environment set as a user's would be to reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_train(config: Path, *overrides: str, ranks: int = 1, env: dict[str, str] | None = None) -> Run:
    """Start the training command, in several processes as torchrun would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return start_run([str(config), *overrides], ranks, environment, free_port())


def train(config: Path, *overrides: str, ranks: int = 1) -> str:
    """Train to the end and return what was printed; fails when the command does."""
    process = start_train(config, *overrides, ranks=ranks)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def train_many(ranks: int, arguments: list[str]) -> None:
    """Train several configs one after the other; see tests/train_many.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = start_run(arguments, ranks, environment, free_port(), "train_many")
    output, _ = run.communicate(900)
    assert run.returncode == 0, output[-6000:]


def metrics_of(folder: Path) -> dict[int, dict]:
    """The metrics row of each trained step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "train/CrossEntropyLoss" in row}


def losses_of(folder: Path, key: str = "train/CrossEntropyLoss") -> list[float]:
    return [row[key] for _, row in sorted(metrics_of(folder).items())]


@pytest.fixture
def package() -> Iterator[ModuleType]:
    """The real MegaBlocks package, its global lists emptied afterwards."""
    from olmoe_parrots.moe import megablocks

    if not megablocks.is_available():
        pytest.skip("MEGABLOCKS IS NOT INSTALLED, so nothing was compared with it: run `make megablocks`")
    loaded = megablocks.load_megablocks()
    yield loaded
    loaded.layers.moe.clear_load_balancing_loss()
    loaded.layers.router.clear_router_zloss()
