"""What the process that runs are forked from imports before the first of them."""

from olmoe_parrots import train
from olmoe_parrots.evaluation import synthetic
from olmoe_parrots.synthetic import build

train.preload()
__all__ = ["build", "synthetic"]
