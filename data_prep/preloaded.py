"""What the process that workers are forked from imports before the first of them."""

import signal

# An interruption of the whole process group is the parent's to report; processes forked from this one inherit it.
signal.signal(signal.SIGINT, signal.SIG_IGN)

from data_prep import parts, tokenization  # noqa: E402

tokenization.import_dolma()
__all__ = ["parts"]
