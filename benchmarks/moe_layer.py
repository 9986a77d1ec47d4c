"""Forward and backward pass of one MoE layer on the CPU, beside Hugging Face's blocks and the floor.

    python benchmarks/moe_layer.py

The floor is the matrix products of the same active FLOPs, dense and without autograd, and the bytes that have to move
beside them, copied. Contenders take turns. Rows go to moe_layer.jsonl beside this file, and the last run's report to
moe_layer.md. Hugging Face's blocks need transformers 5, as in `.venv-core`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rounds import append_rows, spread, take_turns, write_report
from torch import Tensor, nn

from olmoe_parrots.moe.experts import Activation
from olmoe_parrots.moe.layer import MoELayer
from olmoe_parrots.moe.router import TopKRouter

TOP_K = 2
CASES = [
    # tokens, d, experts, skewed
    (1024, 512, 16, False),
    (4096, 512, 8, False),
    (4096, 512, 16, False),
    (4096, 512, 64, False),
    (4096, 512, 64, True),
    (16384, 512, 64, False),
    (4096, 256, 64, False),
    (4096, 256, 256, False),
    (4096, 1024, 16, False),
]
GOALS = {
    (4096, 512, 16, False): 1.05,
    (4096, 512, 64, False): 1.30,
    (4096, 512, 64, True): 1.30,
    (4096, 256, 256, False): 2.0,
}
LARGEST_COPY = 2e9


def ours(d: int, experts: int, gated: bool, backend: str) -> nn.Module:
    activation = Activation(F.silu, gated=True) if gated else Activation(F.gelu)
    return MoELayer(d, d, TopKRouter(d, experts, TOP_K, normalize=gated), activation, backend=backend)


def hugging_face(d: int, experts: int, implementation: str) -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=d, intermediate_size=d, num_local_experts=experts, num_experts_per_tok=TOP_K)
    config._experts_implementation = implementation
    return MixtralSparseMoeBlock(config)


def hugging_face_olmoe(d: int, experts: int, implementation: str) -> nn.Module:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=d, intermediate_size=d, num_experts=experts, num_experts_per_tok=TOP_K, norm_topk_prob=True
    )
    config._experts_implementation = implementation
    return OlmoeSparseMoeBlock(config)


def prepare(layer: nn.Module, x: Tensor, grad: Tensor, skewed: bool) -> Callable[[], None]:
    """One forward and backward pass, with weights drawn from one seed."""
    torch.manual_seed(1)
    for name, parameter in sorted(layer.named_parameters()):
        nn.init.normal_(parameter, std=0.02)
        if skewed and ("router" in name or "gate.weight" in name):
            # the first feature is the same in all tokens: it favours experts more and more
            parameter.data[:, 0] = torch.linspace(0.3 * x.shape[-1] ** 0.5, 0, len(parameter))

    def run() -> None:
        output = layer(x.unsqueeze(0))
        (output[0] if isinstance(output, tuple) else output).backward(grad.unsqueeze(0))
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return run


def products(tokens: int, d: int, experts: int, gated: bool) -> Callable[[], None]:
    """The dense products of as many rows as there are assignments, and the router's: forward and both gradients."""
    rows, width = tokens * TOP_K, 2 * d if gated else d
    x, hidden, active = torch.randn(rows, d), torch.randn(rows, width), torch.randn(rows, d)
    w_in, w_out = torch.randn(width, d), torch.randn(d, d)
    out, out_hidden = torch.empty(rows, d), torch.empty(rows, width)
    token, router, scores = torch.randn(tokens, d), torch.randn(experts, d), torch.randn(tokens, experts)

    def run() -> None:
        torch.mm(x, w_in.t(), out=out_hidden)
        torch.mm(active, w_out, out=out)
        torch.mm(x, w_out.t(), out=out)
        active.t() @ x
        torch.mm(hidden, w_in, out=out)
        hidden.t() @ x
        token @ router.t()
        scores @ router
        scores.t() @ token

    return run


def bytes_that_move(tokens: int, d: int, experts: int, gated: bool) -> int:
    """Read and written beside the products, in bytes: docs/performance.md derives them."""
    rows, width = tokens * TOP_K, 2 * d if gated else d
    gathers = 2 * (2 * rows * d) + 2 * (rows * d + tokens * d)  # inputs and gradients out to rows, and back to tokens
    activation = (rows * width + rows * d) + (2 * rows * width + rows * d)
    weights = 3 * (experts - 1) * (width * d + d * d)  # of all experts but the one that the dense products have
    return 4 * (gathers + activation + weights)


def copies(count: int) -> Callable[[], None]:
    """A plain copy that reads and writes `count` bytes in all."""
    source = torch.ones(count // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(case: tuple[int, int, int, bool], gated: bool, rounds: int) -> dict[str, Any]:
    tokens, d, experts, skewed = case
    torch.manual_seed(0)
    x, grad = torch.randn(tokens, d), torch.randn(tokens, d)
    x[:, 0] = 10 / d**0.5 if skewed else x[:, 0]
    x.requires_grad_()
    layers = {f"ours, {backend}": ours(d, experts, gated, backend) for backend in ("threaded", "grouped", "loop")}
    if gated:
        for name in ("eager", "grouped_mm", "batched_mm"):
            if name != "batched_mm" or 4 * tokens * TOP_K * 2 * d * d < LARGEST_COPY:
                layers[f"Mixtral, {name}"] = hugging_face(d, experts, name)
        layers["OLMoE (HF), grouped_mm"] = hugging_face_olmoe(d, experts, "grouped_mm")
    contenders = {name: prepare(layer, x, grad, skewed) for name, layer in layers.items()}
    contenders["products"] = products(tokens, d, experts, gated)
    contenders["copies"] = copies(bytes_that_move(tokens, d, experts, gated))
    load = layers["ours, threaded"](x)[1].tokens_per_expert_E
    found = take_turns(contenders, rounds)
    about = {
        "tokens": tokens,
        "d": d,
        "experts": experts,
        "skewed": skewed,
        "gated": gated,
        "threads": torch.get_num_threads(),
    }
    about["largest_share"] = (load.max() / load.sum()).item()
    return {**about, "seconds": {name: timing.seconds for name, timing in found.items()}}


def table(rows: list[dict[str, Any]], gated: bool) -> list[str]:
    rows = [row for row in rows if row["gated"] == gated]
    names = [name for row in rows for name in row["seconds"] if name not in ("products", "copies")]
    names = list(dict.fromkeys(names))
    heads = ["tokens", "d", "E", "largest share", "floor, ms", "of it products", *names]
    lines = ["| " + " | ".join([*heads, "" if gated else "goal"]) + " |", "|" + "---:|" * (len(heads) + 1)]
    for row in rows:
        seconds = row["seconds"]
        floor = [sum(both) for both in zip(seconds["products"], seconds["copies"], strict=True)]
        share = [p / f for p, f in zip(seconds["products"], floor, strict=True)]
        cells = [f"{row['tokens']:,}", str(row["d"]), str(row["experts"]), f"{row['largest_share']:.3f}"]
        cells += [spread([1000 * second for second in floor], 0), f"{sorted(share)[len(share) // 2]:.2f}"]
        for name in names:
            ratios = [a / b for a, b in zip(seconds.get(name, []), floor, strict=False)]
            cells.append(spread(ratios))
        goal = GOALS.get((row["tokens"], row["d"], row["experts"], row["skewed"])) if not gated else None
        lines.append("| " + " | ".join([*cells, str(goal or "")]) + " |")
    return lines


def report_of(rows: list[dict[str, Any]], rounds: int) -> str:
    body = f"""# One MoE layer on the CPU

Forward and backward, top-2, intermediate width d. Ratios to the floor of the same round: median (smallest to largest)
of {rounds} rounds, the contenders in turn. *threaded* is what `auto` takes on the CPU. The floor is the dense products
of the same active FLOPs, the router's among them, without autograd, and a copy of the bytes that have to move beside
them ([performance.md](../docs/performance.md)).
"""
    if not all(row["gated"] for row in rows):
        body += "\n## Plain experts (GELU), as in the paper\n\n" + "\n".join(table(rows, False)) + "\n"
    if any(row["gated"] for row in rows):
        body += "\n## Gated experts (SwiGLU), as Mixtral's and OLMoE's\n\n" + "\n".join(table(rows, True)) + "\n"
        body += "\n`batched_mm` copies each row's weights, and is left out where that takes more than 2 GB.\n"
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="only the shapes that have goals")
    parser.add_argument("--experts", choices=("plain", "gated", "both"), default="both")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="of the report")
    options = parser.parse_args()
    script = str(options.output / Path(__file__).name)
    cases = [case for case in CASES if case in GOALS or not options.short]
    kinds = {"plain": [False], "gated": [True], "both": [False, True]}[options.experts]
    if True in kinds and not has_transformers_5():
        parser.error("gated experts are compared with transformers 5, which is not here; give --experts plain")
    rows: list[dict[str, Any]] = []
    for gated in kinds:
        for case in cases:
            rows.append(measure(case, gated, options.rounds))
            print(table(rows[-1:], gated)[-1], flush=True)
            append_rows(script, rows[-1:])
            command = f"python benchmarks/moe_layer.py {' '.join(sys.argv[1:])}".strip()
            report = write_report(script, command, report_of(rows, options.rounds))
    print(report)


def has_transformers_5() -> bool:
    try:
        import transformers
    except ImportError:
        return False
    return int(transformers.__version__.split(".")[0]) >= 5


if __name__ == "__main__":
    main()
