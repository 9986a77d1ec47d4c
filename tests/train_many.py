"""Trains several configs one after the other in one process a rank, to import torch and OLMo once for all of them.

Arguments read "PORT:CONFIG OVERRIDE ...". Each run meets on a port of its own: ranks that leave one run early must not
find the store of the last one.
"""

import os
import sys

from olmoe_parrots.train import main

os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for argument in sys.argv[1:]:
    os.environ["MASTER_PORT"], _, words = argument.partition(":")
    assert main(words.split()) == 0
