"""Reads rows of the shortest-path task as text, into networkx graphs: nothing of the package is used but its words."""

from dataclasses import dataclass

import networkx as nx
import numpy as np

from olmoe_parrots.synthetic.shortest_path import ShortestPath


@dataclass
class Read:
    """What a row says. `edges` is in the order and directions of the text."""

    edges: list[tuple[int, int]]
    source: int
    target: int
    path: list[int]
    graph: nx.Graph


def read(text: str, directed: bool = False) -> Read:
    """Parse `3 1 ; 0 4 ; ? 3 4 : 3 1 4 <eos> <pad>`, with or without semicolons."""
    edge_list, question = text.replace(";", " ").split("?")
    ends = [int(word) for word in edge_list.split()]
    edges = list(zip(ends[::2], ends[1::2], strict=True))
    asked, answer = question.split(":")
    path, padding = answer.split("<eos>")
    assert set(padding.split()) <= {"<pad>"}
    graph = nx.DiGraph(edges) if directed else nx.Graph(edges)
    source, target = (int(word) for word in asked.split())
    return Read(edges, source, target, [int(word) for word in path.split()], graph)


def rows_of(task: ShortestPath, count: int, seed: int, test_size: int = 100) -> list[str]:
    """Training rows as text."""
    test, _ = task.test_queries(count, test_size, seed)
    return [task.vocabulary.decode(row) for row in task.rows(0, count, seed, test).tokens_RT]


def edge_set(found: Read, directed: bool = False) -> frozenset:
    return frozenset(found.edges if directed else (frozenset(edge) for edge in found.edges))


def walk_length(found: Read) -> int:
    return len(found.path) - 1


def texts(task: ShortestPath, prompts: np.ndarray, answers: np.ndarray) -> list[str]:
    return [task.vocabulary.decode(row) for row in np.concatenate([prompts, answers], axis=1)]
