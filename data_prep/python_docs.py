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
from data_prep.tokenization import worker_pool

SHORTEST = 200
_OWN_NAME = "olmoe-parrots"
_PACKAGE_FOLDERS = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class _Candidate:
    """A document to be: with its text, or with the Python file to take it from."""

    id: str
    source: str
    text: str | None = None
    path: str | None = None


def describe_python_docs(max_characters: int) -> dict[str, Any]:
    """What identifies the corpus: Python's version, the installed distributions and the cap in characters."""
    names = sorted(f"{_name(d)}=={d.version}" for d in _distributions())
    version = ".".join(map(str, sys.version_info[:3]))
    digest = hashlib.sha256("\n".join([version, *names]).encode()).hexdigest()
    return {
        "kind": "python-docs",
        "python": version,
        "distributions": len(names),
        "sha256": digest,
        "max_characters": max_characters,
    }


def read_python_docs(max_characters: int, processes: int) -> Iterator[Document]:
    """Documents of at least 200 characters, without exact duplicates, up to `max_characters` characters in all.

    They come in the order of their ids' hashes, so that a smaller cap takes a prefix of what a larger one takes, spread
    over all four sources: python_topics, stdlib_docstrings, package_docstrings and package_metadata.
    """
    seen: set[bytes] = set()
    characters = 0
    for candidate, text in _texts(_candidates(), processes):
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        if len(text) < SHORTEST or digest in seen:
            continue
        characters += len(text)
        if characters > max_characters:
            return
        seen.add(digest)
        yield Document(candidate.id, text, candidate.source)


def _candidates() -> list[_Candidate]:
    found = [*_topics(), *_descriptions(), *_modules(sysconfig.get_path("stdlib"), "stdlib_docstrings")]
    for folder in sorted({os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}):
        found += _modules(folder, "package_docstrings")
    by_id = {candidate.id: candidate for candidate in reversed(found)}
    return sorted(by_id.values(), key=lambda c: hashlib.sha256(c.id.encode("utf-8", "replace")).digest())


def _topics() -> Iterator[_Candidate]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield _Candidate(f"python_topics/{name}", "python_topics", text.strip())


def _distributions() -> Iterator[importlib.metadata.Distribution]:
    # This project is left out, so that the corpus does not change with its README.
    return (d for d in importlib.metadata.distributions() if d.metadata["Name"] and _name(d) != _OWN_NAME)


def _name(distribution: importlib.metadata.Distribution) -> str:
    return distribution.metadata["Name"].lower().replace("_", "-")


def _descriptions() -> Iterator[_Candidate]:
    for distribution in _distributions():
        metadata: Any = distribution.metadata
        text = metadata.get_payload() or metadata.get("Description") or ""
        yield _Candidate(f"package_metadata/{_name(distribution)}", "package_metadata", str(text).strip())


def _modules(folder: str, source: str) -> Iterator[_Candidate]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _PACKAGE_FOLDERS)
        for name in names:
            if name.endswith(".py"):
                path = Path(root, name)
                relative = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
                yield _Candidate(f"{source}/{relative}", source, path=str(path))


def _texts(candidates: list[_Candidate], processes: int) -> Iterator[tuple[_Candidate, str]]:
    if processes == 1:
        yield from ((candidate, _text(candidate)) for candidate in candidates)
        return
    pool = worker_pool(processes)
    try:
        yield from zip(candidates, pool.map(_text, candidates, chunksize=16), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


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
