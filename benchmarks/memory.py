"""Peak memory of training steps on the CPU, beside what parameters and activations need by formula.

    python benchmarks/memory.py

Each case takes steps in a process of its own: the peak of its resident set (VmHWM), less what was resident after all
imports, before the model was built. Beside it 16 bytes a parameter and the activations of `olmoe_parrots.memory`. Other
allocators' cases have a step's time too; jemalloc's is there where that library is installed. Rows go to
memory.jsonl beside this file, and the report to memory.md.
"""

from __future__ import annotations

import argparse
import ctypes.util
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rounds import Timing, append_rows, ask_in_turns, spread, write_report
from training import build, stepper, write_tokens

MIB = 1 << 20
GOAL = 1.1
STEPS, MANY_STEPS = 3, 10
"""The optimizer's moments are there from the second on. glibc's heap grows for many more."""


@dataclass(frozen=True)
class Case:
    """One configuration whose peak is measured."""

    config: str = "moe_d256_e8"
    sequences: int = 8
    """Of a step."""
    length: int = 512
    micro_batch: int | None = None
    """Sequences; None: of the whole step."""
    checkpointing: bool = False
    chunked_loss: bool = True
    allocator: str = ""
    """One of `ALLOCATORS`; as the training command sets glibc's, if none."""
    steps: int = STEPS
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        parts = [self.config, f"{self.sequences} x {self.length}", *self.overrides]
        parts += [f"micro-batches of {self.micro_batch}"] if self.micro_batch else []
        parts += ["checkpointing"] if self.checkpointing else []
        parts += [] if self.chunked_loss else ["all logits"]
        parts += [f"{self.steps} steps"] if self.steps != STEPS else []
        return ", ".join([*parts, *([self.allocator] if self.allocator else [])])


JEMALLOC = ctypes.util.find_library("jemalloc")
ALLOCATORS = {
    # tensors from 128 KiB on by themselves, returned to the kernel when they are freed: slow, but no heap in pieces
    "mapped": {"MALLOC_MMAP_THRESHOLD_": f"{MIB // 8}"},
    **({"jemalloc": {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": "narenas:1,dirty_decay_ms:-1"}} if JEMALLOC else {}),
}
TWIN = ("model.mlp_hidden_size=512",)
TINY_MODEL = ("n_layers=1", "d_model=64", "mlp_hidden_size=64", "vocab_size=512", "embedding_size=512")
TINY = Case(
    sequences=1,
    length=64,
    allocator="mapped",
    steps=MANY_STEPS,
    overrides=tuple(f"model.{option}" for option in TINY_MODEL),
)
"""A model of 2 MiB: what its peak has beyond the formula are code and objects, which every run brings along."""
GROUPS: dict[str, list[Case]] = {
    "batch": [Case(sequences=n) for n in (1, 2, 4, 8, 16)] + [Case(sequences=8, micro_batch=2)],
    "experts": [Case("dense_d256", 4, overrides=TWIN), *(Case(f"moe_d256_e{e}", 4) for e in (8, 16, 64))],
    "length": [Case(sequences=4096 // length, length=length) for length in (128, 512, 2048)],
    "savings": [Case(checkpointing=c, chunked_loss=not whole) for whole in (True, False) for c in (False, True)],
    "allocator": [
        Case(checkpointing=c, allocator=name, steps=MANY_STEPS) for c in (False, True) for name in ("", *ALLOCATORS)
    ],
    "fixed": [TINY],
}
TITLES = {
    "batch": "Against the batch",
    "experts": "Against the number of experts (the dense model has the active parameters of two)",
    "length": "Against the sequence length, 4,096 tokens a step",
    "savings": "What activation checkpointing and the chunked loss save",
    "allocator": "With other allocators",
    "fixed": "Code and objects, which every run brings along: a model of almost nothing",
}
SETTINGS = "; ".join(
    f"*{name}*: " + " ".join(f"`{key}={value}`" for key, value in environment.items())
    for name, environment in ALLOCATORS.items()
)
SHORT = [Case(sequences=2), Case("moe_d256_e64", 2), Case(sequences=8, checkpointing=True)]


def resident(key: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_here(case: Case) -> dict[str, float]:
    """Take the steps of a case in this process; bytes, measured and by formula; seconds of a later step, the median."""
    from olmo.train import Trainer

    from olmoe_parrots.accounting import ModelShape
    from olmoe_parrots.memory import activation_bytes, state_bytes
    from olmoe_parrots.train import preload

    preload()
    micro_batch = case.micro_batch or case.sequences
    overrides = [f"device_train_microbatch_size={micro_batch}", *case.overrides]
    if case.checkpointing:
        overrides.append("activation_checkpointing=whole_layer")
    with tempfile.TemporaryDirectory() as name:
        vocabulary = next((int(o.split("=")[1]) for o in case.overrides if o.startswith("model.vocab_size=")), 32_000)
        tokens = write_tokens(Path(name), 2 * case.steps * case.sequences * case.length, vocabulary)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = resident("VmRSS")
        trainer = build(case.config, tokens, Path(name) / "run", case.sequences, case.length, *overrides)
        if not case.chunked_loss:
            forward = functools.partial(Trainer.model_forward, trainer)  # OLMo's own
            trainer.model_forward = forward  # type: ignore[method-assign]
        step = stepper(trainer)
        seconds: list[float] = []
        for _ in range(case.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        peak = resident("VmHWM") - before
    shape = ModelShape.from_config(trainer.cfg.model)
    options = {"checkpointing": case.checkpointing, "chunked_loss": case.chunked_loss}
    activations = activation_bytes(shape, micro_batch, case.length, **options)
    return {
        "peak": peak,
        "seconds": statistics.median(seconds[2:]),
        "state": state_bytes(shape),
        "activations": activations,
    }


def measure(case: Case) -> dict[str, float]:
    """:func:`measure_here` in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--case", json.dumps(asdict(case))]
    environment = {**os.environ, **ALLOCATORS.get(case.allocator, {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def ratios(found: dict[str, Any]) -> list[float]:
    return [peak / (found["state"] + found["activations"]) for peak in found["peaks"]]


def measure_all(cases: Sequence[Case], rounds: int) -> dict[Case, dict[str, Any]]:
    """By case: the peaks in bytes and the steps' seconds, one a round, and both formulas, in bytes."""
    asks = {case: functools.partial(measure, case) for case in cases}
    found = ask_in_turns(asks, rounds, warm=False)
    return {
        case: {"peaks": [one["peak"] for one in each], "seconds": [one["seconds"] for one in each]}
        | {key: each[0][key] for key in ("state", "activations")}
        for case, each in found.items()
    }


def section(group: str, cases: Sequence[Case], found: dict[Case, dict[str, Any]]) -> str:
    timed = group == "allocator"
    heads = ["parameters x 16", "activations", "peak", "peak, of both"]
    heads += ["a step's time, of glibc's as the command sets it"] * timed
    lines = [f"## {TITLES.get(group, group.capitalize())}", ""]
    lines += [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for case in cases:
        row = found[case]
        columns = [f"{row[key] / MIB:,.0f}" for key in ("state", "activations")]
        columns += [f"{statistics.median(row['peaks']) / MIB:,.0f}", spread(ratios(row))]
        if timed:
            usual = found[dataclasses.replace(case, allocator="")]
            columns.append(spread(Timing(row["seconds"]).over(Timing(usual["seconds"]))))
        lines.append(f"| {case.name} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n" + (f"\n{SETTINGS}\n" if timed else "")


def verdict(found: dict[Case, dict[str, Any]]) -> str:
    over = {case.name: statistics.median(ratios(row)) for case, row in found.items() if case != TINY}
    missed = [f"{name} ({ratio:.2f})" for name, ratio in over.items() if ratio > GOAL]
    met = [f"{name} ({ratio:.2f})" for name, ratio in over.items() if ratio <= GOAL]
    told = "; ".join(f"{how} by {', '.join(names)}" for how, names in (("met", met), ("not met", missed)) if names)
    return f"Goal: at most {GOAL} of parameters x 16 bytes and activations: {told}.\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="three cases, one a question")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="of the report")
    parser.add_argument("--case", help="measure this one here, and print it (JSON)")
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help=f"of {', '.join(GROUPS)} (all)")
    options = parser.parse_args(argv)
    if options.case:
        fields = json.loads(options.case)
        print(json.dumps(measure_here(Case(**{**fields, "overrides": tuple(fields["overrides"])}))))
        return
    groups = {"short": SHORT} if options.short else {group: GROUPS[group] for group in options.groups}
    script = str(options.output / Path(__file__).name)
    found = measure_all(list(dict.fromkeys(case for cases in groups.values() for case in cases)), options.rounds)
    append_rows(
        script, [{"case": case.name, **asdict(case), **row, "ratios": ratios(row)} for case, row in found.items()]
    )
    sections = [section(group, cases, found) for group, cases in groups.items()]
    command = " ".join(["python benchmarks/memory.py", *(sys.argv[1:] if argv is None else argv)])
    print(*sections, verdict(found), sep="\n")
    print(write_report(script, command, "\n".join([HEAD + verdict(found), *sections])))


HEAD = f"""# Memory of training steps on the CPU

20 layers, d = 256, vocabulary 32,000, fp32; a case is named by config, sequences x tokens of a step, and options. In
MiB. The peak is that of the resident set over {STEPS} steps of the trainer (or as many as a case names), in a process
of its own, less what was resident before the model was built; *activations* by the formula of
`olmoe_parrots/memory.py`. Medians (smallest to largest).

"""


if __name__ == "__main__":
    main()
