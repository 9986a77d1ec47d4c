"""What the counts of a layer's routing come to: load, co-activation, mutual information; as rows of plain data.

Shapes: E experts, K experts per token, G groups of tokens. Informations and entropies are in nats. A row has

    layer           from 0
    measurement     its name; value: a number, a list by expert, or a table
    groups, tokens  of a table by group: the names of its rows, and the counted tokens in each
    counts          of a table or list: the assignments, whole numbers, of which `value` is made
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from olmoe_parrots.evaluation.routing_counts import Tables
from olmoe_parrots.evaluation.routing_data import BANDS, Sample, frequency_bands

Numbers = npt.NDArray[Any]
Row = dict[str, Any]
SUMMARIES = (
    "load_entropy",
    "load_max_over_mean",
    "router_entropy",
    "co_activation_distance",
    "token_specialization",
    "frequency_band_specialization",
    "source_specialization",
    "source_nmi",
    "part_specialization",
)
"""The measurements of one number a layer, which go to the results too."""


def measure(tables: Tables, sample: Sample) -> list[Row]:
    """The rows of all layers, layer by layer. A measurement that has no meaning for the data or the model is absent."""
    rows: list[Row] = []
    bands_U = frequency_bands(tables.tokens_U)
    tokens = {
        "source": _tokens(sample.source_R[:, None].repeat(sample.tokens_RS.shape[1], 1), sample, len(sample.sources)),
        "part": [] if sample.part_RS is None else _tokens(sample.part_RS, sample, len(sample.parts)),
        "frequency_band": np.bincount(bands_U, weights=tables.tokens_U, minlength=BANDS).astype(np.int64).tolist(),
    }
    names = {"source": sample.sources, "part": sample.parts, "frequency_band": band_names()}
    for layer in range(len(tables.load_LE)):
        found = [*_load_rows(tables, layer), *_co_activation_rows(tables, layer)]
        by_group = {
            "token": (tables.token.counts_LGE[layer].numpy(), tables.token.shuffled_LXGE[layer].numpy()),
            "source": (tables.source.counts_LGE[layer].numpy(), tables.source.shuffled_LXGE[layer].numpy()),
            "part": (tables.part.counts_LGE[layer].numpy(), tables.part.shuffled_LXGE[layer].numpy()),
        }
        by_group["frequency_band"] = (_banded(by_group["token"][0], bands_U), _banded(by_group["token"][1], bands_U))
        for name, (counts_GE, shuffled_XGE) in by_group.items():
            if name in names and len(names[name]):
                found.append(_share_row(name, names[name], tokens[name], counts_GE))
            found += _information_rows(name, counts_GE, shuffled_XGE, tables.top_k)
        rows += [{"layer": layer, **row} for row in found]
    return rows


def band_names() -> tuple[str, ...]:
    """Of the bands by frequency: the shares of the counted tokens that they reach from and to."""
    return tuple(f"{100 * band // BANDS}-{100 * (band + 1) // BANDS}%" for band in range(BANDS))


def mutual_information(counts_GE: Numbers) -> tuple[float, float, float]:
    """I(G; E) = Σ p(g,e) ln(p(g,e) / (p(g) p(e))), of one assignment's group and expert, and the entropies H(G), H(E).

    This is the plug-in estimate: too large by about (cells - 1) / 2 over the number of draws where nothing is to see.
    """
    joint = counts_GE / counts_GE.sum()
    groups, experts = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    some = joint > 0
    information = float((joint[some] * np.log(joint[some] / (groups * experts)[some])).sum())
    return max(0.0, information), entropy(groups), entropy(experts)


def entropy(shares: Numbers) -> float:
    """Σ -p ln p of shares that add up to 1."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def expected_pairs(load_E: Numbers, tokens: int, top_k: int) -> Numbers:
    """How many tokens two experts would share if the experts of a token had nothing to do with each other: (E, E).

    K different experts a token, P(set) ∝ Π w_e over it (the conditional Bernoulli law, of all laws with these loads the
    one of the largest entropy), the w_e such that each expert has the load it has. They are found by the iteration of
    Chen, Dempster and Liu (1994, Biometrika 81:457): w_e ← w_e · load_e / load_e(w). The diagonal is the loads.
    """
    rate_E = load_E / tokens
    always, open_E = rate_E >= 1, (rate_E > 0) & (rate_E < 1)
    pairs = np.outer(rate_E, rate_E)  # right wherever one of the two is taken by all tokens or by none
    left = top_k - int(always.sum())
    if left > 0 and open_E.any():
        pairs[np.ix_(open_E, open_E)] = _drawn_pairs(rate_E[open_E], left)
    np.fill_diagonal(pairs, rate_E)
    return pairs * tokens


def _drawn_pairs(rate_E: Numbers, picks: int, tolerance: float = 1e-9, most: int = 10_000) -> Numbers:
    """The share of draws of `picks` different experts that hold both of two, given that of each one, in (0, 1)."""
    weight_E = rate_E / (1 - rate_E)
    others = 1 - np.eye(len(rate_E))
    for _ in range(most):
        weight_E = weight_E / weight_E.max()
        found_E = weight_E * _symmetric((weight * out for weight, out in zip(weight_E, others, strict=True)), picks - 1)
        found_E *= picks / found_E.sum()  # every draw holds so many
        weight_E = weight_E * rate_E / found_E
        if np.abs(rate_E / found_E - 1).max() < tolerance:
            break
    both = (np.outer(out, out) for out in others)  # 0 for the pairs that one expert is in
    rest = _symmetric((weight * out for weight, out in zip(weight_E, both, strict=True)), picks - 2)
    pairs = np.outer(weight_E, weight_E) * rest * others
    total = pairs.sum()
    return pairs * (picks * (picks - 1) / total) if total > 0 else pairs


def _symmetric(weights: Iterable[Numbers], order: int) -> Numbers | float:
    """The elementary symmetric polynomial of an order in weights, each an array of one value a case."""
    if order <= 0:
        return float(order == 0)
    sums: list[Any] = [1.0] + [0.0] * order
    for weight in weights:
        sums = [1.0, *(sums[place] + weight * sums[place - 1] for place in range(1, order + 1))]
    return np.asarray(sums[order])


def _load_rows(tables: Tables, layer: int) -> list[Row]:
    load_E = tables.load_LE[layer].numpy()
    share_E = load_E / load_E.sum()
    even = math.log(tables.experts) or 1.0  # of one expert there is no entropy
    return [
        {"measurement": "load", "value": _short(share_E), "counts": load_E.tolist()},
        {"measurement": "load_entropy", "value": entropy(share_E) / even},
        {"measurement": "load_max_over_mean", "value": float(share_E.max()) * tables.experts},
        {"measurement": "router_probability", "value": _short(tables.probability_LE[layer].numpy() / tables.tokens)},
        {"measurement": "router_entropy", "value": float(tables.entropy_L[layer]) / tables.tokens / even},
    ]


def _co_activation_rows(tables: Tables, layer: int) -> list[Row]:
    if tables.top_k < 2:
        return []
    pairs_EE = tables.pairs_LEE[layer].numpy()
    expected_EE = expected_pairs(pairs_EE.diagonal(), tables.tokens, tables.top_k)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_EE = pairs_EE / expected_EE
    np.fill_diagonal(ratio_EE, np.nan)
    different = ~np.eye(tables.experts, dtype=np.bool_)
    moved = np.abs(pairs_EE - expected_EE)[different].sum() / 2 / pairs_EE[different].sum()
    about = {"value": _short(ratio_EE, 4), "counts": pairs_EE.tolist(), "expected": _short(expected_EE)}
    return [
        {"measurement": "co_activation", **about},
        {"measurement": "co_activation_distance", "value": float(moved)},
    ]


def _share_row(name: str, groups: tuple[str, ...], tokens: list[int], counts_GE: Numbers) -> Row:
    with np.errstate(invalid="ignore"):
        shares = counts_GE / counts_GE.sum(axis=1, keepdims=True)
    about = {"groups": list(groups), "tokens": tokens, "value": _short(shares), "counts": counts_GE.tolist()}
    return {"measurement": f"share_by_{name}", **about}


def _information_rows(name: str, counts_GE: Numbers, shuffled_XGE: Numbers, top_k: int) -> list[Row]:
    """Mutual information with the groups, and the share of what is possible that it makes: 0 by chance, 1 at most."""
    if np.count_nonzero(counts_GE.sum(axis=1)) < 2:
        return []
    information, groups, experts = mutual_information(counts_GE)
    shuffled = [mutual_information(table)[0] for table in shuffled_XGE]
    chance = sum(shuffled) / len(shuffled)
    # a token takes K different experts, so that among those of a group there is an entropy of ln K at least
    largest = min(groups, experts - math.log(top_k))
    found: list[Row] = [
        {
            "measurement": f"{name}_mutual_information",
            "value": information,
            "shuffled": _short(np.array(shuffled)),
            "largest": largest,
        }
    ]
    if largest - chance > 1e-6:
        found.append({"measurement": f"{name}_specialization", "value": (information - chance) / (largest - chance)})
    if name == "source" and experts > 0:
        found.append({"measurement": "source_nmi", "value": 2 * information / (groups + experts)})
    return found


def _banded(counts: Numbers, bands_U: Numbers) -> Numbers:
    """A table by token id, (U, E) or (X, U, E), as one by band of frequency."""
    is_of = (bands_U == np.arange(BANDS)[:, None]).astype(np.float64)  # whole numbers to 2^53, and products are fast
    return np.rint(is_of @ counts).astype(np.int64)


def _tokens(labels_RS: Numbers, sample: Sample, groups: int) -> list[int]:
    counted: list[int] = np.bincount(labels_RS[sample.counted_RS], minlength=groups).tolist()
    return counted


def _short(values: Numbers, digits: int = 6) -> Any:
    """Values as lists of a few significant digits, None for those that are none."""
    if values.ndim > 1:
        return [_short(part, digits) for part in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
