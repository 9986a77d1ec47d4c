"""Random graphs with a shortest path each: the law of the shortest-path examples.

Drawn are a graph by its law, a target among its vertices, and a source among the vertices whose distance to the target
is asked for, each with the same probability. Where there is none, or the graph is excluded, all three are drawn again.

Shapes: B examples of a batch, N vertices, M edges, L vertices of a path.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from olmoe_parrots.synthetic.graphs import (
    GraphLaw,
    distance_sets,
    distances_of,
    neighbours,
    random_member,
    smallest_paths,
)
from olmoe_parrots.synthetic.randomness import Integers, Stream, mix

NO_PATH, EXCLUDED = "drawn again: no path of this length", "drawn again: graph of the test"
_PROBED = 4096
_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class Examples:
    """Edges (M, B), the path (L, B) with -1 after its end, and its length in edges (B,), -1 where there is no path."""

    tails_MB: Integers
    heads_MB: Integers
    path_LB: Integers
    lengths_B: Integers

    def put(self, places: Integers, other: Examples, columns: Integers) -> None:
        """Put `columns` of `other` in the given places."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[..., places] = theirs[..., columns]


@dataclass(frozen=True)
class PathLaw:
    """Which examples there are and how often.

    Args:
        graph: the law of the graphs.
        min_length, max_length: of the paths, in edges.
        balance: in place of the graphs' own distribution, the lengths of the range in turn.
        labels: a graph's vertices carry numbers drawn from so many, at least as many as there are vertices.
    """

    graph: GraphLaw
    min_length: int
    max_length: int
    balance: bool
    labels: int

    @property
    def batch(self) -> int:
        """Examples drawn at once: a power of two that keeps the shuffle of :meth:`Stream.subsets` in the cache."""
        pool = max(self.graph.possible_edges, self.labels)
        return min(2048, 1 << int(math.log2((1 << 22) / pool)))

    def log_graphs(self) -> float:
        """The natural logarithm of the number of labelled edge sets: an upper bound where there are more labels."""
        n, k = self.labels, self.graph.vertices
        choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        # With few edges, different choices of labels give the same edges.
        any_edges = GraphLaw("erdos_renyi", n, self.graph.edges, self.graph.directed)
        return min(self.graph.log_graphs() + choices, any_edges.log_graphs())

    def length_shares(self, stream: Stream) -> Integers:
        """The share of some thousand sampled targets with a vertex at each distance, from 0 to `max_length`."""
        shares = np.zeros(self.max_length + 1)
        batches = max(1, _PROBED // self.batch)
        for _ in range(batches):
            targets = stream.below(self.graph.vertices, (self.batch,))
            _, sources_of = self._neighbours(*self.graph.sample(stream, self.batch))
            levels = distance_sets(targets, sources_of, self.max_length)
            shares[: len(levels)] += (levels != 0).any(axis=1).mean(axis=1) / batches
        return shares

    def _neighbours(self, tails_MB: Integers, heads_MB: Integers) -> tuple[Integers, Integers]:
        """For each vertex those it has an edge to, and those with an edge to it: (N, W, B) each."""
        size = self.graph.vertices
        if self.graph.directed:
            return neighbours(tails_MB, heads_MB, size), neighbours(heads_MB, tails_MB, size)
        ends = np.concatenate([tails_MB, heads_MB]), np.concatenate([heads_MB, tails_MB])
        both = neighbours(*ends, size)
        return both, both

    def draw(self, stream: Stream, wanted_B: Integers) -> Examples:
        """One try a column, at a path of the length wanted, or of any length of the range where 0 is wanted."""
        batch = len(wanted_B)
        tails, heads = self.graph.sample(stream, batch)
        targets_of, sources_of = self._neighbours(tails, heads)
        levels = distance_sets(stream.below(self.graph.vertices, (batch,)), sources_of, self.max_length)
        in_range = np.bitwise_or.reduce(levels[self.min_length :], axis=0)
        at_wanted = levels[np.minimum(wanted_B, len(levels) - 1), :, np.arange(batch)].T
        at_wanted = np.where(wanted_B < len(levels), at_wanted, np.uint64(0))
        sources = random_member(np.where(wanted_B > 0, at_wanted, in_range), stream)
        found, sources = sources >= 0, np.maximum(sources, 0)
        path = np.full((self.max_length + 1, batch), -1, dtype=np.int64)
        path[: len(levels)] = smallest_paths(sources, targets_of, levels)
        lengths = np.where(found, distances_of(sources, levels), -1)
        if self.labels > self.graph.vertices:
            # in rising order, so that the smallest path by vertex is the smallest by label
            labels_NB = np.sort(stream.subsets(self.labels, self.graph.vertices, batch), axis=0).astype(np.int64)
            tails, heads = (np.take_along_axis(labels_NB, ends, axis=0) for ends in (tails, heads))
            path = np.where(path < 0, -1, np.take_along_axis(labels_NB, np.maximum(path, 0), axis=0))
        return Examples(tails, heads, path, lengths)

    def examples(self, stream: Stream, first: int, excluded: Integers, counts: Counter[str]) -> Examples:
        """`batch` examples, the first of which has the place `first` in its set.

        Args:
            excluded: keys (:func:`graph_keys`) of graphs to draw again.
            counts: what was drawn again is added to it, by reason.
        """
        places = np.arange(first, first + self.batch)
        wanted = self.min_length + places % (self.max_length - self.min_length + 1) if self.balance else places * 0
        kept = self.draw(stream, wanted)
        drawn = kept
        tried = pending = np.arange(self.batch)
        for _ in range(_MOST_ROUNDS):
            found = drawn.lengths_B >= 0
            keys = graph_keys(drawn.tails_MB, drawn.heads_MB, self.labels, self.graph.directed)
            good = found & ~np.isin(keys, excluded)
            counts[NO_PATH] += int((~found).sum())
            counts[EXCLUDED] += int((found & ~good).sum())
            filled, first_try = np.unique(tried[good], return_index=True)
            if drawn is not kept:  # in the first round each is in its place already
                kept.put(filled, drawn, np.flatnonzero(good)[first_try])
            pending = np.setdiff1d(pending, filled)
            if not len(pending):
                return kept
            # The few places that are left get several tries each.
            tried = pending[np.arange(min(self.batch, max(64, 4 * len(pending)))) % len(pending)]
            drawn = self.draw(stream, wanted[tried])
        raise RuntimeError(
            f"nothing was found for {len(pending)} places, which the options' check should have foreseen"
        )


def graph_keys(tails_MB: Integers, heads_MB: Integers, labels: int, directed: bool) -> Integers:
    """A 64-bit key of each labelled edge set, whatever the order of its edges and, if undirected, their directions.

    Equal sets have equal keys; two different ones share a key with probability 2^-64.
    """
    if not directed:
        tails_MB, heads_MB = np.minimum(tails_MB, heads_MB), np.maximum(tails_MB, heads_MB)
    codes_MB = np.asarray(tails_MB * labels + heads_MB + 1, dtype=np.uint64)
    # twice, since one round maps neighbouring codes to words that are not independent enough to be combined by XOR
    return np.bitwise_xor.reduce(mix(mix(codes_MB) + np.uint64(0x9E3779B97F4A7C15)), axis=0)
