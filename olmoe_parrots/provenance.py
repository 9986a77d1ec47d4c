"""Where a result comes from: versions, commit, command and machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ai2-olmo", "torch", "numpy", "transformers", "tokenizers", "dolma", "megablocks", "triton")


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Installed versions of what a result depends on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(device: str, world_size: int) -> dict[str, Any]:
    """A record of this process's code, command and machine, as plain data."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": package_versions(),
        "device": device,
        "world_size": world_size,
        "cpu_count": os.cpu_count(),
    }
