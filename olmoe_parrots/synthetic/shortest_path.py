"""Shortest path: find a path of minimal length in a graph given as an edge list. Tests reasoning.

One row, for a graph of 6 vertices and 5 edges (the defaults are 50 and 75):

    inputs    3 1 ; 0 4 ; 1 4 ; 2 0 ; 3 2 ; ? 3 4 : 3 1 4 <eos> <pad>
    learned   . . . . . . . . . . . . . . . . . . . 3 1 4 <eos>   .

`? source target :` asks, and the path follows, from source to target, both included. The edges stand in random order
and, where undirected, once, in a random direction. Of several shortest paths the lexicographically smallest, by vertex
number, is the training target; scoring takes any of them. No graph of the test, as a labelled edge set, is in training.
The law of the examples stands in :mod:`olmoe_parrots.synthetic.path_examples`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from olmoe_parrots.errors import InputError
from olmoe_parrots.synthetic.graphs import LAWS, GraphLaw
from olmoe_parrots.synthetic.path_examples import Examples, PathLaw, graph_keys
from olmoe_parrots.synthetic.randomness import Integers, Stream
from olmoe_parrots.synthetic.task import EOS, PAD, SPECIAL, Measurement, Queries, Rows, Vocabulary, check_length, padded

END_OF_EDGE, QUERY, PATH = 2, 3, 4
FIRST_VERTEX = 5
OUTCOMES = ("right", "longer", "invalid_edge", "wrong_end", "malformed")
RIGHT, LONGER, INVALID_EDGE, WRONG_END, MALFORMED = range(5)
MOST_VERTICES, MOST_LABELS, LARGEST_DEGREE = 256, 4096, 4
_TRAIN, _TEST, _PROBE = 0, 1, 2
_RAREST = 1 / 200
_GRAPHS_PER_QUERY = 10_000


@dataclass(frozen=True)
class ShortestPath:
    """The task's options. 50 vertices are the paper's; the rest is assumed.

    Args:
        vertices: of each graph, 2 to 256.
        law: "erdos_renyi" or "random_regular", see :class:`~olmoe_parrots.synthetic.graphs.GraphLaw`.
        mean_degree: edges at a vertex; in directed graphs those that leave it. Rounded to a whole number of edges.
        directed: edges go one way.
        min_length, max_length: of the paths, in edges; None for vertices - 1.
        balance: every length of that range equally often, in place of the graphs' own distribution.
        labels: a graph's vertex numbers are a new random choice of so many; None for `vertices`.
        edge_separator: a token after each edge.
        sequence_length: of a row, in tokens; None for just what is needed.
    """

    vertices: int = 50
    law: str = "erdos_renyi"
    mean_degree: float = 3.0
    directed: bool = False
    min_length: int = 1
    max_length: int | None = None
    balance: bool = False
    labels: int | None = None
    edge_separator: bool = True
    sequence_length: int | None = None

    name = "shortest_path"
    rows_per_shard = 1 << 15

    @cached_property
    def path_law(self) -> PathLaw:
        edges = round(self.vertices * self.mean_degree / (1 if self.directed else 2))
        graph = GraphLaw(self.law, self.vertices, edges, self.directed)
        longest = self.vertices - 1 if self.max_length is None else self.max_length
        labels = self.vertices if self.labels is None else self.labels
        return PathLaw(graph, self.min_length, longest, self.balance, labels)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary((*SPECIAL, ";", "?", ":", *(str(label) for label in range(self.path_law.labels))))

    @property
    def edge_length(self) -> int:
        return 3 if self.edge_separator else 2

    @property
    def prompt_length(self) -> int:
        return self.edge_length * self.path_law.graph.edges + 4

    @property
    def answer_length(self) -> int:
        return self.path_law.max_length + 2

    @property
    def needed_length(self) -> int:
        return self.prompt_length + self.answer_length

    @property
    def row_length(self) -> int:
        return self.sequence_length or self.needed_length

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, size: int, test_size: int, seed: int) -> None:
        _check_graphs(self)
        check_length(self, self.sequence_length)
        graphs = self.path_law.log_graphs()
        if graphs < math.log(_GRAPHS_PER_QUERY * test_size):
            told = f"about {math.exp(graphs):,.0f} graphs exist, too few to keep {test_size:,} out of training"
            raise InputError("--vertices, --mean-degree", told, "make the graphs larger, or the test smaller")
        _check_lengths(self.path_law, seed)

    def rows(self, first: int, count: int, seed: int, test: Queries) -> Rows:
        excluded = graph_keys(*self.edges(test.prompts_QT), self.path_law.labels, self.directed)
        batch, counts = self.path_law.batch, Counter[str]()
        tokens = np.full((count, self.row_length), PAD, dtype=np.uint16)
        learned = np.zeros(tokens.shape, dtype=np.bool_)
        for start in range(0, count, batch):
            place = first + start
            # Always a whole batch, so that a smaller set is the beginning of a larger one.
            examples = self.path_law.examples(Stream(seed, _TRAIN, place // batch), place, excluded, counts)
            part = slice(start, min(start + batch, count))
            self.write(examples, tokens[part], learned[part], counts)
        return Rows(tokens, learned, counts)

    def test_queries(self, size: int, test_size: int, seed: int) -> tuple[Queries, Counter[str]]:
        batch, counts = self.path_law.batch, Counter[str]()
        tokens = np.full((test_size, self.needed_length), PAD, dtype=np.uint16)
        none = np.empty(0, dtype=np.uint64)
        for start in range(0, test_size, batch):
            examples = self.path_law.examples(Stream(seed, _TEST, start // batch), start, none, counts)
            part = tokens[start : start + batch]
            self.write(examples, part, np.zeros(part.shape, dtype=np.bool_), counts)
        return Queries(tokens[:, : self.prompt_length], tokens[:, self.prompt_length :]), counts

    def write(self, examples: Examples, tokens_RT: Integers, learned_RT: Integers, counts: Counter[str]) -> None:
        """Write the first R examples of a batch as rows, their label mask, and count their lengths."""
        rows, edges = len(tokens_RT), self.edge_length * self.path_law.graph.edges
        tokens_RT[:, 0 : edges : self.edge_length] = examples.tails_MB.T[:rows] + FIRST_VERTEX
        tokens_RT[:, 1 : edges : self.edge_length] = examples.heads_MB.T[:rows] + FIRST_VERTEX
        if self.edge_separator:
            tokens_RT[:, 2:edges:3] = END_OF_EDGE
        path_RL, lengths_R = examples.path_LB.T[:rows], examples.lengths_B[:rows]
        tokens_RT[:, edges], tokens_RT[:, edges + 3] = QUERY, PATH
        tokens_RT[:, edges + 1] = path_RL[:, 0] + FIRST_VERTEX
        tokens_RT[:, edges + 2] = path_RL[np.arange(rows), lengths_R] + FIRST_VERTEX
        answer = slice(self.prompt_length, self.needed_length)
        tokens_RT[:, answer][:, :-1] = np.where(path_RL < 0, PAD, path_RL + FIRST_VERTEX)
        tokens_RT[np.arange(rows), self.prompt_length + lengths_R + 1] = EOS
        learned_RT[:, answer] = np.arange(self.answer_length) <= lengths_R[:, None] + 1
        for length, number in enumerate(np.bincount(lengths_R).tolist()):
            if number:
                counts[f"length {length}"] += number

    def edges(self, prompts_QT: Integers) -> tuple[Integers, Integers]:
        """Tails and heads of the edges in prompts: (M, Q) int64 each."""
        end = self.edge_length * self.path_law.graph.edges
        parts = (prompts_QT[:, start : end : self.edge_length] for start in (0, 1))
        tails, heads = (part.astype(np.int64).T - FIRST_VERTEX for part in parts)
        return tails, heads

    def score(self, queries: Queries, decoded_QT: Integers) -> list[Measurement]:
        """The share of each outcome of :meth:`outcomes`, and of "right" by the length of the shortest path.

        The metrics are "right" (the accuracy), "longer", "invalid_edge", "wrong_end", "malformed" and "right/length_N".
        """
        outcome_Q, length_Q = self.outcomes(queries, decoded_QT), shortest_lengths(queries)
        measured = [Measurement.of(name, outcome_Q == number) for number, name in enumerate(OUTCOMES)]
        for length in np.unique(length_Q).tolist():
            measured.append(Measurement.of(f"right/length_{length}", outcome_Q[length_Q == length] == RIGHT))
        return measured

    def outcomes(self, queries: Queries, decoded_QT: Integers) -> Integers:
        """What became of each query, as a place in OUTCOMES: (Q,). The first of these that holds:

        malformed (no EOS in what was decoded, no vertex before it, or something else than vertices);
        invalid_edge (two vertices in a row without an edge that way); wrong_end (it starts elsewhere than at the source
        or ends elsewhere than at the target); longer (valid, not minimal); right.
        """
        answer = padded(decoded_QT, max(1, decoded_QT.shape[1]))
        labels, asked = self.path_law.labels, queries.prompts_QT[:, -3:-1].astype(np.int64)
        ends = (answer == EOS).any(axis=1)
        length = (answer == EOS).argmax(axis=1) - 1
        within = np.arange(answer.shape[1]) <= length[:, None]
        is_vertex = (answer >= FIRST_VERTEX) & (answer < FIRST_VERTEX + labels)
        malformed = ~ends | (length < 0) | (within & ~is_vertex).any(axis=1)
        tails, heads = self.edges(queries.prompts_QT)
        edges = tails * labels + heads
        if not self.directed:
            edges = np.concatenate([edges, heads * labels + tails])
        vertices = answer - FIRST_VERTEX
        invalid = np.zeros(len(answer), dtype=np.bool_)
        for step in range(answer.shape[1] - 1):
            is_edge = (edges == vertices[:, step] * labels + vertices[:, step + 1]).any(axis=0)
            invalid |= within[:, step + 1] & ~is_edge
        last = answer[np.arange(len(answer)), np.maximum(length, 0)]
        wrong_end = (answer[:, 0] != asked[:, 0]) | (last != asked[:, 1])
        longer = length > shortest_lengths(queries)
        found = [MALFORMED, INVALID_EDGE, WRONG_END, LONGER]
        return np.select([malformed, invalid, wrong_end, longer], found, default=RIGHT)


def shortest_lengths(queries: Queries) -> Integers:
    """The length of each query's shortest path in edges: (Q,)."""
    return (queries.answers_QT == EOS).argmax(axis=1) - 1


def _check_graphs(task: ShortestPath) -> None:
    n = task.vertices
    if not 2 <= n <= MOST_VERTICES:
        raise InputError("--vertices", f"{n} is not between 2 and {MOST_VERTICES}", "give a number in between")
    if task.law not in LAWS:
        raise InputError("--law", f"{task.law!r} is no law of graphs", f"give one of {', '.join(LAWS)}")
    if task.labels is not None and not n <= task.labels <= MOST_LABELS:
        raise InputError("--labels", f"{task.labels} is not between {n} (--vertices) and {MOST_LABELS}", "correct it")
    longest = n - 1 if task.max_length is None else task.max_length
    if not 1 <= task.min_length <= longest <= n - 1:
        what = f"{task.min_length}-{longest} is no range of lengths between 1 and {n - 1}"
        raise InputError("--lengths", what, "give MIN-MAX in that range")
    if not (math.isfinite(task.mean_degree) and 0 < task.mean_degree <= n - 1):
        what = f"a mean degree of {task.mean_degree:g} is impossible with {n} vertices"
        raise InputError("--mean-degree, --density", what, f"give more than 0 and at most {n - 1}, a density of 1")
    if task.path_law.graph.edges < 1:
        raise InputError("--mean-degree, --density", "the graphs would have no edge", "give more")
    if task.law == "random_regular":
        degree = task.mean_degree
        if task.directed or degree != int(degree) or not 2 <= degree <= min(LARGEST_DEGREE, n - 1) or n * degree % 2:
            what = f"no undirected graph of {n} vertices, each of degree {degree:g}, is drawn by random_regular"
            remedy = f"give a whole --mean-degree of 2 to {LARGEST_DEGREE}, even where --vertices is odd"
            raise InputError("--law", what, remedy)


def _check_lengths(law: PathLaw, seed: int) -> None:
    shares = law.length_shares(Stream(seed, _PROBE))
    asked = shares[law.min_length :]
    usual = np.flatnonzero(shares >= _RAREST)
    told = f"in these graphs paths of {usual[1]} to {usual[-1]} edges are not rare" if len(usual) > 1 else "no path"
    if law.balance and (asked < _RAREST).any():
        rare = law.min_length + int(np.argmax(asked < _RAREST))
        what = f"paths of {rare} edges are too rare to be balanced"
        raise InputError("--lengths", what, f"{told}: give a range in there, or leave out --balance")
    if asked.max() < _RAREST:
        what = f"hardly a graph has a path of {law.min_length} to {law.max_length} edges"
        raise InputError("--lengths", what, f"{told}: give a range that meets these")
