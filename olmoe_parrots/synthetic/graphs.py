"""Random graphs, breadth-first search and shortest paths, for many graphs at once.

Shapes: B graphs of a batch, N vertices, M edges, D distances, W words. The batch comes last, so that every step works
on whole columns. A set of vertices is a row of W words of 64 bits: vertex v is bit v % 64 of word v // 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from olmoe_parrots.synthetic.randomness import Integers, Stream

LAWS = ("erdos_renyi", "random_regular")
_ONE = np.uint64(1)


@dataclass(frozen=True)
class GraphLaw:
    """A law of random labelled graphs without loops or double edges, all of the same number of edges.

    Both laws give every relabelling of a graph the probability of the graph itself.

    Args:
        law: "erdos_renyi", every graph of so many edges alike, G(n, M); or "random_regular", every graph whose vertices
            all have degree 2 * edges / vertices alike, by the pairing model: draw pairings until one has no loop or
            double edge, which at degree d takes about exp((d * d - 1) / 4) tries.
        directed: edges go one way. Only with "erdos_renyi".
    """

    law: str
    vertices: int
    edges: int
    directed: bool = False

    @property
    def possible_edges(self) -> int:
        pairs = self.vertices * (self.vertices - 1)
        return pairs if self.directed else pairs // 2

    def log_graphs(self) -> float:
        """The natural logarithm of the number of graphs, for random_regular its asymptotic formula (Bollobas, 1980)."""
        log_factorial = math.lgamma
        if self.law == "erdos_renyi":
            n, m = self.possible_edges, self.edges
            return log_factorial(n + 1) - log_factorial(m + 1) - log_factorial(n - m + 1)
        degree = 2 * self.edges // self.vertices
        pairings = log_factorial(2 * self.edges + 1) - log_factorial(self.edges + 1) - self.edges * math.log(2)
        return pairings - self.vertices * log_factorial(degree + 1) - (degree * degree - 1) / 4

    def sample(self, stream: Stream, batch: int) -> tuple[Integers, Integers]:
        """Tails and heads of the edges of `batch` graphs, each (M, B) int64.

        The order of the edges is random, and so is the direction in which an undirected edge is given.
        """
        if self.law == "random_regular":
            return self._sample_regular(stream, batch)
        chosen_MB = stream.subsets(self.possible_edges, self.edges, batch)
        grid = np.arange(self.vertices)
        tails, heads = np.nonzero(grid[:, None] != grid if self.directed else grid[:, None] < grid)
        tails_MB, heads_MB = tails[chosen_MB], heads[chosen_MB]
        if self.directed:
            return tails_MB, heads_MB
        turned_MB = stream.below(2, chosen_MB.shape).astype(np.bool_)
        return np.where(turned_MB, heads_MB, tails_MB), np.where(turned_MB, tails_MB, heads_MB)

    def _sample_regular(self, stream: Stream, batch: int) -> tuple[Integers, Integers]:
        found: list[Integers] = []
        while sum(pairs.shape[-1] for pairs in found) < batch:
            stubs = stream.subsets(2 * self.edges, 2 * self.edges, batch) // (2 * self.edges // self.vertices)
            pairs = stubs.reshape(self.edges, 2, batch)
            smaller, larger = pairs.min(axis=1), pairs.max(axis=1)
            codes = np.sort(smaller * np.uint16(self.vertices) + larger, axis=0)
            simple = (smaller != larger).all(axis=0) & (codes[1:] != codes[:-1]).all(axis=0)
            found.append(pairs[:, :, simple])
        pairs = np.concatenate(found, axis=-1)[:, :, :batch].astype(np.int64)
        return pairs[:, 0], pairs[:, 1]


def neighbours(tails_MB: Integers, heads_MB: Integers, vertices: int) -> Integers:
    """For each vertex the set of vertices that its edges lead to: (N, W, B) uint64."""
    batch, words = tails_MB.shape[1], -(-vertices // 64)
    table = np.zeros((batch, vertices, words * 64), dtype=np.bool_)
    table[np.arange(batch), tails_MB, heads_MB] = True
    sets_BNW = np.packbits(table, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    return np.ascontiguousarray(sets_BNW.transpose(1, 2, 0))


def distance_sets(targets_B: Integers, sources_of_NWB: Integers, farthest: int) -> Integers:
    """The vertices from which the target is 0, 1, 2, ... edges away, by breadth-first search: (D, W, B) uint64.

    Args:
        sources_of_NWB: for each vertex the set of vertices with an edge to it.
        farthest: the largest distance of interest; the search ends there or once no graph has a vertex farther away.
    """
    vertices, words, batch = sources_of_NWB.shape
    frontier = np.zeros((words, batch), dtype=np.uint64)
    frontier[targets_B // 64, np.arange(batch)] = _ONE << (targets_B % 64).astype(np.uint64)
    seen, levels = frontier.copy(), [frontier]
    while len(levels) <= farthest:
        reached = np.zeros_like(frontier)
        for vertex in range(vertices):
            inside = (frontier[vertex // 64] >> np.uint64(vertex % 64)) & _ONE
            # 0 - 1 is a word of ones: it keeps the set of this vertex, 0 drops it
            reached |= sources_of_NWB[vertex] & (np.uint64(0) - inside)
        frontier = reached & ~seen
        if not frontier.any():
            break
        seen |= frontier
        levels.append(frontier)
    return np.stack(levels)


def random_member(sets_WB: Integers, stream: Stream) -> Integers:
    """A vertex of each set, all with the same probability; -1 where the set is empty: (B,) int64."""
    bytes_BX = np.ascontiguousarray(sets_WB.T).astype("<u8", copy=False).view(np.uint8)
    members = np.unpackbits(bytes_BX, axis=1, bitorder="little")
    counts_B = members.sum(axis=1, dtype=np.int64)
    rank_B = stream.below(np.maximum(counts_B, 1), counts_B.shape)
    found = (np.cumsum(members, axis=1, dtype=np.uint16) > rank_B[:, None]).argmax(axis=1)
    return np.where(counts_B > 0, found, -1)


def distances_of(vertices_B: Integers, levels_DWB: Integers) -> Integers:
    """The distance of one vertex of each graph; -1 where it is in no level: (B,) int64."""
    columns = np.arange(levels_DWB.shape[-1])
    words_DB = levels_DWB[:, vertices_B // 64, columns]
    inside_DB = (words_DB >> (vertices_B % 64).astype(np.uint64)) & _ONE
    return np.where(inside_DB.any(axis=0), inside_DB.argmax(axis=0), -1)


def smallest_paths(sources_B: Integers, targets_of_NWB: Integers, levels_DWB: Integers) -> Integers:
    """The lexicographically smallest of the shortest paths from each source: (D, B) int64, -1 after the target.

    Args:
        sources_B: each in a level of its graph.
        targets_of_NWB: for each vertex the set of vertices that it has an edge to.
        levels_DWB: from :func:`distance_sets`.
    """
    here_B, columns = sources_B, np.arange(len(sources_B))
    distance_B = distances_of(sources_B, levels_DWB)
    path = np.full((len(levels_DWB), len(sources_B)), -1, dtype=np.int64)
    path[0] = here_B
    for step in range(1, len(levels_DWB)):
        going = distance_B >= step
        closer_WB = levels_DWB[np.maximum(distance_B - step, 0), :, columns].T
        next_B = _smallest_member(closer_WB & targets_of_NWB[here_B, :, columns].T)
        here_B = np.where(going, next_B, here_B)
        path[step] = np.where(going, next_B, -1)
    return path


def _smallest_member(sets_WB: Integers) -> Integers:
    """The smallest vertex of each set; any number where it is empty: (B,) int64."""
    word_B = (sets_WB != 0).argmax(axis=0)
    bits_B = sets_WB[word_B, np.arange(sets_WB.shape[1])]
    lowest_B = bits_B & (np.uint64(0) - bits_B)
    # a power of two is exact in float64, and its exponent is the place of the bit
    return word_B * 64 + np.frexp(lowest_B.astype(np.float64))[1] - 1
