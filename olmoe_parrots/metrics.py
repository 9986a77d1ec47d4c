"""What a run says of itself: ``metrics.jsonl``, a progress bar or log lines, MFU and routing statistics."""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "V100": 125e12,
}
"""Dense bf16 (V100: fp16) peaks of the vendor's data sheets, by a part of the device's name; first match counts."""


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of a device by name, or ``None`` where it is not known (CPUs among them)."""
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in device_name), None)


def routing_row(layer: int, tokens_per_expert: list[float]) -> dict[str, Any]:
    """Load of one MoE layer: each expert's share of the assignments, that share's entropy in nats (log E when even)
    and the largest load over the mean one (1 when even)."""
    total = sum(tokens_per_expert) or 1.0
    share = [count / total for count in tokens_per_expert]
    entropy = -sum(s * math.log(s) for s in share if s > 0)
    return {"layer": layer, "share": share, "entropy": entropy, "max_over_mean": max(share) * len(share)}


class MetricsFile:
    """Appends rows to a JSON-lines file, each on disk before the next step; never rewrites what is there.

    After a restart a step may occur twice: the later row is the one that the surviving checkpoints follow.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None  # opened by the first row: a run that trains nothing leaves no file

    def write(self, row: dict[str, Any]) -> None:
        """Append one row with the time of day (seconds since 1970) in ``time``."""
        if self._file is None:
            self._file = self._open()
        self._file.write(json.dumps({**row, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        file = self.path.open("a", encoding="utf-8")
        if torn:  # a killed run left half a row: keep it, but start a line of our own
            file.write("\n")
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file in order, leaving out a line that a killed run tore."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: a torn line was left out", path)
    return rows


def rows_by_step(rows: list[dict[str, Any]], key: str = "train/CrossEntropyLoss") -> dict[int, dict[str, Any]]:
    """The last row of each step that has ``key``."""
    return {row["step"]: row for row in rows if key in row}


class Progress:
    """A bar with loss, tokens/s and time left on a terminal; a plain line a logged step anywhere else."""

    def __init__(self, total_steps: int, start_step: int, name: str) -> None:
        self.total = total_steps
        self._started, self._start_step = time.monotonic(), start_step
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, desc=name, unit="step", dynamic_ncols=True)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show a trained step."""
        shown = {"loss": f"{metrics['train/CrossEntropyLoss']:.4f}"}
        for label, key in (("balance", "train/LoadBalancingLoss"), ("z", "train/RouterZLoss")):
            if key in metrics:
                shown[label] = f"{metrics[key]:.2e}"
        if (rate := metrics.get("throughput/tokens_per_second")) is not None:
            shown["tokens/s"] = f"{rate:,.0f}"
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix(shown)
            return
        shown["lr"] = f"{metrics['optim/learning_rate']:.2e}"
        done = step - self._start_step
        left = (time.monotonic() - self._started) / done * (self.total - step) if done else 0.0
        line = " ".join(f"{key} {value}" for key, value in shown.items())
        log.info("step %d/%d %s eta %d:%02d", step, self.total, line, *divmod(int(left), 60))

    def say(self, message: str) -> None:
        """A line that does not break the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            log.info("%s", message)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
