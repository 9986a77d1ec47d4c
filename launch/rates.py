"""Measured speeds of training from a benchmark's file of JSON lines (docs/cluster.md has the fields)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from olmoe_parrots.errors import InputError

RATE, MEDIAN = "tokens_per_second_per_device", "median"


@dataclass(frozen=True)
class Rates:
    """Tokens/s of one device, by config and device, as `read_rates` found them."""

    path: Path
    found: dict[tuple[str, str], float]

    def of(self, config: str, gpu: str | None) -> float | None:
        """The rate of a config on the device whose name holds `gpu`, the last that was added where several do.

        Args:
            gpu: None where the plan names none; the file must then be of one device.

        Raises InputError where it is of several.
        """
        devices = sorted({device for _, device in self.found})
        if gpu is None and len(devices) > 1:
            what = f"it has rates of {', '.join(devices)}, and the sweep does not say which GPU it is for"
            raise InputError(self.path, what, "give gpu: {name: ...} in the sweep file")
        wanted = (gpu or "").casefold()
        rates = [rate for (name, device), rate in self.found.items() if name == config and wanted in device.casefold()]
        return rates[-1] if rates else None


def read_rates(path: Path) -> Rates:
    """Read a benchmark's file: of each config and device the last median, or else the median of all measurements.

    Rows without a `config` are of other measurements and are passed over. Raises InputError for a file that cannot be
    read and for a row that tells no rate.
    """
    medians: dict[tuple[str, str], float] = {}
    measured: dict[tuple[str, str], list[float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"it cannot be read ({error})", "name a benchmark's file of JSON lines") from None
    for number, line in enumerate(lines, start=1):
        row = _row(line, f"{path}, line {number}")
        if row is None:
            continue
        place = row["config"], row["device"]
        if isinstance(row.get(MEDIAN), bool) or row.get(MEDIAN) is None:
            rate = _number(row, RATE, f"{path}, line {number}")
            if row.get(MEDIAN):
                medians[place] = rate
            measured.setdefault(place, []).append(rate)
        else:
            medians[place] = _number(row, MEDIAN, f"{path}, line {number}")
    return Rates(path, {place: median(rates) for place, rates in measured.items()} | medians)


def _row(line: str, where: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except ValueError:
        raise InputError(where, "this is not JSON", "mend the line or take it out") from None
    if not isinstance(row, dict) or "config" not in row:
        return None
    for key in ("config", "device"):
        if not isinstance(row.get(key), str):
            raise InputError(where, f"{key}: {row.get(key)!r} is not a name", "give a string")
    return row


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(where, f"{key}: {value!r} is not a rate", "give tokens per second of one device")
    return float(value)
