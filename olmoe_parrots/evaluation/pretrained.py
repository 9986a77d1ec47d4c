"""Language models of transformers, measured as our checkpoints are: a folder that it saved, or a GGUF file.

A GGUF file (what llama.cpp reads) holds weights, often of 4 to 8 bits, and the tokenizer. transformers turns them back
into float32. Code that a model folder brings along is never run.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config import TrainConfig
from ..errors import InputError
from ..model import ModelOutput
from ..results import config_digest
from .checkpoints import FoundCheckpoint, LoadedModel
from .task_tokenizer import TaskTokenizer, load_tokenizer

CONFIG, GGUF = "config.json", ".gguf"
BATCH = 16
EXTRA = 'install the hf extra: pip install -e ".[hf]"'
_VOLATILE = ("transformers_version", "dtype", "torch_dtype", "architectures")
_CONTEXT = 2048  # of models whose config names none


def find_pretrained(path: str) -> "FoundPretrained | None":
    """The model that ``path`` names, a folder with a ``config.json`` or a ``.gguf`` file; ``None`` for all else.

    :raises InputError: when it is no causal language model, or a package that reads it is not installed.
    """
    place = Path(path)
    is_gguf = place.suffix.lower() == GGUF and place.is_file()
    if not is_gguf and not (place / CONFIG).is_file():
        return None
    if is_gguf and (missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]):
        raise InputError(path, f"to read it, {' and '.join(missing)} must be installed", EXTRA)
    if is_gguf and int(version("transformers").split(".")[0]) < 5:
        what = f"transformers {version('transformers')} reads such files wrongly: other scores than of the same weights"
        raise InputError(path, what, "use transformers 5, in an environment without the data extra")
    place = place.resolve()
    from transformers import AutoConfig

    with _readable(place, "the config"):
        config: Any = AutoConfig.from_pretrained(**_source(place))
    _check_is_causal(place, config)
    return FoundPretrained(str(place), 0, False, config)


@dataclass(frozen=True)
class FoundPretrained(FoundCheckpoint):
    """A causal language model of transformers. Its ``path`` is a folder or a GGUF file."""

    settings: Any
    """transformers' ``PretrainedConfig``."""

    @property
    def told(self) -> str:
        return "pretrained"

    def check_asked(self, more_than_tasks: bool) -> None:
        if more_than_tasks:
            what = "generated answers and held-out text are measured of checkpoints of ours alone"
            remedy = "ask for other tasks; lm-evaluation-harness reads our task files too (docs/generation_tasks.md)"
            raise InputError(self.path, what, remedy)

    def config(self) -> TrainConfig:
        """What the loop of evaluation reads of a run's config: sizes, special tokens, and fp32."""
        config = self.settings
        stops = config.eos_token_id
        eos = (stops[0] if isinstance(stops, list) else stops) or 0
        model = {
            "d_model": config.hidden_size,
            "n_heads": config.num_attention_heads,
            "n_layers": config.num_hidden_layers,
            "max_sequence_length": getattr(config, "max_position_embeddings", None) or _CONTEXT,
            "vocab_size": config.vocab_size,
            "embedding_size": config.vocab_size,
            "eos_token_id": eos,
            "pad_token_id": eos if config.pad_token_id is None else config.pad_token_id,
        }
        return TrainConfig.new(model=model, run_name=_name(self.path), precision="fp32", device_eval_batch_size=BATCH)

    def load(self, cfg: TrainConfig, device: torch.device | None = None) -> LoadedModel:
        """The model in float32, whatever it was stored in.

        :raises InputError: when the weights cannot be read, or do not make a whole model.
        """
        from transformers import AutoModelForCausalLM

        place = Path(self.path)
        with _readable(place, "the weights"):
            model, told = AutoModelForCausalLM.from_pretrained(**_source(place), output_loading_info=True)
        if missing := sorted(told["missing_keys"]):
            what = f"{len(missing)} weights are not there, {missing[0]} among them, by transformers {_transformers()}"
            raise InputError(self.path, what, "name a whole model, or try a newer transformers")
        wrapped = AsOLMo(model.float(), cfg.model.pad_token_id).to(device).eval()
        return LoadedModel(wrapped, cfg, self.step, self.path)  # type: ignore[arg-type]

    def tokenizer(self, cfg: TrainConfig, given: str | None = None) -> TaskTokenizer:
        """The model's own, or the file ``given``; with BOS before each prompt where it puts it there itself.

        :raises InputError: when there is none, or it has more tokens than the model.
        """
        if given is not None:
            return load_tokenizer(cfg, None, given)
        from transformers import AutoTokenizer

        place = Path(self.path)
        files = [file for name in ("*token*", "*vocab*", "*.model") for file in place.glob(name)]
        if place.is_dir() and not files:
            raise InputError(place, "there is no tokenizer in it", "put the model's tokenizer.json beside its config")
        with _readable(place, "its tokenizer"):
            found: Any = AutoTokenizer.from_pretrained(**_source(place))
            begins = found("x")["input_ids"][:1] == [found.bos_token_id]
        if not found.is_fast:
            raise InputError(place, "its tokenizer cannot be made a tokenizer.json", "give one with --tokenizer")
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/tokenizer.json"
            found.backend_tokenizer.save(file)
            tokenizer = TaskTokenizer(
                file,
                eos_token_id=cfg.model.eos_token_id,
                pad_token_id=cfg.model.pad_token_id,
                bos_token_id=found.bos_token_id if begins else None,
            )
        if tokenizer.vocab_size > cfg.model.vocab_size:
            what = f"its tokenizer has {tokenizer.vocab_size} ids and the model {cfg.model.vocab_size}"
            raise InputError(place, what, "give the model's own with --tokenizer")
        return tokenizer

    def facts(self) -> dict[str, Any]:
        """What rows say of it. How it was trained is not known here: tokens and FLOPs are 0."""
        from transformers import AutoModelForCausalLM

        config = self.settings
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        total = sum(weight.numel() for weight in model.parameters())
        experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 0
        top_k = _first(config, "num_experts_per_tok", "num_selected_experts") or 0
        routed = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
        described = {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}
        return {
            "model": _name(self.path),
            "config_digest": config_digest({k: v for k, v in described.items() if not k.startswith("_")}, {}),
            "total_params": total,
            "active_params": total - (routed * (experts - top_k) // experts if experts else 0),
            "non_embedding_params": total - model.get_input_embeddings().weight.numel(),
            "training_tokens": 0,
            "training_flops": 0.0,
            "architecture": {
                "type": config.model_type,
                "width": config.hidden_size,
                "layers": config.num_hidden_layers,
                "heads": config.num_attention_heads,
                "experts": experts,
                "top_k": top_k,
                "hidden_size": _first(config, "intermediate_size", "n_inner"),
            },
            "step": None,
            "checkpoint": self.path,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }


class AsOLMo(nn.Module):
    """A model of transformers that is called as OLMo is. Shapes: B sequences, S tokens, V vocabulary."""

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        super().__init__()
        self.model, self.pad_token_id = model, pad_token_id

    def forward(self, input_ids: Tensor, **others: Any) -> ModelOutput:
        """Logits (B, S, V) of tokens (B, S). At padding after the longest sequence they are 0: it is not computed.

        Padding stands on the right (ai2-olmo-eval fills batches up to a multiple of 128), where causal attention does
        not see it, so no mask is needed.
        """
        length = input_ids.shape[1]
        used = (input_ids != self.pad_token_id).any(dim=0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else length
        logits = self.model(input_ids=input_ids[:, :longest], use_cache=False).logits
        return ModelOutput(pad(logits, (0, 0, 0, length - longest)), None, None, None)


def _source(place: Path) -> dict[str, Any]:
    """How transformers' ``from_pretrained`` is told to read a folder or a GGUF file, from the disk alone."""
    told: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if place.suffix.lower() == GGUF:
        return {"pretrained_model_name_or_path": str(place.parent), "gguf_file": place.name, **told}
    return {"pretrained_model_name_or_path": str(place), **told}


def _name(path: str) -> str:
    return Path(path).stem if path.lower().endswith(GGUF) else Path(path).name


def _transformers() -> str:
    return version("transformers")


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _check_is_causal(place: Path, config: Any) -> None:
    """An encoder's logits at a token know the tokens after it: its scores would mean nothing."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    built = getattr(config, "architectures", None) or []
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if built:
        causal = causal and bool({*built} & {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()})
    if not causal:
        kind = ", ".join(built) or config.model_type
        raise InputError(place, f"{kind} is no causal language model", "name one, such as a LlamaForCausalLM")


@contextlib.contextmanager
def _readable(place: Path, part: str) -> Iterator[None]:
    """Without the library's advice, or bars where no terminal is; whatever it raises is told in one line."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    if not sys.stderr.isatty():
        told.disable_progress_bar()
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = f"{part} cannot be read by transformers {_transformers()} ({(lines or [type(error).__name__])[0][:200]})"
        raise InputError(place, what, "name another model, or try a newer transformers") from None
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()
