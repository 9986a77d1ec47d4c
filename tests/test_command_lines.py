"""What every command says of arguments that it does not know."""

import subprocess
import sys

import pytest

from olmoe_parrots.cli import COMMANDS


@pytest.mark.parametrize("module", COMMANDS.values())
def test_a_wrong_command_line_gets_one_line(module: str) -> None:
    # the training command takes options of its config, and then lacks the config
    run = subprocess.run([sys.executable, "-m", module, "--no-such-option"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: python -m {module}: ") and line.endswith("; see --help")
