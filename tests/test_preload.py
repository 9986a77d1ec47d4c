"""What is imported ahead of many runs is all that a run imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from synthetic_data import make_data

CODE = """
import os, sys
from olmoe_parrots.train import main, preload
preload()
before = set(sys.modules)
assert main(sys.argv[1:]) == 0
late = set(sys.modules) - before
packages = ("olmo.", "olmoe_parrots.", "torch._", "torch.distributed.", "wandb.", "datasets.", "sympy.", "scipy.")
print("late:", sorted(name for name in late if f"{name}.".startswith(packages)))
"""


@pytest.mark.slow
def test_a_run_imports_nothing_more(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", "phone_book", test_size=8)
    options = [f"--data_folder={data}", f"--save_folder={tmp_path / 'run'}", "--max_duration=2"]
    config = REPOSITORY / "configs" / "synthetic" / "tiny_moe.yaml"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(config), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "late: []"
