"""Errors a user can act on, and the exit codes every command shares.

Exit codes: 0 success, 1 a failed run (the traceback is kept), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """Bad input, told in one line: where it is, what is wrong, and what to do about it.

    Args:
        where: the file, folder, field or argument at fault.
        what: what is wrong with it, with the value found.
        remedy: what the user can do.
    """

    def __init__(self, where: object, what: str, remedy: str) -> None:
        # All three go to Exception so that the error survives pickling between processes.
        super().__init__(where, what, remedy)
        self.where = str(where)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.what}; {self.remedy}".split())


class RunError(InputError):
    """A run that can't go on, told in the same line but with exit code 1: what it was given was right."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with one line for each error, as for all bad input."""

    def error(self, message: str) -> NoReturn:
        """Print the error on standard error and leave with exit code 2."""
        print(f"error: {self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(2)


def report_and_exit(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and leave the process with its exit code.

    An InputError becomes one line on standard error and exit code 2 (1 for a RunError), an interruption exit code
    130. Any other exception passes through, so Python prints its traceback and exits with 1. Of the processes torchrun
    started, only the one with RANK 0 prints the line.
    """
    try:
        code = main()
    except InputError as error:
        if os.environ.get("RANK", "0") in ("", "0"):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)
