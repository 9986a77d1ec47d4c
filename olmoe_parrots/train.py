"""Train one model: ``torchrun -m olmoe_parrots.train CONFIG [--key=value ...]``, or with plain ``python -m``.

The config file is OLMo's, with OLMoE's ``moe_*`` fields; every option can be overridden on the command line.
"""

import atexit
import contextlib
import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import finish_removals, set_aside_later
from .errors import ArgumentParser, report_and_exit
from .preflight import LOADED, check, config_error, read_config_text
from .processes import held_folder
from .stopping import REQUEUE, StopRequest

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint
    from .config import TrainConfig
    from .trainer import ParrotsTrainer

log = logging.getLogger("olmoe_parrots")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    usage = "%(prog)s CONFIG [--key=value ...]"
    epilog = "--key=value sets an option of the config, dotted when nested: --model.n_layers=4"
    prog = "python -m olmoe_parrots.train"
    parser = ArgumentParser(prog=prog, usage=usage, description="Train one model.", epilog=epilog, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/moe_d512_e16.yaml")
    args, rest = parser.parse_known_args(argv)
    overrides = read_config_text(args.config, rest)
    _set_up_logging()
    is_alone = "torch" not in sys.modules  # a process for this run and nothing else
    with _importing() if is_alone else contextlib.nullcontext():
        from . import config  # noqa: F401
    cfg = _load(args.config, overrides)
    resume_from = check(cfg, args.config, world_size())
    if is_alone:
        preload()
    return _run(cfg, resume_from)


def preload() -> None:
    """Import all that :func:`main` imports as it goes, which takes longer than a small model's training.

    For a process that forks others, each of which calls :func:`main`: they start within a second. No device is touched.
    """
    with _importing():
        _import_all()


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Imports without garbage collections, of which later ones leave out what was imported.

    Collections take two seconds of importing OLMo, and then a third of a second at each checkpoint, where OLMo makes
    a full one (olmo/torch_util.py:142).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else what Triton's bindings look for at the end of a process seems lost to them
        gc.enable()


def _import_all() -> None:
    import olmo.data
    import olmo.eval
    import olmo.optim
    import olmo.tokenizer
    import torch._dynamo  # which OLMo's optimizers import at their first step
    import wandb

    from . import distributed, loader, olmo_compat, optimizer, provenance, trainer

    _ = olmo, torch, wandb, distributed, loader, olmo_compat, optimizer, provenance, trainer


def world_size() -> int:
    """Ranks of this run, as torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the one that speaks and writes for the run."""
    return os.environ.get("RANK", "0") == "0"


def _set_up_logging() -> None:
    level = logging.INFO if is_first_rank() else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    log.setLevel(level)


def _load(path: str, overrides: list[str]) -> "TrainConfig":
    import torch
    from olmo.exceptions import OLMoConfigurationError

    from .config import load_train_config

    try:
        cfg = load_train_config(path, overrides)
    except (OLMoConfigurationError, FileNotFoundError, TypeError, ValueError) as error:
        raise config_error(path, error, overrides) from None
    told = any(override.startswith("precision=") for override in overrides)
    if cfg.precision in ("amp_bf16", "amp_fp16") and not told and not torch.cuda.is_available():
        log.info("no CUDA device: training in fp32 instead of %s (say --precision= to insist)", cfg.precision)
        cfg.precision = "fp32"
    cfg.precision = cfg.precision or "fp32"
    cfg.model.precision = cfg.precision
    return cfg


def _run(cfg: "TrainConfig", resume_from: "Checkpoint | None") -> int:
    import torch.distributed as dist
    from olmo.torch_util import seed_all

    from . import olmo_compat
    from .distributed import agreed, start_process_group
    from .saving import told_when_unwritable

    olmo_compat.apply()
    device = start_process_group()
    seed_all(cfg.seed)
    cfg.device_train_batch_size = cfg.global_train_batch_size // world_size()
    cfg.device_train_microbatch_size = min(cfg.device_train_microbatch_size, cfg.device_train_batch_size)
    cfg.device_train_grad_accum = cfg.device_train_batch_size // cfg.device_train_microbatch_size
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        stack.enter_context(told_when_unwritable(cfg.save_folder))
        resume_from = agreed(resume_from)
        if is_first_rank() and not cfg.dry_run:
            folder = Path(cfg.save_folder)
            stack.enter_context(held_folder(folder, folder, "--save_folder"))
        _claim_save_folder(cfg, resume_from, device)
        trainer = _build_trainer(cfg, device)
        with trainer:
            _restore(trainer, cfg, resume_from)
            if cfg.dry_run:
                log.info("dry run: config, data and model fit together; nothing was trained")
            else:
                _train(trainer, cfg)
            return REQUEUE if trainer.stopped_early else 0


def _claim_save_folder(cfg: "TrainConfig", resume_from: "Checkpoint | None", device: "torch.device") -> None:
    """Write the run's config and provenance (rank 0) before anything else is."""
    from olmo.torch_util import barrier

    from .provenance import describe

    folder = Path(cfg.save_folder)
    if is_first_rank():
        folder.mkdir(parents=True, exist_ok=True)
        # the order of the data, which OLMo works out anew at each start and refuses to replace
        shutil.rmtree(folder / "train_data", ignore_errors=True)
        if cfg.dry_run:
            barrier()
            return
        finish_removals(folder)
        resumes = resume_from is not None and resume_from.path.parent == folder.resolve()
        suffix = f".step{resume_from.step}" if resume_from is not None and resumes else ""
        if resume_from is not None and resumes and not cfg.save_overwrite:
            set_aside_later(folder, resume_from.step)
        cfg.save(folder / f"config{suffix}.yaml")
        record = json.dumps(describe(str(device), world_size()), indent=2)
        (folder / f"provenance{suffix}.json").write_text(record + "\n", encoding="utf-8")
        if cfg.save_overwrite and not resumes:
            (folder / "metrics.jsonl").unlink(missing_ok=True)
    barrier()


def _build_trainer(cfg: "TrainConfig", device: "torch.device") -> "ParrotsTrainer":
    import torch
    from olmo.optim import build_optimizer, build_scheduler

    from .distributed import wrap
    from .evaluation.synthetic import build_synthetic_evaluators
    from .loader import build_train_loader
    from .metrics import MetricsFile, peak_flops
    from .model import build_model
    from .trainer import ParrotsTrainer

    train_loader = build_train_loader(cfg)
    evaluators = _build_evaluators(cfg, device)
    synthetic_evaluators = build_synthetic_evaluators(cfg)
    model = build_model(cfg.model, init_params=False)
    if is_first_rank():
        log.info("%s: %s parameters on %s, %d rank(s)", cfg.run_name, f"{model.num_params():,}", device, world_size())
    model.set_activation_checkpointing(cfg.activation_checkpointing)
    if cfg.compile is not None:
        blocks: Any = model.transformer["blocks" if "blocks" in model.transformer else "block_groups"]
        for block in blocks:
            block.compile(**cfg.compile.asdict())
    dist_model = wrap(model, cfg, device)
    optim = build_optimizer(cfg, dist_model)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return ParrotsTrainer(
        cfg=cfg,
        epoch=cfg.epoch,
        model=model,
        dist_model=dist_model,  # type: ignore[arg-type]
        optim=optim,
        scheduler=build_scheduler(cfg),
        train_loader=train_loader,
        device=device,
        evaluators=evaluators,
        synthetic_evaluators=synthetic_evaluators,
        metrics_file=MetricsFile(Path(cfg.save_folder) / "metrics.jsonl") if is_first_rank() else None,
        flops_available=cfg.flops_available or peak,
    )


def _build_evaluators(cfg: "TrainConfig", device: "torch.device") -> list[Any]:
    """OLMo's evaluators of held-out text, and ours of tasks; only these need the tokenizer."""
    from olmo.eval import build_evaluator

    from .config import EvaluatorType

    built: list[Any] = []
    tokenizer: Any = None
    for evaluator in cfg.evaluators:
        if evaluator.type == EvaluatorType.lm:
            built.append(build_evaluator(cfg, evaluator, tokenizer, device))
        elif evaluator.type == EvaluatorType.downstream:
            from .evaluation.harness import evaluator_in_the_loop
            from .evaluation.task_tokenizer import load_tokenizer

            tokenizer = tokenizer or load_tokenizer(cfg)
            built.append(evaluator_in_the_loop(cfg, evaluator, tokenizer, device))
    return built


def _restore(trainer: "ParrotsTrainer", cfg: "TrainConfig", resume_from: "Checkpoint | None") -> None:
    from .optimizer import fuse_optimizer

    load_path = str(resume_from.path) if resume_from is not None else cfg.load_path
    if load_path is not None:
        log.info("loading %s", load_path)
        trainer.restore_checkpoint(
            load_path,
            load_optimizer_state=not cfg.reset_optimizer_state,
            load_trainer_state=not cfg.reset_trainer_state,
            sharded_checkpointer=cfg.load_path_sharded_checkpointer,
        )  # which ends with a barrier
        if is_first_rank():
            shutil.rmtree(Path(cfg.save_folder) / LOADED, ignore_errors=True)
    elif not cfg.no_pre_train_checkpoint:
        from olmo.config import CheckpointType, DistributedStrategy

        fsdp = cfg.distributed_strategy == DistributedStrategy.fsdp
        trainer.save_checkpoint(CheckpointType.sharded if fsdp else CheckpointType.unsharded)
    if cfg.force_save_unsharded:
        from olmo.config import CheckpointType

        trainer.save_checkpoint(CheckpointType.unsharded)
    fuse_optimizer(trainer.optim)


def _train(trainer: "ParrotsTrainer", cfg: "TrainConfig") -> None:
    import wandb

    from .metrics import Progress
    from .remote_checkpoint import uploading
    from .saving import told_when_unwritable

    folder = Path(cfg.save_folder)
    if cfg.save_data_indices:
        indices = folder / "data-indices" / f"rank{os.environ.get('RANK', '0')}.tsv"
        indices.parent.mkdir(parents=True, exist_ok=True)
        trainer.indices_file = indices.open("a", encoding="utf-8")
    if is_first_rank():
        trainer.progress = Progress(trainer.max_steps, trainer.global_step, cfg.run_name or folder.name)
        if cfg.wandb is not None:
            wandb.init(
                dir=str(folder),
                project=cfg.wandb.project,
                entity=cfg.wandb.entity,
                group=cfg.wandb.group,
                name=cfg.wandb.name or cfg.run_name,
                tags=cfg.wandb.tags,
                config=cfg.asdict(exclude=["wandb"]),
            )
    started_at = trainer.global_step
    copied_to = cfg.remote_save_folder if is_first_rank() else None
    copies = uploading(copied_to, folder, overwrite=cfg.save_overwrite)
    # a signal while the last copies are waited for ends the process at once
    with copies as trainer.uploads, told_when_unwritable(cfg.save_folder), StopRequest() as trainer.stop_request:
        trainer.fit()
    if trainer.progress is not None:
        message = f"trained to step {trainer.global_step}: checkpoints and metrics.jsonl are in {folder}"
        if trainer.global_step == started_at:
            message = f"nothing to do: {folder} is trained up to step {started_at}, {trainer.max_steps} were asked for"
        if trainer.stopped_early:
            message = f"stopped at step {trainer.global_step} of {trainer.max_steps}, saved in {folder}; "
            message += "the same command with --try_load_latest_save=true goes on"
        trainer.progress.say(message)


if __name__ == "__main__":
    report_and_exit(main)
