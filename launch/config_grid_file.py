"""From a sweep file with a `grid` to its runs: every key checked, every refusal naming file, key, value and remedy."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from launch.config_grid import ConfigGrid, Gpu, GridJob
from launch.slurm_settings import read_slurm
from olmoe_parrots.errors import InputError
from olmoe_parrots.metrics import PEAK_BF16_FLOPS, peak_flops
from olmoe_parrots.strict_yaml import Section, read_yaml

MEMORY_GB = {"H200": 141, "H100": 80, "A100": 80, "L40S": 48, "A40": 48, "V100": 32}
"""Of the largest GPU of the name, in 1e9 bytes, from the vendor's data sheets."""

_SHARED = {"overrides", "variants", "seeds", "nodes", "gpus_per_node", "device_tokens_per_second", "mfu", "slurm"}
"""Keys of an entry that may stand at the file's top too, for all entries that do not have their own."""


def is_grid(path: Path) -> bool:
    """Whether a sweep file lists configs, rather than models and tasks."""
    content = read_yaml(path) if path.is_file() else None
    return isinstance(content, dict) and "grid" in content


def load_grid(path: Path, output: Path | None = None) -> ConfigGrid:
    """Read a sweep file with a `grid`. Config files are looked for from the working directory, as on a command line.

    Args:
        output: in place of the file's own; a relative one is below the working directory.

    Raises InputError for anything that is not as docs/cluster.md describes.
    """
    section = Section(read_yaml(path), str(path))
    section.refuse_unknown(_SHARED | {"name", "output", "gpu", "grid"})
    name = section.text("name", path.stem)
    folder = (output or Path(section.text("output", f"runs/{name}"))).absolute()
    jobs = [job for entry in section.sections("grid") for job in _jobs(entry, section, folder)]
    names = [job.name for job in jobs]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise InputError(path, f"grid: the run {twice} stands twice", "tell them apart by variants, or name each once")
    return ConfigGrid(name, folder, _gpu(section), tuple(jobs), _rates(section))


def _jobs(entry: Section, top: Section, output: Path) -> list[GridJob]:
    entry.refuse_unknown(_SHARED | {"configs"})
    shared = {key: top.values[key] for key in _SHARED if key in top.values}
    slurm = {**top.section("slurm").values, **entry.section("slurm").values}
    overrides = {**top.section("overrides").values, **entry.section("overrides").values}
    section = Section({**shared, **entry.values, "slurm": slurm, "overrides": overrides}, entry.where)
    variants = _variants(section)
    common: dict[str, Any] = {
        "output": output,
        "nodes": section.integer("nodes", 1, least=1),
        "gpus_per_node": section.integer("gpus_per_node", 1, least=0),
        "mfu": section.number("mfu", None, most=1.0),
        "slurm": read_slurm(section.section("slurm")),
    }
    jobs = []
    for source in _configs(section):
        rate = _rate(section, source.stem)
        for variant, changes in variants.items():
            for seed in section.integers("seeds", (), least=0) or (None,):
                own = {**overrides, **changes, **({} if seed is None else {"seed": seed})}
                parts = [source.stem, variant, "" if seed is None else f"s{seed}"]
                job = GridJob(
                    "_".join(filter(None, parts)),
                    source=source,
                    overrides=own,
                    device_tokens_per_second=rate,
                    **common,
                )
                job.config  # noqa: B018  refuses what cannot be read or overridden
                jobs.append(job)
    return jobs


def _configs(section: Section) -> list[Path]:
    patterns = section.texts("configs", ())
    if not patterns:
        raise InputError(section.where, "configs: it is missing", "list config files, such as configs/moe_d256_*.yaml")
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted((Path(match) for match in glob.glob(pattern)), key=_by_numbers)
        if not matches:
            section.refuse("configs", pattern, "no file matches it from here: run in the folder that it starts from")
        found += matches
    return list(dict.fromkeys(found))


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """So that e8 comes before e16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _variants(section: Section) -> dict[str, dict[str, Any]]:
    """Overrides by the name of the variant; one without a name where the file has none."""
    variants = section.section("variants")
    for name, changes in variants.values.items():
        if not name.replace("_", "").replace("-", "").isalnum():
            variants.refuse(name, changes, "name it with letters, digits, - and _: it is part of a folder's name")
    return {name: variants.section(name).values for name in variants.values} or {"": {}}


def _rate(section: Section, config: str) -> float | None:
    """One GPU's tokens/s, for all configs of the entry or by the config's name."""
    key = "device_tokens_per_second"
    if isinstance(section.values.get(key), dict):
        return section.section(key).number(config, None)
    return section.number(key, None)


def _rates(section: Section) -> Path | None:
    """The benchmark's file, from the working directory as configs are."""
    if section.values.get("gpu") is None:
        return None
    given = section.section("gpu").text("rates", None)
    return None if given is None else Path(given)


def _gpu(section: Section) -> Gpu | None:
    if section.values.get("gpu") is None:
        return None
    gpu = section.section("gpu")
    gpu.refuse_unknown({"name", "peak_flops", "memory_gb", "mfu", "rates"})
    name = gpu.text("name", "GPU")
    peak = gpu.number("peak_flops", None) or peak_flops(name)
    if peak is None:
        known = ", ".join(PEAK_BF16_FLOPS)
        raise InputError(gpu.where, f"peak_flops: that of {name} is not known", f"give it, or a name among {known}")
    usual = next((size for part, size in MEMORY_GB.items() if part in name), None)
    memory = gpu.number("memory_gb", None) or usual
    if memory is None:
        raise InputError(gpu.where, f"memory_gb: that of {name} is not known", "give it")
    return Gpu(name, peak, memory * 1e9, gpu.number("mfu", 0.3, most=1.0))
