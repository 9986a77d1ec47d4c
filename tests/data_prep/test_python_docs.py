"""The corpus from this Python installation."""

import ast
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from data_prep.python_docs import GROUPS, describe_python_docs, module_docstrings, read_python_docs


@pytest.fixture(scope="module")
def documents() -> dict[str, list]:
    """The first documents of each group, which is what a small budget takes."""
    return {group: list(islice(read_python_docs(group), 30)) for group in GROUPS}


def test_documents_are_long_enough_and_differ_in_their_ids(documents: dict[str, list]) -> None:
    found = [document for group in GROUPS for document in documents[group]]
    assert len({d.id for d in found}) == len(found) == 120
    assert min(len(d.text) for d in found) >= 200


def test_ids_are_relative_and_name_the_group(documents: dict[str, list]) -> None:
    for group, found in documents.items():
        for document in found:
            source, name = document.id.split("/", 1)
            assert source == document.source == group
            assert not os.path.isabs(name) and sys.prefix not in document.id


def test_documents_come_in_the_order_of_their_ids_hashes(documents: dict[str, list]) -> None:
    for group, found in documents.items():
        digests = [hashlib.sha256(d.id.encode()).digest() for d in found]
        assert digests == sorted(digests)
        assert list(islice(read_python_docs(group), 5)) == found[:5]
    every = list(read_python_docs("python_topics"))
    assert every[:30] == documents["python_topics"]
    assert {d.id for d in every} == {f"python_topics/{name}" for name in topics if len(topics[name].strip()) >= 200}


def test_texts_are_those_of_the_installation(documents: dict[str, list]) -> None:
    folders = {"stdlib_docstrings": "stdlib", "package_docstrings": "purelib"}
    for document in (document for found in documents.values() for document in found):
        source, name = document.id.split("/", 1)
        if source == "python_topics":
            assert document.text == topics[name].strip()
        elif source == "package_metadata":
            distribution = importlib.metadata.distribution(name)
            written = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
            assert _words(document.text) in _words(written)
        else:
            tree = ast.parse(Path(sysconfig.get_path(folders[source]), name).read_bytes())
            nodes = [n for n in ast.walk(tree) if hasattr(n, "body") and hasattr(n, "name")]
            assert all(text in document.text for n in nodes if (text := _docstring(n)))


def _words(text: str) -> str:
    return " ".join(text.split())


def _docstring(node: ast.AST) -> str | None:
    return ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def test_the_description_names_python_and_what_is_installed() -> None:
    described = describe_python_docs()
    assert described == describe_python_docs() and described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["distributions"] > 50 and len(described["sha256"]) == 64


def test_docstrings_come_in_the_order_they_stand_in() -> None:
    code = b'''"""Module."""
class A:
    """Class."""
    def f(self):
        """
        Method.
        """
async def g():
    "Coroutine."
def h(): pass
'''
    assert module_docstrings(code) == "Module.\n\nClass.\n\nMethod.\n\nCoroutine."


def test_nothing_is_imported(documents: dict[str, list]) -> None:
    assert not {"antigravity", "this", "idlelib.idle"} & set(sys.modules) and documents


def test_code_that_cannot_be_parsed_gives_nothing() -> None:
    for code in (b"print 'two'", b"\x00", b"(" * 10_000):
        with pytest.raises((SyntaxError, ValueError, RecursionError, MemoryError)):
            module_docstrings(code)
