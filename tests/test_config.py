"""Configs: loading, overriding, saving, OLMoE's own, and what every ``moe_*`` field does."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from olmo.config import ModelConfig as OLMoModelConfig
from olmo.exceptions import OLMoConfigurationError
from omegaconf import OmegaConf
from synthetic_data import make_data
from torch import Tensor

from olmoe_parrots.accounting import ModelShape
from olmoe_parrots.config import BlockType, ModelConfig, TrainConfig, load_train_config
from olmoe_parrots.errors import InputError
from olmoe_parrots.model import MoEOLMo, build_model, initialize
from olmoe_parrots.moe import megablocks
from olmoe_parrots.moe.losses import load_balancing_loss
from olmoe_parrots.preflight import check
from olmoe_parrots.train import main

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted((REPOSITORY / "configs").rglob("*.yaml"))
PUBLIC = Path(__file__).parent / "fixtures" / "olmoe_public_config.yml"
MOE_FIELDS = [field.name for field in dataclasses.fields(ModelConfig) if field.name.startswith("moe_")]

pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver:UserWarning")


def load(path: Path, *overrides: str) -> TrainConfig:
    return load_train_config(str(path), list(overrides), validate_paths=False)


# Loading and saving.


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data from whose manifest the configs of the synthetic tasks take what depends on the task."""
    return make_data(tmp_path_factory.mktemp("data") / "book", "phone_book", size=16, test_size=8)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_shipped_configs_load_and_come_back_equal(path: Path, book: Path, tmp_path: Path) -> None:
    data = f"data_folder={book}"
    cfg = load(path, data)
    assert isinstance(cfg, TrainConfig) and isinstance(cfg.model, ModelConfig)
    assert isinstance(cfg.model.block_type, BlockType)
    cfg.save(tmp_path / "saved.yaml")
    again = load(tmp_path / "saved.yaml")
    assert again == cfg
    assert type(again.model) is ModelConfig
    assert again != load(path, data, "model.n_layers=7")


def test_values_of_a_manifest(book: Path) -> None:
    manifest = json.loads((book / "manifest.json").read_text())
    path = REPOSITORY / "configs" / "synthetic" / "moe_d512_e8.yaml"
    cfg = load(path, f"data_folder={book}")
    assert cfg.model.max_sequence_length == manifest["mixture"]["sequence_length"] == 9
    assert cfg.model.vocab_size == cfg.model.embedding_size == manifest["tokenizer"]["vocabulary_size"] == 39
    assert (cfg.model.eos_token_id, cfg.model.pad_token_id) == (1, 0)
    assert cfg.data.label_mask_paths == [str(book / "train" / "phone_book-00000.label_mask")]
    assert [(evaluator.label, str(evaluator.type)) for evaluator in cfg.evaluators] == [("phone_book", "synthetic")]
    larger = load(path, f"data_folder={book}", "model.embedding_size=64")
    assert (larger.model.vocab_size, larger.model.embedding_size) == (39, 64)


def test_overrides() -> None:
    cfg = load(
        REPOSITORY / "configs" / "moe_d512_e16.yaml",
        "model.n_layers=3",
        "model.moe_num_experts=5",
        "model.moe_zloss_weight=null",
        "model.block_type=sequential",
        "optimizer.learning_rate=0.5",
        "evaluators=[]",
        "run_name=other",
        "data_folder=elsewhere",
    )
    assert (cfg.model.n_layers, cfg.model.moe_num_experts, cfg.model.moe_zloss_weight) == (3, 5, None)
    assert cfg.model.block_type is BlockType.sequential
    assert cfg.optimizer.learning_rate == 0.5
    assert cfg.evaluators == []
    # what is derived from an option follows it
    assert cfg.save_folder == "runs/other"
    assert cfg.tokenizer.identifier == "elsewhere/tokenizer.json"


def test_data_paths_follow_the_data_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for name in ("b.npy", "a.npy", "a.csv.gz"):
            (tmp_path / split / name).touch()
    cfg = load(REPOSITORY / "configs" / "dense_d256.yaml", f"data_folder={tmp_path}")
    assert cfg.data.paths == [str(tmp_path / "train" / name) for name in ("a.npy", "b.npy")]
    assert cfg.evaluators[0].data.datasets == {
        "validation": [str(tmp_path / "validation" / name) for name in ("a.npy", "b.npy")]
    }


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.moe_num_expert=5", "moe_num_expert"),
        ("model.block_type=dense", "dense"),
        ("model.moe_top_k=two", "two"),
        ("no_such_option=1", "no_such_option"),
    ],
)
def test_unknown_options_and_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(OLMoConfigurationError, match=message):
        load(REPOSITORY / "configs" / "moe_d512_e16.yaml", override)


def test_defaults_beyond_olmos_are_the_moe_fields_alone() -> None:
    ours = {field.name: field for field in dataclasses.fields(ModelConfig)}
    theirs = {field.name: field for field in dataclasses.fields(OLMoModelConfig)}
    assert set(ours) - set(theirs) == set(MOE_FIELDS)
    for name in theirs:
        assert getattr(ModelConfig(), name) == getattr(OLMoModelConfig(), name)
    assert [block.value for block in BlockType] == ["sequential", "llama", "moe"]


# OLMoE's own config.


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {key: leaf for name, child in node.items() for key, leaf in leaves(child, f"{prefix}{name}.").items()}
    if isinstance(node, list | tuple):
        return leaves(dict(enumerate(node)), prefix)
    return {prefix.rstrip("."): node}


def test_a_public_olmoe_config_loads_unchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    cfg = load(PUBLIC)
    asked = leaves(OmegaConf.to_container(OmegaConf.load(PUBLIC)))
    loaded = leaves(OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True))
    for key, value in asked.items():
        if not str(value).startswith("$") and "${" not in str(value):
            assert loaded[key] == value, key
    assert cfg.run_name == "1234" and cfg.save_folder == "runs/1234"
    assert cfg.device_eval_batch_size == 4
    assert cfg.scheduler.t_max == 5e12
    assert cfg.model.moe_backend == "auto"
    # fields that the file leaves out have OLMoE's defaults
    assert (cfg.model.moe_shared_expert, cfg.model.moe_lbl_in_fp32, cfg.model.moe_log_expert_assignment) == (False,) * 3
    cfg.save(tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == cfg


def test_a_public_olmoe_config_builds_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    config = load(PUBLIC).model
    model = build_model(config)
    assert isinstance(model, MoEOLMo) and all(parameter.is_meta for parameter in model.parameters())
    shape = ModelShape.from_config(config)
    assert shape.total_params() == sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".ff_out.w_" in name)
    assert shape.active_params() == shape.total_params() - experts * 56 // 64
    # OLMoE-1B-7B: 6.9B in total, 1.3B active
    assert shape.total_params() == pytest.approx(6.92e9, rel=0.001)
    assert round(shape.active_params() / 1e9, 1) == 1.3


# What every moe_* field does. Each check below shows that its field changes something, or is refused.


def make_model(**options: Any) -> MoEOLMo:
    config = ModelConfig.new(
        d_model=16,
        n_heads=2,
        n_layers=2,
        mlp_hidden_size=16,
        activation_type="gelu",
        rope=True,
        include_bias=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        max_sequence_length=16,
        vocab_size=64,
        embedding_size=64,
        init_std=0.3,
        **{"block_type": "moe", "moe_num_experts": 4, **options},
    )
    model = build_model(config)
    initialize(model, 3)
    return model  # type: ignore[return-value]


IDS = torch.arange(3, 35).view(2, 16)


def logits(**options: Any) -> Tensor:
    with torch.no_grad():
        return make_model(**options)(IDS).logits


def refusal(**options: Any) -> str:
    overrides = [f"model.{key}={value}" for key, value in options.items()]
    with pytest.raises(InputError) as caught:
        check(load(REPOSITORY / "configs" / "quickstart_moe.yaml", *overrides), "quickstart.yaml", world_size=1)
    return str(caught.value)


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tiny_config: Callable[..., Path], tmp_path: Path) -> Train:
    """Train the tiny MoE for one step and return its row of metrics."""

    def run(micro_batch: int = 8, fields: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        settings = {"save_folder": str(folder), "max_duration": 1, "device_train_microbatch_size": micro_batch}
        assert main([str(tiny_config(model={"init_std": 0.3, **model}, **settings, **(fields or {})))]) == 0
        (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return row

    return run


def check_num_experts(train: Train) -> None:
    model = make_model(moe_num_experts=6)
    assert [row.tokens_per_expert_E.shape for row in model(IDS).routing] == [(6,), (6,)]
    assert model.num_params() - make_model(moe_num_experts=5).num_params() == 2 * (2 * 16 * 16 + 16)
    assert "quickstart.yaml, model.moe_num_experts=0: it must be at least 1" in refusal(moe_num_experts=0)


def check_top_k(train: Train) -> None:
    for top_k in (1, 3):
        routing = make_model(moe_top_k=top_k)(IDS).routing
        assert all(layer.tokens_per_expert_E.sum() == top_k * IDS.numel() for layer in routing)
    assert not torch.allclose(logits(moe_top_k=1), logits(moe_top_k=2))
    assert "model.moe_top_k=9: a token cannot visit that many of 8 experts" in refusal(moe_top_k=9)
    assert "model.moe_top_k=0" in refusal(moe_top_k=0)


def check_mlp_impl(train: Train) -> None:
    named = {name: make_model(moe_mlp_impl=name) for name in ("auto", "sparse", "threaded", "grouped", "loop")}
    backends = {name: model.transformer["blocks"][1].ff_out.backend for name, model in named.items()}
    assert backends == {name: "auto" if name == "sparse" else name for name in named}
    outputs = [model(IDS).logits for model in named.values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-5)
    narrow = {"d_model": 16, "mlp_hidden_size": 18}
    overrides = [f"model.{key}={value}" for key, value in {**narrow, "n_heads": 2, "init_device": "cpu"}.items()]
    for name in ("auto", "loop", "grouped"):
        cfg = load(REPOSITORY / "configs" / "quickstart_moe.yaml", *overrides, f"model.moe_mlp_impl={name}")
        model = build_model(cfg.model)
        if name == "grouped":
            with pytest.raises(ValueError, match="moe_mlp_impl=grouped cannot run"):
                model(IDS)
        else:
            assert model(IDS).logits.isfinite().all()
    assert (
        "model.moe_mlp_impl=dense: no such backend; use auto, sparse, threaded, grouped, megablocks, loop"
        in refusal(moe_mlp_impl="dense")
    )
    reason = "have no biases" if megablocks.is_available() else "MegaBlocks is not installed"
    assert reason in refusal(moe_mlp_impl="megablocks", include_bias="true")


def check_log_expert_assignment(train: Train) -> None:
    def logged(value: bool) -> dict[str, float]:
        """What reaches wandb, which is left out of the row of metrics."""
        rows: list[dict[str, float]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("WANDB_API_KEY", raising=False)
            patch.setattr(wandb, "run", object())
            patch.setattr(wandb, "log", lambda row, step: rows.append(row))
            for name in ("init", "finish"):
                patch.setattr(wandb, name, lambda **_: None)
            train(fields={"wandb": {"project": "parrots"}}, moe_log_expert_assignment=value)
        found = {key: share for row in rows for key, share in row.items()}
        assert "train/CrossEntropyLoss" in found
        return {key: share for key, share in found.items() if re.fullmatch(r"routing/layer\d/expert\d", key)}

    assert logged(False) == {}
    shares = logged(True)
    assert len(shares) == 2 * 4
    assert sum(shares.values()) == pytest.approx(2)


def check_shared_expert(train: Train) -> None:
    plain, shared = make_model(), make_model(moe_shared_expert=True)
    assert shared.num_params() - plain.num_params() == 2 * 2 * 16 * 16
    before = shared(IDS).logits
    with torch.no_grad():
        for block in shared.transformer["blocks"]:
            block.ff_out.shared_expert.w_out.weight.zero_()
    assert not torch.allclose(shared(IDS).logits, before)


def check_lbl_in_fp32(train: Train) -> None:
    losses = []
    for value in (False, True):
        model = make_model(moe_lbl_in_fp32=value)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(load_balancing_loss(model(IDS).routing).item())
        # nothing to lower where everything is computed in single precision
        losses.append(load_balancing_loss(model(IDS).routing).item())
    assert losses[0] != losses[2]
    assert losses[1] == losses[3]


def check_loss_weight(train: Train) -> None:
    one, three = train(moe_loss_weight=0.01), train(moe_loss_weight=0.03)
    assert three["train/LoadBalancingLoss"] == pytest.approx(3 * one["train/LoadBalancingLoss"], rel=1e-5)
    assert one["train/LoadBalancingLoss"] >= 0.0099
    assert three["train/RouterZLoss"] == one["train/RouterZLoss"]
    assert three["optim/total_grad_norm"] != one["optim/total_grad_norm"]


def check_zloss_weight(train: Train) -> None:
    none, one, two = (train(moe_zloss_weight=weight) for weight in (None, 0.001, 0.002))
    assert none["train/RouterZLoss"] == 0
    assert two["train/RouterZLoss"] == pytest.approx(2 * one["train/RouterZLoss"], rel=1e-5)
    assert len({row["optim/total_grad_norm"] for row in (none, one, two)}) == 3


def check_dropless(train: Train) -> None:
    tight = {"moe_capacity_factor": 0.25}
    assert torch.equal(logits(moe_dropless=True, **tight), logits())
    assert not torch.allclose(logits(moe_dropless=False, **tight), logits())


def check_capacity_factor(train: Train) -> None:
    few, many, all_of_them = (logits(moe_dropless=False, moe_capacity_factor=factor) for factor in (0.25, 1.0, 4.0))
    assert not torch.allclose(few, many)
    assert torch.equal(all_of_them, logits())
    assert "model.moe_capacity_factor=0.0: must be positive" in refusal(moe_dropless="false", moe_capacity_factor=0)


def check_expert_model_parallelism(train: Train) -> None:
    problem = refusal(moe_expert_model_parallelism="true")
    assert "model.moe_expert_model_parallelism=True" in problem and "set it to false" in problem


def check_normalize_expert_weights(train: Train) -> None:
    assert not torch.allclose(logits(moe_normalize_expert_weights=True), logits())
    every = {"moe_num_experts": 2, "moe_top_k": 2}
    torch.testing.assert_close(logits(moe_normalize_expert_weights=True, **every), logits(**every))


def check_lbl_global_batch(train: Train) -> None:
    key = "train/LoadBalancingLoss"
    local, cut = train()[key], train(micro_batch=2)[key]
    assert train(moe_lbl_global_batch=True)[key] == pytest.approx(local, rel=1e-6)
    assert train(micro_batch=2, moe_lbl_global_batch=True)[key] == pytest.approx(local, rel=1e-6)
    assert cut != pytest.approx(local, rel=1e-6)


CHECKS: dict[str, Callable[[Train], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.mark.parametrize("field", MOE_FIELDS)
def test_every_moe_field_does_something(field: str, train: Train) -> None:
    name = field.removeprefix("moe_")
    assert name in CHECKS, f"nothing shows what {field} does: write check_{name}"
    CHECKS[name](train)


def test_no_check_is_left_of_a_field_that_went() -> None:
    assert {f"moe_{name}" for name in CHECKS} == set(MOE_FIELDS)
