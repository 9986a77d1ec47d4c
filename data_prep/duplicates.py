"""Exact duplicates: which texts were seen before, kept on disk so that memory does not grow with the corpus.

dolma's own deduplication is a Bloom filter over finished documents: it drops some that are no duplicates, and with
several processes which of two duplicates stays depends on timing. Here it is exact, and the first one stays.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from olmoe_parrots.errors import InputError

_CACHE_KIB = 1 << 18


class SeenTexts:
    """The digests of all texts so far, each with the unit of input that brought it first."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file. Raises InputError if it is damaged."""
        self._path = path
        self._database = sqlite3.connect(path)
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = NORMAL")
        self._execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._execute("CREATE TABLE IF NOT EXISTS texts (digest BLOB PRIMARY KEY, unit TEXT) WITHOUT ROWID")
        self._begun = {row[0] for row in self._execute("SELECT DISTINCT unit FROM texts")}

    def _execute(self, command: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(command, values)
        except sqlite3.DatabaseError as error:
            remedy = "free disk space, or remove this file; then run again"
            raise InputError(self._path, f"it cannot be used ({error})", remedy) from None

    def add(self, digest: bytes, unit: str) -> bool:
        """Remember a text; False if it was there already."""
        return self._execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (digest, unit)).rowcount == 1

    def forget(self, digests: Iterable[bytes]) -> None:
        """Drop texts that were read ahead and are not used."""
        for digest in digests:
            self._execute("DELETE FROM texts WHERE digest = ?", (digest,))

    def forget_unit(self, unit: str) -> None:
        """Drop what an earlier run added for a unit that is now read again from its beginning."""
        if unit in self._begun:
            self._execute("DELETE FROM texts WHERE unit = ?", (unit,))
            self._begun.remove(unit)

    def commit(self) -> None:
        """Make what was added and dropped last."""
        try:
            self._database.commit()
        except sqlite3.DatabaseError as error:
            raise InputError(self._path, f"it cannot be written ({error})", "free disk space; then run again") from None

    def close(self) -> None:
        """Leave the file as of the last commit."""
        self._database.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").unlink()
