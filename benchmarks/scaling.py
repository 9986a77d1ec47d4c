"""How the cost of a MoE layer and of a training step grows, on the CPU, and what a second process gives.

    python benchmarks/scaling.py

Forward and backward pass of one layer, and whole steps of the trainer with four layers, against tokens, number of
experts and width. An exponent is fitted to the medians (least squares of logarithms), beside the one that the FLOPs
of the same points have. Then steps of the same global batch by one process of one and of two threads, and by two of
one. Contenders take turns. Rows go to scaling.jsonl beside this file, and the report to scaling.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rounds import Timing, append_rows, spread, take_turns, write_report
from training import build, stepper, write_tokens

TOP_K, LAYERS, SEQUENCE = 2, 4, 512


class Point(NamedTuple):
    """What is timed; the defaults are what the other points vary from."""

    tokens: int = 4096
    experts: int = 16
    d: int = 256


class Study(NamedTuple):
    """Points along one quantity."""

    along: str
    values: tuple[int, ...]

    def points(self) -> list[Point]:
        return [Point()._replace(**{self.along: value}) for value in self.values]


STUDIES = {
    "layer": [
        Study("tokens", (1024, 2048, 4096, 8192, 16384)),
        Study("experts", (8, 16, 32, 64, 128, 256)),
        Study("d", (128, 256, 512, 1024)),
    ],
    "step": [
        Study("tokens", (1024, 2048, 4096, 8192)),
        Study("experts", (8, 16, 64, 256)),
        Study("d", (128, 256, 512)),
    ],
}
SHORT = {"layer": [Study("tokens", (1024, 4096)), Study("experts", (8, 64)), Study("d", (128, 256))]}
ONE, TWO_THREADS, DDP, FSDP = "1 process, 1 thread", "1 process, 2 threads", "2 processes, DDP", "2 processes, FSDP"
WORKERS: dict[str, tuple[int, int, str]] = {  # processes, threads of each, strategy
    ONE: (1, 1, "ddp"),
    TWO_THREADS: (1, 2, "ddp"),
    DDP: (2, 1, "ddp"),
    FSDP: (2, 1, "fsdp"),
}


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """The b of cost = a·value^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def layer(point: Point) -> Callable[[], None]:
    """One forward and backward pass of a layer of plain experts, of width d as in the paper."""
    import torch
    import torch.nn.functional as F

    from olmoe_parrots.moe.experts import Activation
    from olmoe_parrots.moe.layer import MoELayer
    from olmoe_parrots.moe.router import TopKRouter

    torch.manual_seed(0)
    module = MoELayer(point.d, point.d, TopKRouter(point.d, point.experts, TOP_K), Activation(F.gelu))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x, grad = torch.randn(point.tokens, point.d, requires_grad=True), torch.randn(point.tokens, point.d)

    def run() -> None:
        module(x)[0].backward(grad)
        for tensor in (x, *module.parameters()):
            tensor.grad = None

    return run


def layer_flops(point: Point) -> float:
    """Forward and backward: 6 for each weight of the chosen experts and the router, a token."""
    return 6.0 * point.tokens * (TOP_K * 2 * point.d**2 + point.d * point.experts)


def overrides(point: Point) -> list[str]:
    sizes = [f"model.d_model={point.d}", f"model.mlp_hidden_size={point.d}", f"model.moe_num_experts={point.experts}"]
    return [*sizes, f"model.n_layers={LAYERS}"]


def whole_step(folder: Path, point: Point) -> Callable[[], None]:
    """One step of the trainer."""
    tokens = write_tokens(folder, 1 << 20)
    run = Path(tempfile.mkdtemp(dir=folder))
    return stepper(build("moe_d256_e8", tokens, run, point.tokens // SEQUENCE, SEQUENCE, *overrides(point)))


def step_flops(point: Point) -> float:
    """As :meth:`ModelShape.flops_per_token` counts them."""
    from olmoe_parrots.accounting import ModelShape

    shape = ModelShape(point.d, LAYERS, 4, point.d, 32_000, SEQUENCE, point.experts, TOP_K)
    return float(point.tokens * shape.flops_per_token())


class Workers:
    """Processes that take one step each time they are told, as torchrun would start them."""

    def __init__(self, name: str, folder: Path, options: Mapping[str, Any]) -> None:
        processes, threads, strategy = WORKERS[name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = {**options, "folder": str(folder), "run": str(folder / name.replace(" ", "")), "strategy": strategy}
        self.processes = []
        for rank in range(processes):
            ranks: dict[str, Any] = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": processes,
            }
            ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
            command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(told)]
            environment = {**os.environ, **{key: str(value) for key, value in ranks.items()}}
            pipe = subprocess.PIPE
            self.processes.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        self._wait()

    def step(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process of the benchmark ended; what it said is above")

    def end(self) -> None:
        for process in self.processes:
            process.communicate()  # ends its input, and with it the process


def work(options: Mapping[str, Any]) -> None:
    """A worker's part: a step for each line that comes in."""
    folder = Path(options["folder"])
    strategy = f"distributed_strategy={options['strategy']}"
    sequences, length = options["sequences"], options["length"]
    trainer = build(
        options["config"],
        folder / "tokens.npy",
        Path(options["run"]),
        sequences,
        length,
        strategy,
        *options["overrides"],
    )
    step = stepper(trainer)
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        print("ready", flush=True)


def measure_processes(folder: Path, rounds: int, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Timing]:
    write_tokens(folder, 1 << 20, options["vocabulary"])
    workers = {name: Workers(name, folder, options) for name in names}
    try:
        return take_turns({name: one.step for name, one in workers.items()}, rounds)
    finally:
        for one in workers.values():
            one.end()


def measure_study(part: str, study: Study, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each point, the exponent of their medians, and that of the FLOPs."""
    make, flops = (layer, layer_flops) if part == "layer" else (functools.partial(whole_step, folder), step_flops)
    points = study.points()
    found = take_turns({str(value): make(point) for value, point in zip(study.values, points, strict=True)}, rounds)
    row: dict[str, Any] = {
        "part": part,
        "along": study.along,
        "values": study.values,
        "seconds": [t.seconds for t in found.values()],
    }
    medians = [timing.median for timing in found.values()]
    row["exponent"] = exponent(study.values, medians)
    row["of_the_largest"] = exponent(study.values[-2:], medians[-2:])
    return {**row, "exponent_of_flops": exponent(study.values, [flops(point) for point in points])}


def section_of_studies(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    title = "One layer" if part == "layer" else f"A training step with {LAYERS} layers"
    lines = [f"## {title}", "", "| along | points | milliseconds | exponent | between the two largest | of the FLOPs |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for row in rows:
        points = ", ".join(f"{value:,}" for value in row["values"])
        times = ", ".join(f"{1000 * Timing(seconds).median:,.0f}" for seconds in row["seconds"])
        exponents = " | ".join(f"{row[key]:.2f}" for key in ("exponent", "of_the_largest", "exponent_of_flops"))
        lines.append(f"| {row['along']} | {points} | {times} | {exponents} |")
    return "\n".join(lines) + "\n"


def section_of_processes(found: Mapping[str, Timing]) -> str:
    lines = [
        "## One and two processes",
        "",
        f"| | seconds a step | over those of *{ONE}* | rounds |",
        "|---|---:|---:|---:|",
    ]
    for name, timing in found.items():
        ratio = spread(timing.over(found[ONE]))
        lines.append(f"| {name} | {spread(timing.seconds)} | {ratio} | {len(timing.seconds)} |")
    return "\n".join(lines) + "\n"


GLOBAL_BATCH: dict[str, Any] = {"config": "moe_d256_e8", "sequences": 8, "length": SEQUENCE, "vocabulary": 32_000}
GLOBAL_BATCH["overrides"] = overrides(Point(experts=8))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="few points of one layer alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="of the report")
    parser.add_argument("--worker", help="be one of several processes (JSON)")
    parser.add_argument("parts", nargs="*", default=[*STUDIES, "processes"], help="of layer, step, processes (all)")
    options = parser.parse_args(argv)
    if options.worker:
        work(json.loads(options.worker))
        return
    studies, parts = (SHORT, list(SHORT)) if options.short else (STUDIES, options.parts)
    script, sections = str(options.output / Path(__file__).name), []
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part == "processes":
                found = measure_processes(Path(folder), options.rounds, list(WORKERS), GLOBAL_BATCH)
                append_rows(script, [{"part": part, "name": n, "seconds": t.seconds} for n, t in found.items()])
                sections.append(section_of_processes(found))
            else:
                rows = [measure_study(part, study, options.rounds, Path(folder)) for study in studies[part]]
                append_rows(script, rows)
                sections.append(section_of_studies(part, rows))
            print(sections[-1], flush=True)
    command = " ".join(["python benchmarks/scaling.py", *(sys.argv[1:] if argv is None else argv)])
    print(write_report(script, command, HEAD + "\n".join(sections)))


HEAD = f"""# How cost grows

Plain experts of width d, top-2, fp32. What is not varied: 4,096 tokens, 16 experts, d = 256; of a step: {LAYERS}
layers, vocabulary 32,000, sequences of {SEQUENCE} tokens. *exponent* is the b of cost = a·x^b, fitted to the medians of
all points, and between the two largest alone; beside it the one that the FLOPs of these points have. Two processes
share the same batch of 8 sequences (8 experts). Contenders take turns.

"""


if __name__ == "__main__":
    main()
