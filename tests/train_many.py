"""Trains several configs one after the other in one process a rank.

Arguments read "PORT:CONFIG OVERRIDE ...". Each run meets on a port of its own: ranks that leave one run early must not
find the store of the last one.
"""

import os

from olmoe_parrots import train


def main(arguments: list[str]) -> int:
    for argument in arguments:
        os.environ["MASTER_PORT"], _, words = argument.partition(":")
        if code := train.main(words.split()):
            return code
    return 0
