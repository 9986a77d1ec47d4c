"""The corpus every Python installation carries: documentation topics, docstrings and package descriptions.

Files are parsed, never imported. Which packages are installed decides what is in it, so the same environment gives the
same corpus, and another environment another one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.documents import Document

GROUPS = ("python_topics", "stdlib_docstrings", "package_docstrings", "package_metadata")
SHORTEST = 200
_OWN_NAME = "olmoe-parrots"
_PACKAGE_FOLDERS = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class _Candidate:
    """A document to be: with its text, or with the Python file to take it from."""

    id: str
    text: str | None = None
    path: str | None = None


def describe_python_docs() -> dict[str, Any]:
    """What identifies the corpus: Python's version and the installed distributions."""
    names = sorted(f"{_name(d)}=={d.version}" for d in _distributions())
    version = ".".join(map(str, sys.version_info[:3]))
    digest = hashlib.sha256("\n".join([version, *names]).encode()).hexdigest()
    return {"python": version, "distributions": len(names), "sha256": digest}


def read_python_docs(group: str) -> Iterator[Document]:
    """Documents of at least 200 characters of one of GROUPS, in the order of their ids' hashes.

    Files are parsed as they come, so the first documents are there at once and memory holds one file.
    """
    for candidate in _candidates(group):
        text = _text(candidate)
        if len(text) >= SHORTEST:
            yield Document(candidate.id, text, group)


def _candidates(group: str) -> list[_Candidate]:
    if group == "python_topics":
        found = list(_topics())
    elif group == "package_metadata":
        found = list(_descriptions())
    elif group == "stdlib_docstrings":
        found = list(_modules(sysconfig.get_path("stdlib"), group))
    else:
        folders = sorted({os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
        found = [candidate for folder in folders for candidate in _modules(folder, group)]
    by_id = {candidate.id: candidate for candidate in reversed(found)}
    return sorted(by_id.values(), key=lambda c: hashlib.sha256(c.id.encode("utf-8", "replace")).digest())


def _topics() -> Iterator[_Candidate]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield _Candidate(f"python_topics/{name}", text.strip())


def _distributions() -> Iterator[importlib.metadata.Distribution]:
    # This project is left out, so that the corpus does not change with its README.
    return (d for d in importlib.metadata.distributions() if d.metadata["Name"] and _name(d) != _OWN_NAME)


def _name(distribution: importlib.metadata.Distribution) -> str:
    return distribution.metadata["Name"].lower().replace("_", "-")


def _descriptions() -> Iterator[_Candidate]:
    for distribution in _distributions():
        metadata: Any = distribution.metadata
        text = metadata.get_payload() or metadata.get("Description") or ""
        yield _Candidate(f"package_metadata/{_name(distribution)}", str(text).strip())


def _modules(folder: str, group: str) -> Iterator[_Candidate]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _PACKAGE_FOLDERS)
        for name in names:
            if name.endswith(".py"):
                path = Path(root, name)
                relative = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
                yield _Candidate(f"{group}/{relative}", path=str(path))


def _text(candidate: _Candidate) -> str:
    if candidate.text is not None:
        return candidate.text
    assert candidate.path is not None
    try:
        return module_docstrings(Path(candidate.path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # a template, a file of Python 2 or a test of the parser: no documentation


def module_docstrings(code: bytes) -> str:
    """The docstrings of a module, its classes and its functions in the order they stand in, joined by blank lines.

    Raises SyntaxError, ValueError, RecursionError or MemoryError where the parser does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(code)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)) and text.strip())
