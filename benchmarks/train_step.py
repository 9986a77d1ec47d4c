"""Whole training steps on the CPU, beside Hugging Face's Mixtral, dense twins and OLMo's own.

    python benchmarks/train_step.py

20 layers, d = 256, vocabulary 32,000, sequences of 512 tokens, 4,096 tokens a step. Ours are steps of OLMo's trainer as
`olmoe_parrots.train` builds it. Mixtral is of the same shape, and trained as transformers' own trainer does by default:
fused AdamW, clipping at norm 1, gradients of the load-balancing loss. Contenders take turns of two steps, of which the
second counts, each in a process of its own: memory that one frees is nothing to the others, and the allocator is set
for the trainer alone. Rows go to train_step.jsonl beside this file, and the report to train_step.md. Mixtral and OLMoE
need transformers 5, as in `.venv-core`.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from rounds import Timing, append_rows, ask_in_turns, spread, write_report
from training import build, write_tokens

SEQUENCE, SEQUENCES, VOCABULARY = 512, 8, 32_000
TOKENS = SEQUENCE * SEQUENCES
D, LAYERS, HEADS = 256, 20, 4


Steps = dict[str, Callable[[], None]]
"""By contender."""


def our_step(folder: Path, config: str, *overrides: str, plain_olmo: bool = False) -> Callable[[], None]:
    """A step of the trainer; with `plain_olmo` of OLMo's own model, loss and optimizer in it."""
    from olmo.optim import build_optimizer
    from olmo.train import Trainer

    run = Path(tempfile.mkdtemp(dir=folder))
    trainer = build(config, folder / "tokens.npy", run, SEQUENCES, SEQUENCE, *overrides)
    if plain_olmo:
        trainer.optim = build_optimizer(trainer.cfg, trainer.dist_model)
        trainer.model_forward = lambda *args, **kwargs: Trainer.model_forward(trainer, *args, **kwargs)  # type: ignore[method-assign]
    batches = iter(trainer.train_loader)

    def step() -> None:
        trainer.global_step += 1
        if plain_olmo:
            Trainer.train_step(trainer, next(batches))
        else:
            trainer.train_step(next(batches))

    return step


def our_steps(name: str, folder: Path, config: str, *overrides: str, plain_olmo: bool = False) -> Steps:
    return {name: our_step(folder, config, *overrides, plain_olmo=plain_olmo)}


def hugging_face_steps(name: str, experts: int, implementations: Sequence[str]) -> Steps:
    """Steps of transformers' Mixtral or OLMoE, one model by each of its implementations of the experts."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": D, "intermediate_size": D, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": SEQUENCE}
    sizes |= {{"Mixtral": "num_local_experts", "Olmoe": "num_experts"}[name]: experts}
    more = {"tie_word_embeddings": True, "output_router_logits": True, "use_cache": False, "num_experts_per_tok": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config).train()
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(0, VOCABULARY, (SEQUENCES, SEQUENCE))

    def step(implementation: str) -> None:
        model.set_experts_implementation(implementation)
        optim.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()

    return {f"{name}, {each}": functools.partial(step, each) for each in implementations}


def products_alone() -> Steps:
    """What no gated MoE step of this shape does without: each product of its active FLOPs as one dense `torch.mm`,
    forward and both gradients, and torch's attention."""
    shapes = [(TOKENS, D, 3 * D), (TOKENS, D, D), (2 * TOKENS, D, 2 * D), (2 * TOKENS, D, D)] * LAYERS
    weights = {(i, o): torch.randn(o, i) for _, i, o in [*shapes, (TOKENS, D, VOCABULARY)]}
    rows = {(n, width): torch.randn(n, width) for n, i, o in shapes for width in (i, o)}
    q, k, v = torch.randn(3, SEQUENCES, HEADS, SEQUENCE, D // HEADS, requires_grad=True).unbind()
    grad = torch.randn_like(q)
    chunk = (512, VOCABULARY)
    rows |= {chunk: torch.randn(chunk), (512, D): torch.randn(512, D)}

    def product(count: int, width_in: int, width_out: int) -> None:
        x, y, weight = rows[count, width_in], rows[count, width_out], weights[width_in, width_out]
        x @ weight.t()
        y @ weight
        y.t() @ x

    def step() -> None:
        for shape in shapes:
            product(*shape)
        for _ in range(TOKENS // 512):
            product(512, D, VOCABULARY)
        for _ in range(LAYERS):
            attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(attention, (q, k, v), grad)

    return {"products and attention alone": step}


def makers(group: str, folder: Path) -> list[Callable[[], Steps]]:
    """What makes the contenders of a group, each in a process of its own."""
    if group == "twins":
        # of the MoE's active parameters: a dense feed-forward network of two experts' width
        return [
            *(functools.partial(our_steps, name, folder, config) for name, config in CONFIGS.items()),
            functools.partial(our_steps, "dense twin", folder, "dense_d256", TWIN),
            functools.partial(our_steps, "dense twin, OLMo's own step", folder, "dense_d256", TWIN, plain_olmo=True),
        ]
    experts = int(group.removeprefix("mixtral_e"))
    found: list[Callable[[], Steps]] = [
        functools.partial(our_steps, "ours", folder, f"moe_d256_e{experts}", *GATED),
        functools.partial(hugging_face_steps, "Mixtral", experts, ("grouped_mm", "eager")),
        products_alone,
    ]
    if experts < 64:  # another model of that size does not fit into 24 GiB beside the two
        found.insert(2, functools.partial(hugging_face_steps, "Olmoe", experts, ("grouped_mm",)))
    return found


_steps: Steps = {}
"""Of this process."""


def _begin(make: Callable[[], Steps]) -> list[str]:
    _steps.update(make())
    return list(_steps)


def _timed(name: str, warm_up: int) -> float:
    """Seconds of a step that follows others: memory that lay idle for the others' turns is slow to come back."""
    for _ in range(warm_up):
        _steps[name]()
    start = time.perf_counter()
    _steps[name]()
    return time.perf_counter() - start


def measure(group: str, rounds: int, slow_rounds: int, warm_up: int) -> dict[str, Timing]:
    """All contenders of a group."""
    asks: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_tokens(Path(folder), 60 * TOKENS, VOCABULARY)
        for make in makers(group, Path(folder)):
            process = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
            for name in process.submit(_begin, make).result():
                asks[name] = lambda process=process, name=name: process.submit(_timed, name, warm_up).result()
        slow = {"Mixtral, eager": slow_rounds} if group == "mixtral_e64" else {}
        return {name: Timing(seconds) for name, seconds in ask_in_turns(asks, rounds, fewer=slow).items()}


TWIN = "model.mlp_hidden_size=512"
GATED = ("model.activation_type=swiglu", TWIN)
CONFIGS = {
    "MoE, E = 8": "moe_d256_e8",
    "MoE, E = 16": "moe_d256_e16",
    "MoE, E = 64": "moe_d256_e64",
}
"""Contenders that are a config's own model, by which `launch plan` finds their rates."""

GROUPS = {
    "twins": ("dense twin", "our own dense twin of equal active parameters"),
    "mixtral_e16": ("ours", "Mixtral of the same shape, gated, 16 experts"),
    "mixtral_e64": ("ours", "Mixtral of the same shape, gated, 64 experts"),
}


def section(group: str, found: dict[str, Timing]) -> str:
    base, title = GROUPS[group]
    lines = [f"## {title[0].upper()}{title[1:]}", "", f"| | tokens/s | seconds, over those of *{base}* | rounds |"]
    lines.append("|---|---:|---:|---:|")
    for name, timing in found.items():
        rate = spread([TOKENS / seconds for seconds in timing.seconds], 0)
        lines.append(f"| {name} | {rate} | {spread(timing.over(found[base]))} | {len(timing.seconds)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow-rounds", type=int, default=3, help="of Mixtral's eager loop over 64 experts")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each turn before the one that counts")
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="of the report")
    options = parser.parse_args()
    script = str(options.output / Path(__file__).name)
    sections: list[str] = []
    for group in options.groups:
        found = measure(group, options.rounds, options.slow_rounds, options.warm_up)
        for name, timing in found.items():
            row = {"group": group, "contender": name, "seconds": timing.seconds, "device": "cpu", "median": True}
            row |= {"config": CONFIGS[name]} if name in CONFIGS else {}
            append_rows(script, [{**row, "tokens_per_second_per_device": TOKENS / timing.median}])
        sections.append(section(group, found))
        print(sections[-1], flush=True)
        command = f"python benchmarks/train_step.py {' '.join(sys.argv[1:])}".strip()
        report = write_report(script, command, HEAD + "\n".join(sections))
    print(report)


HEAD = f"""# Training steps on the CPU

Forward, backward, clipping and AdamW of 20 layers, d = 256, vocabulary 32,000, {SEQUENCES} sequences of {SEQUENCE}
tokens. Medians (smallest to largest) over rounds in which the contenders take turns of two steps, of which the second
counts; ratios are those within a round.

"""


if __name__ == "__main__":
    main()
