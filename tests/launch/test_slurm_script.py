"""The job script: what it asks of Slurm, and what it does with each way in which training ends.

It is run by bash here, with programs in place of Slurm's own that note how they were called; a real Slurm runs it in
test_slurm.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grid_maker import make_grid, write_config

from launch import slurm
from launch.__main__ import main
from launch.config_grid import ConfigGrid
from launch.processes import last_state
from launch.run_state import is_done
from olmoe_parrots.errors import InputError


def _grid(folder: Path, shards: Path, names: str = "abc", **keys: Any) -> ConfigGrid:
    for name in names:
        write_config(folder / "configs" / f"{name}.yaml", shards)
    return make_grid(folder, [{"configs": [f"{folder}/configs/*.yaml"], **keys}])


def _script(grid: ConfigGrid) -> str:
    (jobs,) = slurm.groups(grid.jobs)
    return slurm.script(grid, jobs, {job.name: number for number, job in enumerate(jobs)})


def test_the_script_asks_for_what_the_sweep_says(tmp_path: Path, shards: Path) -> None:
    settings = {
        "partition": "gpu",
        "time": "2-00:00:00",
        "memory": "100G",
        "gpu_type": "h100",
        "at_once": 2,
        "sbatch": ["--exclusive"],
        "modules": ["cuda/12"],
        "environment": {"A": "it's"},
        "setup": ["source here"],
        "container": "apptainer exec parrots.sif",
    }
    text = _script(_grid(tmp_path, shards, nodes=2, gpus_per_node=4, slurm=settings))
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"partition=gpu", "time=2-00:00:00", "mem=100G", "gres=gpu:h100:4", "exclusive", "array=0-2%2"} <= asked
    assert {"nodes=2", "ntasks-per-node=4", "requeue", "signal=USR1@300", "open-mode=append"} <= asked
    assert not any(line.startswith(("account", "qos", "cpus-per-task")) for line in asked)
    assert "module load cuda/12\nexport A='it'\"'\"'s'\nsource here\n" in text
    assert "apptainer exec parrots.sif python -m olmoe_parrots.train" in text
    assert "scontrol show hostnames" in text, "two nodes have to find one another"


def test_a_sites_own_template_is_used(tmp_path: Path, shards: Path) -> None:
    template = tmp_path / "ours.sh"
    template.write_text("#!/bin/bash\n#SBATCH --array={{ array }}\nours {{ slurm.partition }}\n")
    grid = _grid(tmp_path, shards, slurm={"template": str(template), "partition": "p"})
    assert _script(grid) == "#!/bin/bash\n#SBATCH --array=0-2\nours p\n"
    template.write_text("{{ partition }}\n")
    with pytest.raises(InputError, match="'partition' is undefined"):
        _script(grid)


@pytest.mark.parametrize(
    ("indices", "text"), [([0], "0"), ([3, 1, 0, 2], "0-3"), ([9, 0, 1, 4], "0-1,4,9"), ([5, 7, 6], "5-7")]
)
def test_indices_become_ranges(indices: list[int], text: str) -> None:
    assert slurm.array_of(indices) == text
    assert slurm.array_of(indices, 2) == f"{text}%2"


def test_a_run_keeps_its_index_whatever_is_submitted_later(tmp_path: Path, shards: Path) -> None:
    """The queue is read by it, long after other runs have finished or were added to the sweep."""
    grid = _grid(tmp_path, shards, "bc")
    slurm.folder_of(grid).mkdir(parents=True)
    first = slurm._indices(grid, list(grid.jobs))
    slurm._append_names(grid, first)
    grid = _grid(tmp_path, shards, "abc")
    later = slurm._indices(grid, list(grid.jobs))
    slurm._append_names(grid, later)
    assert first == {"b": 0, "c": 1} and later == {"a": 2, "b": 0, "c": 1}
    assert (slurm.folder_of(grid) / slurm.RUNS).read_text() == "b\nc\na\n"


def test_a_dry_run_prints_an_array_for_each_kind_of_machine(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write_config(tmp_path / f"{name}.yaml", shards)
    make_grid(tmp_path, [{"configs": [f"{tmp_path}/a.yaml"]}, {"configs": [f"{tmp_path}/b.yaml"], "gpus_per_node": 2}])
    assert main(["slurm", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.count("#!/bin/bash") == 2 and "--gres=gpu:1\n" in told and "--gres=gpu:2\n" in told
    assert not (tmp_path / "output").exists()


class Machine:
    """A folder of programs that stand in for Slurm's: srun ends with a given code, scontrol notes its arguments."""

    def __init__(self, folder: Path, grid: ConfigGrid) -> None:
        self.grid, self.bin = grid, folder / "bin"
        self.called = folder / "called.txt"
        self.bin.mkdir()
        self._write("srun", f'printf "srun %s\\n" "$*" >> {self.called}; exit $SRUN_CODE')
        self._write("scontrol", f'printf "scontrol %s\\n" "$*" >> {self.called}')
        self._write("sleep", "exit 0")
        slurm.folder_of(grid).mkdir(parents=True)
        slurm._append_names(grid, {job.name: number for number, job in enumerate(grid.jobs)})
        self.script = folder / "script.sh"
        self.script.write_text(_script(grid))

    def _write(self, name: str, line: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{line}\n")
        (self.bin / name).chmod(0o755)

    def run(self, index: int, code: int, restarts: int = 0) -> tuple[int, list[str]]:
        """Run the script as that task of an array, training ending with `code`; its own code, and what it called."""
        self.called.write_text("")
        told = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": "9", "SLURM_NTASKS": 2}
        told |= {"SLURM_NNODES": 1, "SLURM_RESTART_COUNT": restarts, "SRUN_CODE": code, "SLURM_JOB_NODELIST": "n1"}
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        environment["PATH"] = f"{self.bin}:{os.environ['PATH']}"
        done = subprocess.run(["bash", str(self.script)], env=environment, capture_output=True, text=True)
        return done.returncode, self.called.read_text().splitlines()

    def requeues(self, index: int, code: int, restarts: int = 0) -> bool:
        return any(call == f"scontrol requeue 7_{index}" for call in self.run(index, code, restarts)[1])


@pytest.fixture
def machine(tmp_path: Path, shards: Path) -> Machine:
    return Machine(tmp_path, _grid(tmp_path, shards, slurm={"max_failures": 2, "max_restarts": 5}))


def test_it_trains_the_run_of_its_index(machine: Machine) -> None:
    code, called = machine.run(1, 0)
    job = machine.grid.jobs[1]
    assert code == 0 and len(called) == 1
    assert f"-m olmoe_parrots.train {job.config_path} --try_load_latest_save=true" in called[0]
    assert f"--output={job.folder}/log.txt" in called[0]
    assert json.loads((job.folder / "process.json").read_text()) == {"job": "7_1", "restarts": 0, "exit_code": 0}
    assert is_done(job)
    assert not is_done(machine.grid.jobs[0])


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (138, True), (143, True), (1, True)])
def test_what_stopped_or_failed_goes_back_into_the_queue(machine: Machine, code: int, again: bool) -> None:
    assert machine.requeues(0, code) is again
    assert last_state(machine.grid.jobs[0].folder)["exit_code"] == code


def test_failures_in_a_row_and_restarts_come_to_an_end(machine: Machine) -> None:
    assert [machine.requeues(0, 137) for _ in range(2)] == [True, True]
    code, called = machine.run(0, 137)
    assert code == 137 and not any("requeue" in call for call in called)
    assert [machine.requeues(0, code) for code in (1, 137, 75, 1, 1, 1)] == [True, True, True, True, True, False]
    assert [machine.requeues(0, 75, restarts) for restarts in (4, 5)] == [True, False]
    assert machine.run(0, 75, 5)[0] == 75
