"""The laws of the graphs, against complete enumerations and published counts of labelled graphs."""

import math

import networkx as nx
import numpy as np
import pytest
from scipy.stats import chisquare

from olmoe_parrots.synthetic.graphs import GraphLaw, distance_sets, neighbours, random_member
from olmoe_parrots.synthetic.randomness import Stream


def _graphs(law: GraphLaw, batch: int, seed: int = 0) -> list[frozenset]:
    tails, heads = law.sample(Stream(seed), batch)
    kind = tuple if law.directed else frozenset
    return [frozenset(kind(edge) for edge in zip(t, h, strict=True)) for t, h in zip(tails.T, heads.T, strict=True)]


@pytest.mark.parametrize(
    ("law", "count"),
    [
        (GraphLaw("erdos_renyi", 4, 3), 20),  # 6 over 3
        (GraphLaw("erdos_renyi", 4, 6), 1),
        (GraphLaw("erdos_renyi", 3, 2, directed=True), 15),  # 6 over 2
        (GraphLaw("random_regular", 5, 5), 12),  # cycles through 5 vertices: 4! / 2
        (GraphLaw("random_regular", 6, 9), 70),  # labelled cubic graphs on 6 vertices, OEIS A002829
        (GraphLaw("random_regular", 6, 6), 70),  # 2-regular ones, OEIS A001205
    ],
)
def test_every_graph_of_a_law_comes_equally_often(law: GraphLaw, count: int) -> None:
    graphs = _graphs(law, 20_000)
    assert all(len(graph) == law.edges for graph in graphs)
    counts = list({graph: graphs.count(graph) for graph in set(graphs)}.values())
    assert len(counts) == count
    assert count == 1 or chisquare(counts).pvalue > 1e-3


def test_regular_graphs_are_regular() -> None:
    for graph in _graphs(GraphLaw("random_regular", 50, 75), 200):
        assert {degree for _, degree in nx.Graph([tuple(edge) for edge in graph]).degree} == {3}


def test_the_number_of_graphs_is_known() -> None:
    assert math.exp(GraphLaw("erdos_renyi", 4, 3).log_graphs()) == pytest.approx(20)
    assert math.exp(GraphLaw("erdos_renyi", 3, 2, directed=True).log_graphs()) == pytest.approx(15)
    # labelled cubic graphs on 16 vertices, OEIS A002829; the formula is asymptotic
    assert math.exp(GraphLaw("random_regular", 16, 24).log_graphs()) == pytest.approx(50262958713792825, rel=0.2)


def test_edges_come_in_random_order_and_direction() -> None:
    tails, heads = GraphLaw("erdos_renyi", 10, 20).sample(Stream(1), 5000)
    for place in (0, 10, 19):
        codes = (tails * 10 + heads)[place]
        counts = np.unique(codes, return_counts=True)[1]
        assert len(counts) == 90  # every pair in both directions
        assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("vertices", "edges", "directed"), [(2, 1, False), (64, 90, True), (65, 90, False), (200, 260, True)]
)
def test_distances_equal_those_of_networkx(vertices: int, edges: int, directed: bool) -> None:
    law, batch = GraphLaw("erdos_renyi", vertices, edges, directed), 20
    stream = Stream(3)
    tails, heads = law.sample(stream, batch)
    sources_of = neighbours(heads, tails, vertices)
    if not directed:
        sources_of = sources_of | neighbours(tails, heads, vertices)
    targets = stream.below(vertices, (batch,))
    levels = distance_sets(targets, sources_of, vertices)
    bits = np.unpackbits(np.ascontiguousarray(levels.transpose(2, 0, 1)).view(np.uint8), axis=-1, bitorder="little")
    for column in range(batch):
        graph = (nx.DiGraph if directed else nx.Graph)(list(zip(heads[:, column], tails[:, column], strict=True)))
        expected = nx.single_source_shortest_path_length(graph, targets[column]) if targets[column] in graph else {}
        found = {int(vertex): int(level) for level, vertex in np.argwhere(bits[column])}
        assert found == {int(targets[column]): 0, **{int(v): d for v, d in expected.items()}}


def test_members_of_a_set_are_drawn_alike() -> None:
    sets = np.zeros((2, 30_000), dtype=np.uint64)
    sets[0], sets[1] = (1 << 3) | (1 << 63), 1 << 5
    sets[:, 0] = 0
    drawn = random_member(sets, Stream(2))
    assert drawn[0] == -1
    vertices, counts = np.unique(drawn[1:], return_counts=True)
    assert vertices.tolist() == [3, 63, 69]
    assert chisquare(counts).pvalue > 1e-3
