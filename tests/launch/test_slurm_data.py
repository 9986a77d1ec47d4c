"""`python -m launch slurm-data`: the scripts, what is refused before anything is submitted, and a real Slurm."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from slurm_cluster import cluster_or_skip

from launch import slurm_data
from launch.__main__ import main
from launch.slurm_settings import SlurmSettings
from olmoe_parrots.errors import InputError


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Three source files of two sources, a text of the one in the other."""
    rng = random.Random(0)
    words = ["parrots", "repeat", "what", "experts", "remember", "and", "reason", "about", "seldom", "or", "never"]
    for source, files in {"web": 2, "books": 1}.items():
        (tmp_path / "local" / source).mkdir(parents=True)
        for number in range(files):
            texts = [" ".join(rng.choices(words, k=40)) for _ in range(60)] + ["the same text in every file"]
            rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (tmp_path / "local" / source / f"{number}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    sources = [{"name": name, "dataset": f"a/{name}"} for name in ("books", "web")]
    content = {"validation": {"share": 0.1}, "shard_megabytes": 0.01, "sources": sources}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mixture.yaml"


def _command(mixture: Path, output: Path, *options: str) -> list[str]:
    given = [str(mixture), "--output", str(output), "--local", str(mixture.parent / "local")]
    return ["slurm-data", *given, *options]


def test_a_dry_run_prints_an_array_and_the_job_after_it(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text("slurm: {account: ours, launcher: torchrun, modules: [m]}\n")
    options = ["--slurm-file", str(tmp_path / "sweep.yaml"), "--slurm", "cpus_per_task=4", "--slurm", "at_once=2"]
    options += ["--slurm", "time=12:00:00", "--slurm", "environment.A=it's", "--assembly", "cpus_per_task=32"]
    assert main(_command(mixture, tmp_path / "out", *options, "--seed", "5", "--dry-run")) == 0
    told = capsys.readouterr().out
    array, assembly = (f"#!/bin/bash{part}" for part in told.split("#!/bin/bash")[1:])
    for script, own in ((array, ["array=0-2%2", "cpus-per-task=4"]), (assembly, ["cpus-per-task=32"])):
        asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
        assert {"account=ours", "time=12:00:00", "requeue", "signal=B:USR1@300", *own} <= asked
        assert "module load m\nexport A='it'\"'\"'s'\n" in script and f"{mixture} --output" in script
        assert "--seed 5" in script and "--slurm-file" not in script and "at_once" not in script
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "--file $((SLURM_ARRAY_TASK_ID + 0))" in array and "--file" not in assembly and "--array" not in assembly
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slurm", "partiton=cpu"], "partiton: there is no such key; did you mean partition"),
        (["--slurm", "partition"], "'partition' does not read KEY=VALUE"),
        (["--assembly", "cpus_per_task=many"], "cpus_per_task: 'many' is not a whole number"),
        (["--slurm", "time=soon"], "time: 'soon' cannot be used"),
        (["--file", "1"], "--file: the jobs do that"),
        (["--local", "/nowhere"], "/nowhere/books: there is no such folder"),
        (["--work", "w"], "leave --work out"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_a_line(
    mixture: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        main(_command(mixture, tmp_path / "out", *options, "--dry-run"))
    assert not (tmp_path / "out").exists()


def test_more_files_than_an_array_takes_are_several_arrays(mixture: Path, tmp_path: Path) -> None:
    from data_prep.file_array import find_all_units
    from data_prep.mixture import load_mixture

    found = find_all_units(load_mixture(str(mixture)), str(tmp_path / "local"), tmp_path / "out")
    units = [unit for listed in found.values() for unit in listed]
    scripts = slurm_data._array_scripts(units, [0, 2], SlurmSettings(), tmp_path, "", 2)
    assert [("--array=0\n" in script, script.count("ARRAY_TASK_ID + 2")) for script in scripts] == [
        (True, 0),
        (True, 1),
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a Slurm of one node."""
    with cluster_or_skip() as environment:
        yield environment


def _bytes(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "inputs.json" and path.parent != root / "slurm"
    }


@pytest.mark.cluster
def test_the_dataset_of_an_array_is_that_of_a_single_job(
    mixture: Path,
    tmp_path: Path,
    cluster: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a file that cannot be read at first: the job after the array then leaves the queue, and nothing is lost."""
    from data_prep.__main__ import main as prepare

    monkeypatch.chdir(REPOSITORY)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster[name])
    alone, output, torn = tmp_path / "alone", tmp_path / "array", tmp_path / "local" / "web" / "0.jsonl.gz"
    prepare([*_command(mixture, alone)[1:], "--processes", "1"])
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-40])
    command = _command(mixture, output, "--slurm", "time=20", "--slurm", "cpus_per_task=1")
    capsys.readouterr()
    assert main(command) == 0
    assert "0 of 3 source files are prepared" in capsys.readouterr().out
    main(command)
    assert "in the queue, and nothing was submitted" in capsys.readouterr().out
    _wait_until_empty(output)
    logs = "".join(path.read_text() for path in (output / "slurm").glob("*.log"))
    assert "0.jsonl.gz: it cannot be read" in logs and not (output / "manifest.json").exists()
    torn.write_bytes(whole)
    main(command)
    assert "2 of 3 source files are prepared" in capsys.readouterr().out
    _wait_until_empty(output)
    assert _bytes(output) == _bytes(alone)
    main(command)
    assert "is finished" in capsys.readouterr().out


def _wait_until_empty(output: Path) -> None:
    deadline = time.monotonic() + 400
    while slurm_data._queued(output):
        assert time.monotonic() < deadline, slurm_data._queued(output)
        time.sleep(0.5)
