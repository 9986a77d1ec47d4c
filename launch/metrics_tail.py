"""The end of a run's metrics.jsonl, however long the file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TAIL = 65_536


def last_row(folder: Path, key: str) -> dict[str, Any] | None:
    """The last row of a run's metrics.jsonl that has a number under `key`, from the file's end."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            if isinstance(row[key], (int, float)):
                return row
        except (ValueError, KeyError, TypeError):
            continue
    return None
