"""Stands for Python where it has modules to run: tests/train_server.py runs them, at once. All else Python does."""

import os
import signal
import sys

from train_server import start_run


def main() -> int:
    real, words = os.environ["REAL_PYTHON"], sys.argv[1:]
    if words[:1] == ["-u"]:
        del words[0]
    if words[:1] != ["-m"]:
        os.execv(real, [real, *words])
    output, errors = (f"/proc/{os.getpid()}/fd/{number}" for number in (1, 2))
    options = {"output": output, "errors": errors, "folder": os.getcwd(), "executable": os.environ["SERVED_PYTHON"]}
    run = start_run(words[2:], 1, dict(os.environ), 0, words[1], **options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda given, _: run.send_signal(given))
    return run.wait()


if __name__ == "__main__":
    sys.exit(main())
