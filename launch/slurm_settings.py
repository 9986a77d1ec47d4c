"""What a sweep file's `slurm` section may say: a site's partition, limits and surroundings, and what is done again."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from olmoe_parrots.strict_yaml import Section

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")


@dataclass(frozen=True)
class SlurmSettings:
    """Settings of a Slurm job, under sbatch's names where it has them; None and empty ones are left to the site."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    memory: str | None = None
    """Of a node, as sbatch's `--mem` takes it."""
    cpus_per_task: int | None = None
    gpu_type: str | None = None
    """Between `--gres=gpu:` and the number."""
    at_once: int | None = None
    """Most runs of one array that are at work at a time."""
    sbatch: tuple[str, ...] = ()
    """Further `#SBATCH` options."""
    srun: tuple[str, ...] = ()
    """Further options of srun."""
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    """Lines of shell before training."""
    environment: tuple[tuple[str, str], ...] = ()
    container: str | None = None
    """Words before python, such as `apptainer exec --nv parrots.sif`."""
    python: str | None = None
    """None: the interpreter that submits."""
    warning_seconds: int = 300
    """SIGUSR1 comes so long before the time limit."""
    max_restarts: int = 100
    """A job that was restarted so often, whoever did it, does not requeue itself any more."""
    max_failures: int = 3
    """So many failures in a row are tried again."""
    launcher: str = "srun"
    """What starts a node's processes: srun one a GPU, or torchrun all of them."""
    template: str | None = None
    """A job script template in place of the launcher's in launch/templates."""

    @property
    def template_path(self) -> Path:
        """The job script template."""
        return Path(self.template) if self.template else TEMPLATES[self.launcher]


_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = {"srun": _FOLDER / "slurm.sh", "torchrun": _FOLDER / "slurm_torchrun.sh"}


def read_slurm(section: Section) -> SlurmSettings:
    """The settings of a `slurm` section. Raises InputError for a key or value that cannot be used."""
    section.refuse_unknown({field.name for field in fields(SlurmSettings)})
    texts = ("partition", "account", "qos", "constraint", "memory", "gpu_type", "container", "python", "template")
    usual = SlurmSettings()
    if (template := section.text("template", None)) is not None and not Path(template).is_file():
        section.refuse("template", template, f"name a file, such as a copy of {TEMPLATES['srun']}")
    return SlurmSettings(
        **{key: _one_line(section, key) for key in texts},
        time=_time(section),
        launcher=section.choice("launcher", tuple(TEMPLATES), usual.launcher),
        cpus_per_task=section.integer("cpus_per_task", None, least=1),
        at_once=section.integer("at_once", None, least=1),
        sbatch=section.texts("sbatch", ()),
        srun=section.texts("srun", ()),
        modules=section.texts("modules", ()),
        setup=section.texts("setup", ()),
        environment=_environment(section),
        warning_seconds=section.integer("warning_seconds", usual.warning_seconds, least=1) or 0,
        max_restarts=section.integer("max_restarts", usual.max_restarts, least=0) or 0,
        max_failures=section.integer("max_failures", usual.max_failures, least=0) or 0,
    )


def _one_line(section: Section, key: str) -> str | None:
    value = section.text(key, None)
    if value is not None and "\n" in value:
        section.refuse(key, value, "give one line")
    return value


def _time(section: Section) -> str | None:
    given = section.values.get("time")
    if isinstance(given, int):  # 24:00:00 is a number to YAML, in base 60
        section.refuse("time", given, 'put it in quotes, such as "24:00:00" or "2-00:00:00"')
    time = section.text("time", None)
    if time is not None and not _TIME.fullmatch(time):
        section.refuse("time", time, 'write minutes, "hours:minutes:seconds" or "days-hours:minutes:seconds"')
    return time


def _environment(section: Section) -> tuple[tuple[str, str], ...]:
    given = section.section("environment")
    for key, value in given.values.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", key):
            given.refuse(key, value, "give the name of a variable")
        if isinstance(value, (dict, list)) or value is None:
            given.refuse(key, value, "give one value")
    return tuple((key, str(value)) for key, value in given.values.items())
