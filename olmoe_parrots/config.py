"""OLMo's model and training configs with the fields of OLMoE's MoE branch under OLMoE's names, and a few of ours.

Our own fields are marked so; every other keeps the meaning that OLMo or OLMoE gives it.
"""

import warnings
from dataclasses import dataclass, field
from glob import glob
from typing import Any

from olmo.config import EvaluatorConfig as OLMoEvaluatorConfig
from olmo.config import ModelConfig as OLMoModelConfig
from olmo.config import StrEnum
from olmo.config import TrainConfig as OLMoTrainConfig
from olmo.config import WandbConfig as OLMoWandbConfig
from omegaconf import OmegaConf

from . import remote
from .errors import InputError
from .shards import MANIFEST, Manifest

OLMOE_MLP_IMPLEMENTATIONS = ("sparse", "grouped")
"""OLMoE's own values of ``moe_mlp_impl``: two MegaBlocks kernels for one and the same function."""


class BlockType(StrEnum):
    """OLMo's block types and OLMoE's ``moe``."""

    sequential = "sequential"
    llama = "llama"
    moe = "moe"


@dataclass
class ModelConfig(OLMoModelConfig):
    """OLMo's ``ModelConfig`` plus mixture-of-experts fields; defaults as in OLMoE's branch of OLMo."""

    block_type: BlockType = BlockType.sequential  # type: ignore[assignment]

    moe_num_experts: int = 8
    """Experts in each layer."""

    moe_top_k: int = 2
    """Experts that each token visits."""

    moe_mlp_impl: str = "sparse"
    """How the experts are computed: ``auto``, ``threaded`` (CPU), ``grouped`` (torch's grouped_mm), ``megablocks`` or
    ``loop``. OLMoE's ``sparse`` (MegaBlocks' block-sparse kernels) computes the same function and runs as ``auto``."""

    moe_log_expert_assignment: bool = False
    """Log each layer's share of tokens per expert to wandb too; ``metrics.jsonl`` has it always."""

    moe_shared_expert: bool = False
    """One more expert that every token visits, added to the chosen ones."""

    moe_lbl_in_fp32: bool = False
    """Whether the load-balancing loss averages router probabilities in float32, or in the compute precision."""

    moe_loss_weight: float = 0.1
    """Weight of the load-balancing loss."""

    moe_zloss_weight: float | None = None
    """Weight of the router z-loss; ``None`` is no z-loss."""

    moe_dropless: bool = True
    """Whether every token reaches every expert it chose; if not, ``moe_capacity_factor`` limits each expert."""

    moe_capacity_factor: float = 1.25
    """An expert takes at most k·T·factor/E assignments of a forward pass. Only without ``moe_dropless``."""

    moe_expert_model_parallelism: bool = False
    """In older public OLMoE configs. Refused when true: experts are sharded with the rest of the model by FSDP."""

    moe_normalize_expert_weights: bool = False
    """Ours: divide the weights of the k chosen experts by their sum, as Mixtral does (OLMoE does not)."""

    moe_lbl_global_batch: bool = False
    """Ours: take the load-balancing loss's token counts over the global batch instead of one micro-batch of one rank.
    The loss is then independent of ranks and micro-batches. Costs one all-reduce of layers x experts numbers a step,
    and with several micro-batches one more forward pass without gradient over each."""

    @property
    def moe_backend(self) -> str:
        """The backend of :mod:`olmoe_parrots.moe.experts` that ``moe_mlp_impl`` names."""
        return "auto" if self.moe_mlp_impl == "sparse" else self.moe_mlp_impl


class EvaluatorType(StrEnum):
    """OLMo's evaluator types and our ``synthetic``."""

    downstream = "downstream"
    lm = "lm"
    synthetic = "synthetic"


@dataclass
class EvaluatorConfig(OLMoEvaluatorConfig):
    """OLMo's, with one more type. ``synthetic`` decodes the test queries of a synthetic task and scores them."""

    type: EvaluatorType = EvaluatorType.lm  # type: ignore[assignment]

    folder: str | None = None
    """Ours: the dataset folder that holds the queries, for ``synthetic``; ``data_folder`` when unset."""


@dataclass
class WandbConfig(OLMoWandbConfig):
    """OLMo's, without its default of AI2's own wandb entity."""

    entity: str | None = None
    tags: list[str] | None = field(default_factory=list)


@dataclass
class TrainConfig(OLMoTrainConfig):
    """OLMo's ``TrainConfig`` with our model config and a name for the data set."""

    model: ModelConfig = field(default_factory=ModelConfig)
    wandb: WandbConfig | None = None
    evaluators: list[EvaluatorConfig] = field(default_factory=list)  # type: ignore[assignment]

    data_folder: str | None = None
    """Ours: a dataset folder, on disk or S3. The shipped configs derive every data path from it."""

    verify_data: str = "auto"
    """Ours: what is compared with the data's manifest before training. ``hashes``: every byte. ``sizes``: the sizes of
    files. ``auto``: every byte of files on disk, and of files on S3 the size and the sum stored when they were put."""

    flops_available: float | None = None
    """Ours: peak FLOP/s of one device in the training precision, for MFU; looked up by device name when unset."""

    keep_checkpoints_every: int | None = None
    """Ours: checkpoints at multiples of so many steps are kept, besides the last ones."""

    skip_nonfinite_batches: int = 0
    """Ours: so many batches whose loss or gradient is not finite are skipped; the next one stops the run."""

    step_timeout: float | None = 3600.0
    """Ours: seconds after which a step, a batch of evaluation or a checkpoint that is not done ends the process, with
    the stack of every thread on standard error."""

    router_collapse_share: float = 0.9
    """Ours: a warning when one expert of a layer takes more than this share of the tokens ..."""

    router_collapse_steps: int = 20
    """Ours: ... at so many logged steps in a row."""

    @classmethod
    def _register_resolvers(cls, validate_paths: bool = True) -> None:
        """OLMo's, but for ``path.glob`` (olmo/config.py:70), which looks on the disk alone: this one takes S3 too.

        Ours is ``manifest``: ``${manifest:FOLDER,tokenizer.vocabulary_size}`` is that value of the folder's manifest.
        """
        super()._register_resolvers(validate_paths)

        def path_glob(*patterns: str) -> list[str]:
            found: list[str] = []
            for pattern in patterns:
                matches = remote.find(pattern) if remote.is_remote(pattern) else sorted(glob(pattern))
                if not matches and validate_paths:
                    raise FileNotFoundError(f"{pattern} does not match any files or dirs")
                found += matches
            return found

        OmegaConf.register_new_resolver("path.glob", path_glob, replace=True)
        OmegaConf.register_new_resolver("manifest", manifest_value, replace=True)

    @property
    def has_tasks(self) -> bool:
        """Whether any evaluator is a task of OLMo's harness, which needs the tokenizer."""
        return any(evaluator.type == EvaluatorType.downstream for evaluator in self.evaluators)


def manifest_value(folder: str | None, key: str) -> Any:
    """What the manifest of a dataset folder says under ``key``, dotted when nested.

    :raises InputError: where there is no manifest, or nothing under that key.
    """
    if folder is None:
        raise InputError("option data_folder", "it names no folder", "give one with --data_folder=DIR")
    value: Any = Manifest.load(folder)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    if value is None:
        remedy = "name a folder that python -m olmoe_parrots.synthetic made, with --data_folder=DIR"
        raise InputError(remote.join(folder, MANIFEST), f"it has no {key}, which the config asks for", remedy)
    return value


def load_train_config(path: str, overrides: list[str] | None = None, validate_paths: bool = True) -> TrainConfig:
    """Read a YAML file and apply ``key.subkey=value`` overrides.

    :raises olmo.exceptions.OLMoConfigurationError: for an unknown key or a value of the wrong type.
    """
    with warnings.catch_warnings():
        # OLMo (olmo/config.py:104) registers its resolvers by a name that OmegaConf 2.4 deprecates
        warnings.filterwarnings("ignore", message="register_new_resolver", category=UserWarning)
        return TrainConfig.load(path, overrides, validate_paths=validate_paths)
