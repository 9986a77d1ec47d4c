"""Result rows whose figures and fits are known: made for tests by simple laws."""

from __future__ import annotations

from olmoe_parrots.results import Row


def params_of(width: int, experts: int, top_k: int = 2, layers: int = 2) -> tuple[int, int]:
    """Total and active parameters of a gated model, near enough: 4 d^2 of attention and 3 d^2 a network, a layer."""
    total, active = (4 + 3 * max(1, n) for n in (experts, min(experts, top_k)))
    return layers * total * width**2, layers * active * width**2


def make_row(
    width: int, experts: int, value: float, *, metric: str = "capacity", seed: int = 0, **others: object
) -> Row:
    """A row of one model and seed: a phone-book capacity, or a shortest-path accuracy."""
    total, active = params_of(width, experts)
    task = "phone_book" if metric == "capacity" else "shortest_path"
    shape = {"width": width, "layers": 2, "experts": experts, "top_k": 2 if experts else 0, "hidden_size": width}
    usual: dict = {
        "model": f"{'moe' if experts else 'dense'}_d{width}" + f"_e{experts}" * bool(experts),
        "config_digest": f"{task}{width}-{experts}-{seed}",
        "total_params": total,
        "active_params": active,
        "non_embedding_params": total,
        "training_tokens": 1000,
        "training_flops": 1e9,
        "task": task,
        "split": "train" if metric == "capacity" else "test",
        "metric": metric,
        "value": value,
        "architecture": {**shape, "gated": True},
        "data": {"name": task, "task": task},
        "seed": seed,
        "time": 0.0,
    }
    return Row(**{**usual, **others})


WIDTHS, EXPERTS, SEEDS = (32, 64, 128), (0, 4, 8, 16), (0, 1, 2)
NOISE = (0.9, 1.0, 1.12)


def paper_like_rows() -> list[Row]:
    """Capacity follows total parameters whatever the model; accuracy follows width alone. Three seeds each."""
    rows = []
    for width in WIDTHS:
        for experts in EXPERTS:
            total, _ = params_of(width, experts)
            for seed in SEEDS:
                rows.append(make_row(width, experts, total / 20 * NOISE[seed], seed=seed))
                right = {32: 0.2, 64: 0.5, 128: 0.8}[width] + 0.03 * (seed - 1)
                rows.append(make_row(width, experts, right, metric="chosen/right", seed=seed))
    return rows
