"""The console script: ``parrots COMMAND ...`` is ``python -m MODULE ...``."""

import runpy
import sys

COMMANDS = {
    "train": "olmoe_parrots.train",
    "grid": "olmoe_parrots.grid",
    "curves": "olmoe_parrots.curves",
    "quickstart": "olmoe_parrots.quickstart",
    "data": "data_prep",
    "verify": "data_prep.verify",
    "show": "data_prep.show",
    "synthetic": "olmoe_parrots.synthetic",
    "launch": "launch",
    "evaluate": "olmoe_parrots.evaluate",
    "routing": "olmoe_parrots.routing",
    "results": "olmoe_parrots.results",
    "report": "olmoe_parrots.report",
    "figures": "olmoe_parrots.figures",
    "analysis": "olmoe_parrots.analysis",
}


def main() -> None:
    """Run the module that the first argument names; the rest is its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        asked = name in ("", "-h", "--help")
        lines = [f"  {command:<12}python -m {module}" for command, module in COMMANDS.items()]
        text = "\n".join(["usage: parrots COMMAND ...", *lines])
        print(text if asked else f"error: parrots {name}: there is no such command\n{text}", file=sys.stderr)
        sys.exit(0 if asked and name else 2)
    del sys.argv[1]
    runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)
