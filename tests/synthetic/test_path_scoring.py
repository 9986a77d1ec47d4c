"""Scoring of decoded paths: corrupted answers, judged a second time with networkx."""

from collections import Counter
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from path_reading import Read, read, texts

from olmoe_parrots.synthetic.shortest_path import OUTCOMES, ShortestPath

EOS, FIRST = 1, 5


def _judge(found: Read, decoded: np.ndarray) -> str:
    """The outcome by its definition."""
    tokens = decoded.tolist()
    if EOS not in tokens or tokens[0] == EOS:
        return "malformed"
    path = [token - FIRST for token in tokens[: tokens.index(EOS)]]
    if any(vertex < 0 for vertex in path):
        return "malformed"
    if not all(found.graph.has_edge(u, v) for u, v in pairwise(path)):
        return "invalid_edge"
    if (path[0], path[-1]) != (found.source, found.target):
        return "wrong_end"
    shortest = nx.shortest_path_length(found.graph, found.source, found.target)
    return "right" if len(path) - 1 == shortest else "longer"


def _corrupt(found: Read, rng: np.random.Generator) -> list[int]:
    """Another answer, of a kind drawn at random."""
    graph, path = found.graph, list(found.path)
    kind = rng.integers(8)
    if kind == 0:  # another of the shortest paths, if there is one
        path = max(nx.all_shortest_paths(graph, found.source, found.target))
    elif kind == 1:  # the longest of the simple paths nearby
        paths = nx.all_simple_paths(graph, found.source, found.target, cutoff=len(path) + 1)
        path = max(paths, key=len)
    elif kind == 2:  # one vertex replaced
        path[rng.integers(len(path))] = int(rng.integers(12))
    elif kind == 3:  # cut off at either end
        path = path[1:] if rng.integers(2) else path[:-1]
    elif kind == 4:  # back and forth
        path = [*path, path[-2], path[-1]]
    elif kind == 5:  # backwards
        path = path[::-1]
    tokens = [vertex + FIRST for vertex in path]
    if kind == 6:  # a token that is no vertex
        tokens[rng.integers(len(tokens))] = int(rng.integers(5))
    return tokens if kind == 7 else [*tokens, EOS, *rng.integers(0, 17, 2)]


@pytest.mark.parametrize("directed", [False, True])
def test_corrupted_answers_are_judged_as_by_networkx(directed: bool) -> None:
    task, rng = ShortestPath(12, mean_degree=2.5, directed=directed), np.random.default_rng(0)
    queries, _ = task.test_queries(0, 2000, 1)
    rows = [read(text, directed) for text in texts(task, queries.prompts_QT, queries.answers_QT)]
    decoded = np.zeros((2000, task.answer_length + 4), dtype=np.int64)
    for place, row in enumerate(rows):
        answer = _corrupt(row, rng)[: decoded.shape[1]]
        decoded[place, : len(answer)] = answer
    expected = [_judge(row, answer) for row, answer in zip(rows, decoded, strict=True)]
    found = [OUTCOMES[outcome] for outcome in task.outcomes(queries, decoded)]
    assert found == expected
    assert min(Counter(expected).values()) > 50
    assert len(set(expected)) == 5

    measured = {m.metric: m for m in task.score(queries, decoded)}
    assert sum(measured[name].value for name in OUTCOMES) == pytest.approx(1)
    for name in OUTCOMES:
        assert measured[name].value == expected.count(name) / 2000
    lengths = [nx.shortest_path_length(row.graph, row.source, row.target) for row in rows]
    for length in set(lengths):
        right = [e == "right" for e, n in zip(expected, lengths, strict=True) if n == length]
        by_length = measured[f"right/length_{length}"]
        assert (by_length.value, by_length.examples) == (pytest.approx(np.mean(right)), len(right))


def test_the_targets_themselves_are_right_and_silence_is_malformed() -> None:
    task = ShortestPath()
    queries, _ = task.test_queries(0, 200, 0)
    assert set(task.outcomes(queries, queries.answers_QT)) == {OUTCOMES.index("right")}
    for silent in (np.zeros((200, 5)), np.zeros((200, 0)), np.full((200, 3), EOS)):
        assert set(task.outcomes(queries, silent.astype(np.int64))) == {OUTCOMES.index("malformed")}
