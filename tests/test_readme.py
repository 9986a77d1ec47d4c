"""The README's commands, run as they stand in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from train_server import connect

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
# make test would run this test; the install is what the environment running it came from
NOT_RUN = ("make test", "git clone", "cd ", "source ", ". ", "export PATH")


def commands() -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    joined = "\n".join(BLOCK.findall(text)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_names_its_two_commands() -> None:
    assert "make quickstart" in commands()
    assert "make test" in commands()


def served_python(folder: Path) -> dict[str, str]:
    """Programs in `folder`/bin that run modules in processes forked from one that has imported what training needs;
    returns the variables that put them in the place of Python's. The tree is the one that the server was started in."""
    client = REPOSITORY / "tests" / "served_python.py"
    programs = {"python": f'{sys.executable} -SE {client} "$@"', "torchrun": 'python -m torch.distributed.run "$@"'}
    (folder / "bin").mkdir()
    for name, line in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\nexec {line}\n")
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TRAIN_SERVER": tempfile.mkdtemp(prefix="readme-"),
        "SERVED_PYTHON": str(folder / "bin" / "python"),
        "REAL_PYTHON": sys.executable,
    }


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tree / name)
    (tree / "my_documents").mkdir()
    (tree / "my_documents" / "a.txt").write_text("What experts buy a language model. " * 400)
    (tree / "my_documents" / "b.md").write_text("# A title\n\nA router picks two experts for each token. " * 400)
    environment = {**os.environ, **served_python(tmp_path), "PYTHONPATH": str(tree)}
    with connect(Path(environment["TRAIN_SERVER"]), tree):
        for command in commands():
            if command.startswith(NOT_RUN):
                continue
            if command == "make quickstart":
                # four steps in place of the configs', and no second installation of the environment we are in
                command = f"make -o {tmp_path}/.installed VENV={tmp_path} STEPS=4 quickstart"
            done = subprocess.run(
                command, shell=True, cwd=tree, env=environment, capture_output=True, text=True, timeout=900, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (tree / "runs" / "quickstart.png").stat().st_size > 10_000
