"""The corpus from this Python installation."""

import ast
import importlib.metadata
import os
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from data_prep.__main__ import main
from data_prep.python_docs import describe_python_docs, module_docstrings, read_python_docs
from olmoe_parrots.shard_verification import verify
from olmoe_parrots.shards import Manifest

CAP = 400_000


@pytest.fixture(scope="module")
def documents() -> list:
    return list(read_python_docs(CAP, 1))


def test_documents_are_distinct_long_enough_and_under_the_cap(documents: list) -> None:
    assert len(documents) > 20
    assert len({d.id for d in documents}) == len({d.text for d in documents}) == len(documents)
    assert min(len(d.text) for d in documents) >= 200
    assert sum(len(d.text) for d in documents) <= CAP


def test_ids_are_relative_and_name_the_source(documents: list) -> None:
    known = {"python_topics", "stdlib_docstrings", "package_docstrings", "package_metadata"}
    for document in documents:
        source, name = document.id.split("/", 1)
        assert source == document.source and source in known
        assert not os.path.isabs(name) and sys.prefix not in document.id


def test_texts_are_those_of_the_installation(documents: list) -> None:
    folders = {"stdlib_docstrings": "stdlib", "package_docstrings": "purelib"}
    for document in documents:
        source, name = document.id.split("/", 1)
        if source == "python_topics":
            assert document.text == topics[name].strip()
        elif source == "package_metadata":
            assert document.text in importlib.metadata.metadata(name).as_string()
        else:
            tree = ast.parse(Path(sysconfig.get_path(folders[source]), name).read_bytes())
            nodes = [n for n in ast.walk(tree) if hasattr(n, "body") and hasattr(n, "name")]
            assert all(text in document.text for n in nodes if (text := _docstring(n)))


def _docstring(node: ast.AST) -> str | None:
    return ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def test_a_smaller_cap_takes_a_prefix_with_any_number_of_processes(documents: list) -> None:
    fewer = list(read_python_docs(CAP // 2, 2))
    assert 0 < len(fewer) < len(documents) and fewer == documents[: len(fewer)]


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


def test_nothing_is_imported(documents: list) -> None:
    names = {d.id.removeprefix("stdlib_docstrings/").removesuffix(".py").replace("/", ".") for d in documents}
    assert not {"antigravity", "this", "idlelib.idle"} & set(sys.modules) and names


def test_the_command_builds_a_sound_dataset(tmp_path: Path) -> None:
    arguments = ["python-docs", "--output", str(tmp_path / "out"), "--max-characters", "150000", "--processes", "1"]
    assert main([*arguments, "--validation-share", "0.1", "--tokenizer", "olmo"]) == 0
    assert verify(tmp_path / "out") == []
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.tokenizer.name == "olmo" and manifest.mixture["source"] == describe_python_docs(150_000)
