"""Shortest path: the rows, read as text, against networkx."""

from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_reading import Read, edge_set, read, rows_of, texts, walk_length
from scipy.stats import chi2_contingency, chisquare

from olmoe_parrots.errors import InputError
from olmoe_parrots.synthetic.shortest_path import ShortestPath


def _check_row(found: Read) -> None:
    assert (found.path[0], found.path[-1]) == (found.source, found.target)
    assert nx.is_path(found.graph, found.path)
    assert walk_length(found) == nx.shortest_path_length(found.graph, found.source, found.target)
    assert found.path == min(nx.all_shortest_paths(found.graph, found.source, found.target))


@pytest.mark.slow
def test_ten_thousand_graphs_agree_with_networkx() -> None:
    task = ShortestPath()
    for text in rows_of(task, 10_000, 0):
        found = read(text)
        assert len(edge_set(found)) == len(found.edges) == 75
        assert all(0 <= u < 50 and 0 <= v < 50 and u != v for u, v in found.edges)
        _check_row(found)


@given(
    vertices=st.integers(8, 80),
    degree=st.floats(1.2, 4),
    directed=st.booleans(),
    more_labels=st.sampled_from([0, 0, 1, 50]),
    separator=st.booleans(),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_every_option_gives_sound_rows(
    vertices: int, degree: float, directed: bool, more_labels: int, separator: bool, padding: int, seed: int
) -> None:
    labels = vertices + more_labels
    task = ShortestPath(vertices, mean_degree=degree, directed=directed, labels=labels, edge_separator=separator)
    task = ShortestPath(**task.settings() | {"sequence_length": task.needed_length + padding})
    task.check(8, 4, seed)
    test, _ = task.test_queries(8, 4, seed)
    rows = task.rows(0, 8, seed, test)
    assert rows.tokens_RT.shape == rows.learned_RT.shape == (8, task.needed_length + padding)
    for row, mask in zip(rows.tokens_RT, rows.learned_RT, strict=True):
        text = task.vocabulary.decode(row)
        found = read(text, directed)
        _check_row(found)
        assert (";" in text) == separator
        assert all(0 <= v < labels for edge in found.edges for v in edge)
        assert len({v for edge in found.edges for v in edge}) <= vertices
        # learned are the tokens of the path and EOS
        assert task.vocabulary.decode(row[mask]) == text.split(": ")[1].split(" <pad>")[0]
        assert mask.sum() == walk_length(found) + 2


def test_regular_graphs_have_sound_rows() -> None:
    task = ShortestPath(20, law="random_regular", mean_degree=3, min_length=2, max_length=4)
    task.check(50, 10, 0)
    for text in rows_of(task, 50, 0):
        found = read(text)
        _check_row(found)
        assert 2 <= walk_length(found) <= 4
        assert {degree for _, degree in found.graph.degree} == {3}


def test_no_graph_of_the_test_is_in_training() -> None:
    # 3,003 graphs exist (15 over 5): without the exclusion a quarter of the training set would be in the test
    task = ShortestPath(6, mean_degree=5 / 3)
    test, _ = task.test_queries(4000, 1000, 0)
    rows = task.rows(0, 4000, 0, test)
    tested = {edge_set(read(text)) for text in texts(task, test.prompts_QT, test.answers_QT)}
    trained = {edge_set(read(task.vocabulary.decode(row))) for row in rows.tokens_RT}
    assert len(tested) > 500
    assert len(trained) > 1000
    assert not tested & trained
    assert rows.counts["drawn again: graph of the test"] > 500


def test_lengths_follow_the_stated_law() -> None:
    """Against the same law written in networkx: graph, target, then a source with a path to it."""
    task, rng = ShortestPath(12, mean_degree=2.0), np.random.default_rng(0)
    ours = Counter(walk_length(read(text)) for text in rows_of(task, 6000, 1))
    theirs: Counter[int] = Counter()
    while theirs.total() < 3000:
        graph = nx.gnm_random_graph(12, 12, seed=int(rng.integers(2**31)))
        distances = nx.single_source_shortest_path_length(graph, int(rng.integers(12)))
        if found := [distance for distance in distances.values() if distance]:
            theirs[int(rng.choice(found))] += 1
    lengths = [length for length in ours if ours[length] >= 20]
    assert chi2_contingency([[c[length] for length in lengths] for c in (ours, theirs)]).pvalue > 1e-3


def test_balanced_lengths_come_equally_often() -> None:
    task = ShortestPath(30, mean_degree=2.5, min_length=2, max_length=6, balance=True)
    task.check(3000, 500, 0)
    rows = [read(text) for text in rows_of(task, 3000, 0)]
    assert Counter(walk_length(row) for row in rows) == {length: 600 for length in range(2, 7)}
    for row in rows[::10]:
        _check_row(row)
    _, counts = task.test_queries(3000, 500, 0)
    assert {key: n for key, n in counts.items() if key.startswith("length")} == {
        f"length {n}": 100 for n in range(2, 7)
    }


def test_vertices_are_alike() -> None:
    """Numbers carry nothing: each is equally often in an edge, source and target."""
    rows = [read(text) for text in rows_of(ShortestPath(10, mean_degree=2.0, labels=14), 8000, 2)]
    for which in ("source", "target"):
        assert chisquare([sum(getattr(row, which) == v for row in rows) for v in range(14)]).pvalue > 1e-3
    assert chisquare(np.bincount([row.edges[0][0] for row in rows], minlength=14)).pvalue > 1e-3


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    task = ShortestPath(20)
    assert rows_of(task, 100, 4) == rows_of(task, 3000, 4)[:100]
    assert not set(rows_of(task, 100, 4)) & set(rows_of(task, 100, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vertices": 1}, "between 2 and 256"),
        ({"vertices": 300}, "between 2 and 256"),
        ({"law": "small_world"}, "no law of graphs"),
        ({"mean_degree": 50.0}, "a density of 1"),
        ({"mean_degree": float("nan")}, "impossible"),
        ({"mean_degree": -1.0}, "impossible"),
        ({"mean_degree": 0.01}, "no edge"),
        ({"law": "random_regular", "mean_degree": 2.5}, "random_regular"),
        ({"law": "random_regular", "mean_degree": 3.0, "vertices": 51}, "random_regular"),
        ({"law": "random_regular", "mean_degree": 3.0, "directed": True}, "random_regular"),
        ({"sequence_length": 279}, "needs up to 280"),
        ({"labels": 49}, "between 50"),
        ({"min_length": 5, "max_length": 4}, "no range"),
        ({"max_length": 50}, "no range"),
        ({"min_length": 0}, "no range"),
        ({"balance": True}, "too rare to be balanced"),
        ({"min_length": 30}, "hardly a graph"),
        ({"vertices": 4, "mean_degree": 1.0}, "about 15 graphs exist"),
        ({"vertices": 10, "mean_degree": 0.2, "labels": 100}, "about 4,950 graphs exist"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        ShortestPath(**options).check(100, 10, 0)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
