"""Which expert takes which token: ``python -m olmoe_parrots.routing CHECKPOINT SHARDS``.

Sequences of a dataset folder go through the model, and what its routers choose is counted. Written are the rows of
routing.jsonl, one a layer and measurement, and pictures of them; with --results the numbers of each layer go there too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import remote
from .errors import ArgumentParser, InputError, report_and_exit

if TYPE_CHECKING:
    import argparse

    from .evaluation.checkpoints import FoundCheckpoint
    from .evaluation.routing_data import Split
    from .results import Row as ResultRow

FORMAT = "olmoe_parrots.routing/1"
ROWS = "routing.jsonl"
MOST_SEQUENCES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises InputError for bad input."""
    parser = ArgumentParser(prog="python -m olmoe_parrots.routing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="of a MoE: a checkpoint, or a run, whose last one counts"
    )
    parser.add_argument("shards", metavar="SHARDS", help="a folder of data_prep or of olmoe_parrots.synthetic")
    splits = ("validation", "train", "test")
    parser.add_argument("--split", choices=splits, help="validation, or the test of a synthetic task, unless given")
    told = f"how many, spread evenly over the split; all of it unless given, but at most {MOST_SEQUENCES:,}"
    parser.add_argument("--sequences", type=int, metavar="N", help=told)
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="sequences at a time (8)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where rows and pictures go (beside the checkpoint)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a results.jsonl that rows are appended to")
    parser.add_argument("--overwrite", action="store_true", help="measure anew what --output holds already")
    options = parser.parse_args(arguments)
    for option, value in (("--sequences", options.sequences), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise InputError(option, f"{value} is below 1", "give at least 1")
    _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    from .evaluation.routing_data import open_split

    split = open_split(options.shards, options.split)

    from .evaluation.checkpoints import find_checkpoint  # imports OLMo, which takes seconds

    found = find_checkpoint(options.checkpoint)
    output: Path = options.output or _beside(found.path, split.name)
    shards = options.shards.rstrip("/") if remote.is_remote(options.shards) else str(Path(options.shards).resolve())
    asked = {
        "format": FORMAT,
        "measurement": "about",
        "checkpoint": found.path,
        "step": found.step,
        "shards": shards,
        "split": split.name,
        "asked": options.sequences,
    }
    rows = None if options.overwrite else _finished(output / ROWS, asked)
    if rows is None:
        rows = _measured(options, found, split, asked)
        _write(output / ROWS, rows)
    else:
        print(f"{output / ROWS} is measured already; --overwrite measures anew", file=sys.stderr)
    about, measured = rows[0], rows[1:]
    if options.results is not None:
        _append_results(options.results, about, measured)
    _draw(output, measured, anew=options.overwrite)
    print(_table(measured))
    print(f"{about['sequences']:,} sequences, {about['tokens']:,} tokens; rows and pictures are in {output}")


def _beside(checkpoint: str, split: str) -> Path:
    """The default output: in the run's folder, named by the checkpoint."""
    if remote.is_remote(checkpoint):
        raise InputError("--output", "a checkpoint on S3 has no folder beside it", "name one on disk")
    path = Path(checkpoint)
    return path.parent / f"routing-{path.name}-{split}"


def _finished(path: Path, asked: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an earlier run of the same command, None where there is none.

    Raises InputError where the folder holds those of another, which would be lost.
    """
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        different = [key for key, value in asked.items() if rows[0].get(key) != value]
    except (OSError, ValueError, LookupError, AttributeError) as error:
        remedy = "name another --output, or --overwrite it"
        raise InputError(path, f"it cannot be read as rows of routing ({error})", remedy) from None
    if different:
        what = "; ".join(f"{key} {rows[0].get(key)} there and {asked[key]} here" for key in different)
        raise InputError(path, f"it was measured otherwise ({what})", "name another --output, or --overwrite it")
    return rows


def _measured(
    options: argparse.Namespace, found: FoundCheckpoint, split: Split, asked: dict[str, Any]
) -> list[dict[str, Any]]:
    import torch
    from tqdm import tqdm

    from .evaluation.checkpoints import load_found, prepare_config, read_config
    from .evaluation.routing_counts import count_routing
    from .evaluation.routing_measures import measure
    from .evaluation.rows import Evaluated

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = prepare_config(read_config(found), device, "fp32")
    if str(cfg.model.block_type) != "moe":
        raise InputError(found.path, "the model is dense: it has no experts", "name a checkpoint of a MoE")
    split.check_fit(cfg.model)
    sample = split.sample(cfg.model.max_sequence_length, options.sequences, MOST_SEQUENCES)
    loaded = load_found(found, cfg, device)
    with tqdm(total=len(sample.tokens_RS), desc="routing", unit=" sequences", delay=1, leave=False) as bar:
        tables = count_routing(loaded.model, sample, options.batch_size, bar.update)
    about = asked | {
        "sequences": len(sample.tokens_RS),
        "tokens": tables.tokens,
        "token_ids": len(tables.ids_U),
        "layers": len(tables.load_LE),
        "experts": tables.experts,
        "top_k": tables.top_k,
        "row": Evaluated.of(found, cfg).facts,
    }
    return [about, *measure(tables, sample)]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    from .shards import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
    except OSError as error:
        raise InputError(path, f"it cannot be written ({error.strerror})", "name another --output") from None


def _summaries(measured: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Of each measurement of one number a layer, (layer, value)."""
    from .evaluation.routing_measures import SUMMARIES

    found: dict[str, list[tuple[int, float]]] = {}
    for name in SUMMARIES:
        if values := [(row["layer"], row["value"]) for row in measured if row["measurement"] == name]:
            found[name] = values
    return found


def _append_results(path: Path, about: dict[str, Any], measured: Sequence[dict[str, Any]]) -> None:
    """A row a layer and measurement, METRIC/layer_N, and their mean, METRIC; those that are there are left out."""
    from .results import Row, append_rows, read_rows

    details = {key: about[key] for key in ("shards", "sequences", "tokens")}
    rows = []
    for metric, values in _summaries(measured).items():
        of_all = [(metric, sum(value for _, value in values) / len(values))]
        for name, value in [*((f"{metric}/layer_{layer}", value) for layer, value in values), *of_all]:
            told = {"task": "routing", "split": about["split"], "metric": name, "value": value, "details": details}
            rows.append(Row(**told, **about["row"]))
    there = {_what(row) for row in read_rows(path)} if path.exists() else set()
    append_rows(path, [row for row in rows if _what(row) not in there])


def _what(row: ResultRow) -> tuple[Any, ...]:
    return row.task, row.metric, row.split, row.value, row.checkpoint, row.details.get("shards")


def _draw(folder: Path, measured: Sequence[dict[str, Any]], anew: bool) -> None:
    from .evaluation.routing_figures import pictures, save

    for name, make in pictures(measured).items():
        save(make, folder / name, overwrite=anew)


def _table(measured: Sequence[dict[str, Any]]) -> str:
    """The numbers of each layer, for people."""
    found = {name.removesuffix("_specialization"): dict(values) for name, values in _summaries(measured).items()}
    widths = {name: max(8, len(name)) for name in found}
    layers = sorted({layer for values in found.values() for layer in values})
    lines = ["layer  " + "  ".join(f"{name:>{width}}" for name, width in widths.items())]
    for layer in layers:
        cells = {name: f"{values[layer]:.3f}" if layer in values else "-" for name, values in found.items()}
        lines.append(f"{layer:>5}  " + "  ".join(f"{cell:>{widths[name]}}" for name, cell in cells.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    report_and_exit(main)
