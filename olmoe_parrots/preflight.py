"""Everything that can be wrong with a run's input, found before a model is built: one clear line each.

:func:`read_config_text` needs no torch, so that a mistyped path or a broken file is told within a second;
:func:`check` takes the loaded config.
"""

import difflib
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from .checkpoint import NAME, Checkpoint, check_save_folder, checkpoint_at, latest_checkpoint
from .errors import InputError
from .preflight_data import check_data, refuse
from .preflight_disk import check_disk
from .preflight_values import check_values
from .remote import is_remote
from .remote_checkpoint import check_remote_save_folder, fetch_checkpoint, fetch_newest
from .remote_log import fetch_log

SECTIONS = {"model", "optimizer", "scheduler", "data", "tokenizer", "speed_monitor"}
"""Those that OLMo reads before the schema is looked at (olmo/config.py:1300)."""
LOADED = ".loaded"
"""In the save folder: a copy of the checkpoint of S3 that a run starts from, removed once it is loaded."""
BACKENDS = ("auto", "sparse", "threaded", "grouped", "megablocks", "loop")


def read_config_text(path: str, overrides: list[str]) -> list[str]:
    """Check that a config file is there and parses, and that the overrides read ``--key=value``.

    :returns: the overrides in OmegaConf's form, ``key=value``.
    :raises InputError: otherwise.
    """
    config = Path(path)
    if not config.is_file():
        remedy = "give a YAML file such as configs/moe_d512_e16.yaml"
        raise InputError(path, "there is no such config file", remedy)
    try:
        parsed = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or error
        raise InputError(place, f"this is not YAML: {problem}", "mend the file") from None
    if not isinstance(parsed, dict):
        raise InputError(path, "a config is a mapping of options", "mend the file")
    for section in SECTIONS & parsed.keys():
        if not isinstance(parsed[section], dict):
            what = f"it is a section of options, not {parsed[section]!r}"
            raise InputError(f"{path}, {section}", what, "give a mapping")
    cleaned = []
    for override in overrides:
        key, equals, _ = override.removeprefix("--").partition("=")
        if not override.startswith("--") or not equals or not key:
            raise InputError(f"argument {override!r}", "an override reads --key=value", "write --model.n_layers=4, say")
        parts = key.split(".")
        if key in SECTIONS:
            raise InputError(f"argument --{key}", "it is a section of options", f"set one of them: --{key}.NAME=VALUE")
        cleaned.append(".".join([parts[0].replace("-", "_"), *parts[1:]]) + "=" + override.partition("=")[2])
    return cleaned


def config_error(path: str, error: Exception, overrides: list[str]) -> InputError:
    """Tell what OLMo and OmegaConf say of a config in our one line, with the nearest option for an unknown one."""
    from .config import TrainConfig

    if (refused := _refusal_behind(error)) is not None:
        return refused
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = (lines[0] if lines else type(error).__name__).split("raised while resolving interpolation: ")[-1]
    full_key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    where = f"{path}, option {full_key}" if full_key else path
    if full_key and any(f"{o.split('=')[0]}.".startswith(f"{full_key}.") for o in overrides):
        where = f"argument --{full_key}"
    if "not in" in message:
        known = _option_names(TrainConfig)
        near = difflib.get_close_matches(full_key, known, n=1) or difflib.get_close_matches(
            full_key.split(".")[-1], [name.split(".")[-1] for name in known], n=1
        )
        remedy = f"did you mean {near[0]}?" if near else "see docs/training.md"
        return InputError(where, "there is no such option", remedy)
    if "does not match any files" in message and full_key.startswith("evaluators"):
        remedy = "hold sequences out with data_prep's --validation-sequences, or train without: '--evaluators=[]'"
        return InputError(where, message, remedy)
    if "does not match any files" in message:
        remedy = "make the data with python -m data_prep, or name another folder with --data_folder=DIR"
        return InputError(where, message, remedy)
    return InputError(where, message, "correct the value")


def _refusal_behind(error: BaseException | None) -> InputError | None:
    """The InputError that our resolvers raised and OmegaConf and OLMo wrapped."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _option_names(config_class: type, prefix: str = "") -> list[str]:
    import dataclasses
    import typing

    hints = typing.get_type_hints(config_class)
    names = []
    for field in dataclasses.fields(config_class):
        names.append(prefix + field.name)
        options = [hints[field.name], *typing.get_args(hints[field.name])]
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                names += _option_names(option, f"{prefix}{field.name}.")
    return names


def check(cfg: Any, config_path: str, world_size: int) -> Checkpoint | None:
    """Check a loaded config against itself, its data, its save folder and the number of ranks.

    :param cfg: a :class:`olmoe_parrots.config.TrainConfig`.
    :returns: the checkpoint that the run resumes from, if any; one on S3 is fetched by the first rank, and is ``None``
        on the others.
    :raises InputError: for whatever is wrong.
    """
    check_inputs(cfg, config_path, world_size)
    resume_from = find_resume_point(cfg)
    goes_on = cfg.try_load_latest_save
    check_save_folder(
        Path(cfg.save_folder),
        resume_from,
        overwrite=cfg.save_overwrite,
        goes_on=goes_on,
        sharded_too=_loads_sharded(cfg),
    )
    if cfg.remote_save_folder is not None and _is_first_rank():
        _check_remote(cfg, resume_from)
    return resume_from


def check_inputs(cfg: Any, config_path: str, world_size: int) -> None:
    """The part of :func:`check` that can be told before a run is submitted, wherever its data and save folder are seen:
    no checkpoint is looked for, and nothing is fetched.

    :raises InputError: as :func:`check` does.
    """
    from . import olmo_compat

    olmo_compat.apply()
    check_values(cfg, config_path)
    _check_model(cfg.model, config_path)
    _check_duration(cfg.max_duration, config_path)
    _check_batch(cfg, config_path, world_size)
    _check_strategy(cfg, config_path, world_size)
    check_data(cfg, config_path, world_size)
    check_disk(cfg)


def _check_remote(cfg: Any, resume_from: Checkpoint | None) -> None:
    folder, overwrite = Path(cfg.save_folder), cfg.save_overwrite
    resumes = resume_from is not None and resume_from.path.parent == folder.resolve()
    goes_on = resumes or (cfg.try_load_latest_save and not overwrite)
    check_remote_save_folder(cfg.remote_save_folder, resume_from, overwrite=overwrite, goes_on=goes_on)
    if goes_on:
        fetch_log(cfg.remote_save_folder, folder)


def _check_model(model: Any, path: str) -> None:
    if model.d_model % model.n_heads:
        problem = f"the width {model.d_model} does not divide into that many heads"
        raise refuse(path, "model.n_heads", model.n_heads, problem, "choose a divisor of model.d_model")
    if model.embedding_size is not None and model.embedding_size < model.vocab_size:
        problem = f"there are {model.vocab_size} ids to embed"
        raise refuse(path, "model.embedding_size", model.embedding_size, problem, "give as many or more")
    if model.rope and model.d_model // model.n_heads % 2:
        size = model.d_model // model.n_heads
        problem = f"RoPE needs an even head size, not {size}"
        raise refuse(path, "model.n_heads", model.n_heads, problem, "choose another number of heads")
    if model.n_heads % model.effective_n_kv_heads:
        problem = f"{model.n_heads} heads cannot share that many key-value heads"
        raise refuse(path, "model.n_kv_heads", model.n_kv_heads, problem, "choose a divisor of model.n_heads")
    if model.n_layers % model.block_group_size:
        problem = f"{model.n_layers} layers do not divide into groups of that size"
        raise refuse(path, "model.block_group_size", model.block_group_size, problem, "choose a divisor")
    if str(model.block_type) == "moe":
        _check_experts(model, path)


def _check_experts(model: Any, path: str) -> None:
    if model.moe_num_experts < 1:
        raise refuse(path, "model.moe_num_experts", model.moe_num_experts, "it must be at least 1", "correct it")
    if not 1 <= model.moe_top_k <= model.moe_num_experts:
        problem = f"a token cannot visit that many of {model.moe_num_experts} experts"
        raise refuse(path, "model.moe_top_k", model.moe_top_k, problem, "choose 1 to model.moe_num_experts")
    if model.moe_mlp_impl not in BACKENDS:
        raise refuse(path, "model.moe_mlp_impl", model.moe_mlp_impl, "no such backend", f"use {', '.join(BACKENDS)}")
    if model.moe_mlp_impl == "megablocks":
        from .moe.megablocks import is_available

        if not is_available():
            problem = "MegaBlocks is not installed"
            raise refuse(path, "model.moe_mlp_impl", "megablocks", problem, "run make megablocks")
        if model.include_bias:
            raise refuse(path, "model.include_bias", True, "MegaBlocks' experts have no biases", "set it to false")
    if model.moe_expert_model_parallelism:
        problem = "experts are sharded with the rest of the model by FSDP, there is no expert parallelism"
        raise refuse(path, "model.moe_expert_model_parallelism", True, problem, "set it to false")
    if not model.moe_dropless and model.moe_capacity_factor <= 0:
        raise refuse(path, "model.moe_capacity_factor", model.moe_capacity_factor, "must be positive", "use 1.25, say")


def _check_duration(duration: int | str, path: str) -> None:
    amount = str(duration).strip()
    unit = next((unit for unit in ("ep", "T") if amount.endswith(unit)), "")
    try:
        number = float(amount.removesuffix(unit))
    except ValueError:
        number = -1.0
    if not 1 <= number < float("inf"):
        remedy = "give steps (60000), tokens (63e9T) or epochs (1ep)"
        raise refuse(path, "max_duration", duration, "this is no length of training", remedy)


def _check_batch(cfg: Any, path: str, world_size: int) -> None:
    batch, micro = cfg.global_train_batch_size, cfg.device_train_microbatch_size
    option = "global_train_batch_size"
    if batch < world_size:
        problem = f"there are more ranks ({world_size}) than sequences in a batch"
        raise refuse(path, option, batch, problem, "start fewer ranks or use a larger batch")
    if batch % world_size:
        problem = f"it does not divide among {world_size} ranks"
        raise refuse(path, option, batch, problem, f"use a multiple of {world_size}")
    per_device = batch // world_size
    if micro < 1 or (micro < per_device and per_device % micro):
        problem = f"a rank's {per_device} sequences do not divide into micro-batches of that size"
        raise refuse(path, "device_train_microbatch_size", micro, problem, f"use a divisor of {per_device}")
    if not cfg.data.drop_last:
        problem = "the last batch of an epoch would be short, and OLMo's trainer cannot take it"
        raise refuse(path, "data.drop_last", False, problem, "set it to true")


def _check_strategy(cfg: Any, path: str, world_size: int) -> None:
    strategy = cfg.distributed_strategy
    if cfg.precision not in ("fp32", "amp_bf16", "amp_fp16"):
        raise refuse(path, "precision", cfg.precision, "no such precision", "use amp_bf16, amp_fp16 or fp32")
    if strategy is None:
        remedy = "use fsdp or ddp, also on one device"
        raise refuse(path, "distributed_strategy", None, "OLMo's trainer wants a strategy", remedy)
    if str(strategy) == "fsdp" and cfg.fsdp is None:
        raise refuse(path, "fsdp", None, "distributed_strategy is fsdp", "give its settings or leave the key out")
    if str(strategy) == "fsdp" and str(cfg.sharded_checkpointer) not in ("torch_new", "olmo_core"):
        remedy = "use torch_new: it resumes on any number of ranks, and loads nothing but data"
        raise refuse(path, "sharded_checkpointer", cfg.sharded_checkpointer, "unsafe or unfinished in OLMo", remedy)
    loader = cfg.load_path_sharded_checkpointer
    if loader is not None and str(loader) not in ("torch_new", "olmo_core"):
        remedy = "use torch_new, or load an unsharded checkpoint"
        raise refuse(path, "load_path_sharded_checkpointer", loader, "unsafe or unfinished in OLMo", remedy)
    if str(strategy) == "ddp" and cfg.save_interval_unsharded is None:
        problem = "DDP saves unsharded checkpoints only, and this run would save nothing"
        raise refuse(path, "save_interval_unsharded", None, problem, "set it to a number of steps")


def find_resume_point(cfg: Any) -> Checkpoint | None:
    """The checkpoint that ``try_load_latest_save`` or ``load_path`` names.

    The first rank compares every byte with the checkpoint's manifest, the others sizes. It also fetches what is on S3:
    of ``remote_save_folder`` a checkpoint that is newer than those in the save folder, into that folder; one that
    ``load_path`` names into :data:`LOADED` below it.
    """
    folder = Path(cfg.save_folder)
    if cfg.try_load_latest_save:
        sharded_too = _loads_sharded(cfg)
        latest = latest_checkpoint(folder, sharded_too=sharded_too, every_byte=_is_first_rank())
        if cfg.remote_save_folder is not None and _is_first_rank():
            after = -1 if latest is None else latest.step
            latest = fetch_newest(cfg.remote_save_folder, folder, after=after, sharded_too=sharded_too) or latest
        if latest is not None:
            return latest
    if cfg.load_path is None:
        return None
    _check_kind(cfg)
    if not is_remote(cfg.load_path):
        return checkpoint_at(Path(cfg.load_path), every_byte=_is_first_rank())
    if not _is_first_rank():
        return None
    shutil.rmtree(folder / LOADED, ignore_errors=True)  # of a run that was interrupted
    address = cfg.load_path.rstrip("/")
    return fetch_checkpoint(address, folder / LOADED / address.rpartition("/")[2])


def _check_kind(cfg: Any) -> None:
    path = cfg.load_path.rstrip("/") if is_remote(cfg.load_path) else str(Path(cfg.load_path).resolve())
    match = NAME.fullmatch(path.rpartition("/")[2])
    if match is not None and match[2] is None and not _loads_sharded(cfg):
        remedy = f"load one named step{match[1]}-unsharded, or use --distributed_strategy=fsdp"
        raise InputError(cfg.load_path, "this checkpoint is sharded, and DDP loads unsharded ones only", remedy)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def _loads_sharded(cfg: Any) -> bool:
    return str(cfg.distributed_strategy) == "fsdp"
