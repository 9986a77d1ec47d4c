"""Tasks of lm-evaluation-harness in its own format: `lm_eval --include_path olmoe_parrots/evaluation/lm_tasks`."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the task files are."""
