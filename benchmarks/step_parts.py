"""Which part of a training step each profiled operation belongs to.

:func:`marked` puts a range of torch.profiler around the parts of a model, its trainer and optimizer, from outside. An
operation of the forward pass belongs to the innermost range around it. A node of the backward pass belongs where the
forward operation does that has its sequence number: autograd numbers the nodes of a thread, an operation's record holds
the number that the next node will get, and so the last operation to begin with a number is the one that made the node.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.profiler import record_function

PREFIX = "part: "
STEP = PREFIX + "step"
FSDP = "FullyShardedDataParallel."
NODE = "autograd::engine::evaluate_function: "
BACKWARD = 1
"""The scope that torch's profiler gives to nodes of the backward pass."""

PRODUCTS, ACTIVATION, ROWS = "experts: products", "experts: activation", "experts: rows out and back"
ROUTER = "router and its losses"
PROJECTIONS, SCORES, ROTARY = "attention: projections", "attention: scores and values", "attention: rotary embedding"
NORMS, EMBEDDING, OUTPUT = "norms and residuals", "embedding", "output matrix and loss"
CLIPPING, ADAMW, GRADIENTS, ELSE = "gradient norm", "AdamW", "FSDP and kept gradients", "everything else"
PARTS = [PRODUCTS, ACTIVATION, ROWS, ROUTER, PROJECTIONS, SCORES, ROTARY, NORMS, EMBEDDING, OUTPUT]
PARTS += [CLIPPING, ADAMW, GRADIENTS, ELSE]
"""In the order of the report; a dense model's feed-forward network stands with the experts."""

EXPERTS, MODEL = "experts", "model"
MODULES = {
    **dict.fromkeys(("att_proj", "attn_out"), PROJECTIONS),
    **dict.fromkeys(("attn_norm", "ff_norm", "q_norm", "k_norm", "ln_f"), NORMS),
    **dict.fromkeys(("ff_proj", "act", "ff_out"), EXPERTS),
    "rotary_emb": ROTARY,
    "router": ROUTER,
    "wte": EMBEDDING,
}
"""By the last name of a module; what a block does beside them is taken for residual sums."""

MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "matmul", "linear")
ACTIVATIONS = ("gelu", "silu", "relu", "threshold")


class Share(NamedTuple):
    part: str
    phase: str
    """``forward`` (and what comes after the backward pass), or ``backward``."""


@contextmanager
def marked(trainer: Any) -> Iterator[None]:
    """Ranges around the parts of a trainer's steps, for as long as the context lasts."""
    import olmo.model

    import olmoe_parrots.trainer as trainer_module

    model, optim = trainer.model, trainer.optim
    targets = [(model, "forward", MODEL), (model, "_loss", OUTPUT), (trainer, "loss_fn", OUTPUT)]
    targets += [(optim, "step", ADAMW), (optim, "clip_grads_and_collect_metrics", CLIPPING)]
    targets += [(trainer_module, name, ROUTER) for name in ("load_balancing_loss", "router_z_loss")]
    for name, module in model.named_modules():
        if isinstance(module, olmo.model.OLMoBlock):
            targets += [(module, "forward", NORMS), (module, "_scaled_dot_product_attention", SCORES)]
        elif (part := MODULES.get(name.rpartition(".")[2])) is not None:
            targets.append((module, "forward", part))
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in targets]
    for owner, name, part in targets:
        if (method := getattr(owner, name, None)) is not None:
            setattr(owner, name, _within(part, method))
    try:
        yield
    finally:
        for owner, name, own in before:
            if own is not None:
                setattr(owner, name, own)
            elif name in vars(owner):  # it was the class's
                delattr(owner, name)


def _within(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + part):
            return method(*args, **kwargs)

    return run


class Attribution:
    """Of the events of one profiled step, which has a range named :data:`STEP` around it."""

    def __init__(self, events: Sequence[Any]) -> None:
        self.step = next(event for event in events if event.name == STEP)
        self.events = [event for event in events if event.device_type.name == "CPU" and self._is_within(event)]
        self._made: dict[tuple[int, int], Any] = {}
        for event in sorted(self.events, key=lambda event: event.time_range.start):
            if event.scope == 0 and event.sequence_nr >= 0 and not event.name.startswith(NODE):
                self._made[event.thread, event.sequence_nr] = event
        self._shares: dict[int, Share] = {}

    def _is_within(self, event: Any) -> bool:
        mine, its = self.step.time_range, event.time_range
        return mine.start <= its.start and its.end <= mine.end

    def share_of(self, event: Any) -> Share:
        """The part that an event is in, ``experts`` not yet divided by kinds of operations."""
        path, above = [], event
        share = None
        while share is None:
            path.append(above)
            share = self._shares.get(above.id) or self._own_share(above)
            above = above.cpu_parent
        for one in reversed(path):
            if share.part == MODEL:  # between the blocks: the products are the output matrix's
                share = share._replace(part=OUTPUT) if _kind(one) == PRODUCTS else share
            self._shares[one.id] = share
        return share

    def _own_share(self, event: Any) -> Share | None:
        """What an event itself says, ``None`` where its parent has to be asked."""
        if event.name.startswith(PREFIX) and event is not self.step:
            return Share(event.name.removeprefix(PREFIX), "forward")
        if event.name.startswith(FSDP):
            return Share(GRADIENTS, "forward")
        if event.name.startswith(NODE) or event.scope == BACKWARD:
            made_by = self._made.get((event.fwd_thread or event.thread, event.sequence_nr))
            if made_by is None or event.sequence_nr < 0 or "AccumulateGrad" in event.name:
                return Share(GRADIENTS, "backward")
            return self.share_of(made_by)._replace(phase="backward")
        return Share(ELSE, "forward") if event.cpu_parent is None else None

    def seconds(self, on_device: bool = False) -> dict[Share, float]:
        """Seconds of each part: of the thread that trains, or of the device for what it launched.

        While that thread waits for the experts' own threads, the time is divided as these divide theirs.
        """
        total: dict[Share, float] = defaultdict(float)
        waits: dict[Share, float] = defaultdict(float)
        for event in self.events:
            if event.thread != self.step.thread and not on_device:
                continue
            spent = (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e6
            part, phase = self.share_of(event)
            if part == EXPERTS and not event.name.startswith("aten::"):
                waits[Share(part, phase)] += spent
            else:
                total[Share(_kind(event) if part == EXPERTS else ELSE if part == MODEL else part, phase)] += spent
        for (_, phase), spent in waits.items():
            for kind, fraction in self._kinds_in_threads(phase).items():
                total[Share(kind, phase)] += spent * fraction
        return total

    def _kinds_in_threads(self, phase: str) -> dict[str, float]:
        """What fraction of the time of the experts' threads each kind of operation takes."""
        backward = [e for e in self.events if e.thread == self.step.thread and e.name.startswith(NODE)]
        backward.sort(key=lambda event: event.time_range.start)
        starts = [event.time_range.start for event in backward]
        found: dict[str, float] = defaultdict(float)
        for event in self.events:
            if event.thread == self.step.thread or not event.name.startswith("aten::"):
                continue
            at = bisect_right(starts, event.time_range.start) - 1
            is_backward = at >= 0 and event.time_range.start <= backward[at].time_range.end
            if is_backward == (phase == "backward"):
                found[_kind(event)] += event.self_cpu_time_total
        whole = sum(found.values())
        return {kind: spent / whole for kind, spent in found.items()} if whole else {ROWS: 1.0}


def _kind(event: Any) -> str:
    """Of an operation of the experts, by its name."""
    name = event.name.removeprefix("aten::").rstrip("_").removesuffix("_backward")
    if name in MATRIX_PRODUCTS:
        return PRODUCTS
    return ACTIVATION if name in ACTIVATIONS else ROWS
