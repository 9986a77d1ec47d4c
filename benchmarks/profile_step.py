"""Where the time of a training step goes: a summary of torch.profiler's trace.

    python benchmarks/profile_step.py

The steps are those of train_step.py: 20 layers, d = 256, vocabulary 32,000, 8 sequences of 512 tokens. The models take
turns; each step is profiled by itself. Rows go to profile_step.jsonl beside this file, and the report to
profile_step.md. With `--trace FILE` the last step of each model is written as a Chrome trace (chrome://tracing or
ui.perfetto.dev). How operations are assigned to parts: step_parts.py.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rounds import append_rows, spread, write_report
from step_parts import ELSE, OUTPUT, PARTS, PRODUCTS, PROJECTIONS, SCORES, STEP, Attribution, marked
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm
from train_step import SEQUENCE, SEQUENCES, TOKENS, VOCABULARY, our_step
from training import write_tokens

from olmoe_parrots.accounting import ModelShape

CONTENDERS = {
    "e16": ("MoE, E = 16", "moe_d256_e16", []),
    "e64": ("MoE, E = 64", "moe_d256_e64", []),
    "dense": ("dense twin", "dense_d256", ["model.mlp_hidden_size=512"]),
}
UNPROFILED = 2
"""Steps of each model without the profiler, to tell what that costs."""
TOP = 20


class Profiled:
    """One model and what was measured of its steps."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        self.name, self.step = name, step
        self.trainer = inspect.getclosurevars(step).nonlocals["trainer"]
        self.on_device = self.trainer.device.type == "cuda"
        self.plain: list[float] = []
        self.seconds: list[float] = []
        self.parts: dict[str, dict[str, list[float]]] = {part: {"forward": [], "backward": []} for part in PARTS}
        self.operations: list[dict[str, list[float]]] = []
        self.trace: Any = None

    def measure(self, plain: bool) -> None:
        """One profiled step, and before it one that is not if asked for."""
        if plain:
            self.plain.append(self._timed())
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_device
        every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        self.trace = profile(activities=activities, experimental_config=every_thread)
        with marked(self.trainer), self.trace, record_function(STEP):
            self.seconds.append(self._timed())
        found = Attribution(self.trace.events())
        seconds = found.seconds(self.on_device)
        for part, phases in self.parts.items():
            for phase, values in phases.items():
                values.append(seconds.get((part, phase), 0.0))
        if self.on_device:  # the device waits for the rest of the time
            self.parts[ELSE]["forward"][-1] += max(0.0, self.seconds[-1] - sum(seconds.values()))
        self.operations.append(defaultdict(lambda: [0.0, 0.0, 0]))
        for event in found.events:
            spent = event.self_device_time_total if self.on_device else event.self_cpu_time_total
            operation = self.operations[-1][event.name]
            operation[event.thread != found.step.thread] += spent / 1e6
            operation[2] += 1

    def _timed(self) -> float:
        start = time.perf_counter()
        self.step()
        if self.on_device:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def row(self) -> dict[str, Any]:
        device = self.trainer.device.type
        row = {"contender": self.name, "device": device, "threads": torch.get_num_threads()}
        return {**row, "seconds_unprofiled": self.plain, "seconds": self.seconds, "parts": self.parts}

    def medians(self, part: str) -> dict[str, float]:
        """Seconds by phase."""
        return {phase: statistics.median(values) for phase, values in self.parts[part].items()}

    def flops(self) -> dict[str, int]:
        """Of the products of a step, forward and both gradients, by part; half of all pairs of positions count."""
        model = self.trainer.cfg.model
        shape = ModelShape.from_config(model)
        layer = {
            PRODUCTS: max(shape.top_k, 1) * shape.ffn_params(),
            PROJECTIONS: shape.attention_params(),
            SCORES: shape.sequence_length * shape.d_model,
        }
        all_layers = {part: shape.n_layers * one for part, one in layer.items()}
        tokens = self.trainer.cfg.global_train_batch_size * shape.sequence_length
        return {
            part: 6 * tokens * one for part, one in {**all_layers, OUTPUT: shape.d_model * shape.vocab_size}.items()
        }


def comparison(found: list[Profiled]) -> str:
    """Milliseconds and share of each part, the models side by side."""
    lines = ["| | " + " | ".join(f"{one.name}, ms | share" for one in found) + " |", "|---|" + "---:|" * 2 * len(found)]
    spent = [{part: sum(one.medians(part).values()) for part in PARTS} for one in found]
    for part in PARTS:
        cells = [f"{1000 * its[part]:,.0f} | {100 * its[part] / sum(its.values()):.1f} %" for its in spent]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines.append("| **all parts** | " + " | ".join(f"{1000 * sum(its.values()):,.0f} | " for its in spent) + " |")
    for name, seconds in (
        ("step", [one.seconds for one in found]),
        ("without the profiler", [one.plain for one in found]),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{spread([1000 * s for s in its], 0)} | " for its in seconds) + " |")
    return "\n".join(lines) + "\n"


def details(one: Profiled) -> str:
    """Forward, backward and rate of each part of one model, and its operations that take longest."""
    lines = [f"## {one.name}", "", "| | forward, ms | backward, ms | GFLOP/s |", "|---|---:|---:|---:|"]
    flops = one.flops()
    for part in PARTS:
        spent = one.medians(part)
        both = sum(spent.values())
        rate = f"{flops[part] / both / 1e9:,.0f}" if part in flops and both else ""
        lines.append(f"| {part} | {1000 * spent['forward']:,.1f} | {1000 * spent['backward']:,.1f} | {rate} |")
    lines += [
        "",
        "| operation | of the training thread, ms | of the experts' threads, ms | calls |",
        "|---|---:|---:|---:|",
    ]
    medians = {}
    for name in {name for step in one.operations for name in step}:
        each_step = zip(*(step[name] for step in one.operations), strict=True)
        medians[name] = [statistics.median(values) for values in each_step]
    for name, (main, others, calls) in sorted(medians.items(), key=lambda item: -sum(item[1][:2]))[:TOP]:
        lines.append(f"| `{name}` | {1000 * main:,.1f} | {1000 * others:,.1f} | {calls:,.0f} |")
    return "\n".join(lines) + "\n"


HEAD = f"""# Where a training step's time goes

Forward, backward, clipping and AdamW of 20 layers, d = 256, vocabulary 32,000, {SEQUENCES} sequences of {SEQUENCE}
tokens ({TOKENS:,} a step). Medians of {{steps}} profiled steps of each model, the models in turn{{overrides}}; shares
are those of the medians' sum.

A part's time is that of the operations in it, without what they call in other parts, on the thread that trains; the
parts of a step add up to it. While that thread waits for the experts' threads, its time is divided as these divide
theirs: products; activation; and everything else, which is rows gathered, weighted and returned (and a gated
activation's product of its halves). The dense model's feed-forward network stands in the experts' lines. A node of the
backward pass belongs to the forward operation that made it, by autograd's sequence number; the sum of two gradients of
one tensor, to the node that gave the later one. The loss computes its gradients as it goes forward. GFLOP/s are those
of the active products, forward and both gradients, over all the part's time.

"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of each model's last step")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of all configs")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(CONTENDERS)}; without any, all")
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.models) - set(CONTENDERS)):
        parser.error(f"unknown models: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    options.models = options.models or list(CONTENDERS)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        stack.callback(torch.distributed.destroy_process_group)
        found = measure(options, Path(name))
    if options.trace:
        for model, one in zip(options.models, found, strict=True):
            path = options.trace.with_stem(f"{options.trace.stem}_{model}")
            one.trace.export_chrome_trace(str(path))
            print(path)
    script = str(options.output / Path(__file__).name)
    append_rows(script, [{**one.row(), "set": options.set} for one in found])
    overrides = f", with {', '.join(options.set)}" if options.set else ""
    head = HEAD.format(steps=options.rounds, overrides=overrides)
    body = head + comparison(found) + "\n" + "\n".join(details(one) for one in found)
    command = f"python benchmarks/profile_step.py {' '.join(sys.argv[1:] if argv is None else argv)}".strip()
    print(comparison(found))
    print(write_report(script, command, body))


def measure(options: argparse.Namespace, folder: Path) -> list[Profiled]:
    """All models, their steps in turn."""
    write_tokens(folder, 60 * TOKENS, VOCABULARY)
    found = []
    for model in options.models:
        title, config, overrides = CONTENDERS[model]
        found.append(Profiled(title, our_step(folder, config, *overrides, *options.set)))
        found[-1].step()  # the first step makes what later ones have
    for number in tqdm(range(options.rounds), leave=False):
        for one in found:
            one.measure(plain=number < UNPROFILED)
    return found


if __name__ == "__main__":
    main()
