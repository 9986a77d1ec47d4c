"""The results contract: JSON lines that are only ever appended to, one row a measurement.

A row says what was measured, of which model, trained how and on what, and by which code. Tables, figures and the
decisions of sweeps are drawn from rows alone. Rows of every run may share one file, written by several processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InputError

FORMAT = "olmoe_parrots.results/1"
PLACES = ("run_name", "save_folder", "data_folder")
"""Options of a config that say where things lie and not what is trained."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        model: its name.
        config_digest: of the run's config, see :func:`config_digest`: rows of one training run share it.
        total_params, active_params, non_embedding_params: by the closed formulas of ``accounting``.
        training_tokens, training_flops: of the run up to the measured step; padding and prompts count as tokens.
        task: what was measured on, such as phone_book; `split`: of it, such as train or test.
        metric, value: a finite number.
        standard_error: of the value, over the examples; None where it has none.
        examples: how many were measured; None where that has no meaning.
        architecture: width, layers, heads, experts (0 is dense), top_k, hidden_size, gated, and what else tells models
            apart.
        data: of the training: its `name`, task, size, seed and options.
        step, checkpoint: what was measured; None for a value that sums up several runs.
        seed, learning_rate: of the run.
        details: whatever else explains the value, as plain data.
        versions, commit, device: of the run that was measured.
        time: when the row was written, in seconds since 1970.
    """

    model: str
    config_digest: str
    total_params: int
    active_params: int
    non_embedding_params: int
    training_tokens: int
    training_flops: float
    task: str
    split: str
    metric: str
    value: float
    standard_error: float | None = None
    examples: int | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    checkpoint: str | None = None
    seed: int | None = None
    learning_rate: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    device: str | None = None
    time: float = field(default_factory=lambda: round(time.time(), 3))

    def as_line(self) -> str:
        """The row as one line of JSON, without its end. Raises ValueError for a value that is not finite."""
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False)


_REQUIRED = tuple(f.name for f in fields(Row) if f.default is MISSING and f.default_factory is MISSING)
_NAMES = frozenset(f.name for f in fields(Row))
_NUMBERS = ("total_params", "active_params", "non_embedding_params", "training_tokens", "training_flops", "value")


def config_digest(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of a config and what it is trained on, wherever they lie.

    Args:
        config: as written, with its `${...}` unresolved, so that its paths follow from PLACES.
        data: the settings of the data set.
    """
    what = {key: value for key, value in config.items() if key not in PLACES}
    text = json.dumps([what, dict(data)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append whole lines, on disk when this returns; what is there stays as it is, a torn last line too.

    Other processes may append at the same time. Raises InputError where the file cannot be written.
    """
    lines = [row.as_line() + "\n" for row in rows]
    if not lines:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(path, f"it cannot be written ({error.strerror})", "name another results file") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = os.fstat(file).st_size
        torn = end > 0 and os.pread(file, 1, end - 1) != b"\n"
        left = memoryview(("\n" * torn + "".join(lines)).encode())
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a file that was just made is in its folder
    finally:
        os.close(folder)


def _say(message: str) -> None:
    import sys

    print(message, file=sys.stderr)


def read_rows(path: Path, report: Callable[[str], None] = _say) -> list[Row]:
    """The rows of a results file in order; a line that is none is left out, and `report` gets a line of its own on it.

    Keys that this version does not know are passed over. Raises InputError where the file is missing or unreadable.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", "name a results file") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            what = "it ends in the middle" if number == len(lines) else f"it is no row ({error})"
            report(f"{path}, line {number}: {what}; left out, all other rows are read")
    return rows


def _row(values: Any) -> Row:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if missing := [name for name in _REQUIRED if name not in values]:
        raise ValueError(f"{', '.join(missing)} missing")
    for name in _NUMBERS:
        number = values[name]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{name} is {number!r:.40}, not a finite number")
    for name in ("architecture", "data", "details", "versions"):
        if not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{name} is no mapping")
    return Row(**{name: value for name, value in values.items() if name in _NAMES})


if __name__ == "__main__":
    from .errors import report_and_exit
    from .results_command import main

    report_and_exit(main)
