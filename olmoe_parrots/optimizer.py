"""OLMo's optimizer, faster where all parameters lie on the CPU."""

import torch
from olmo.optim import AdamW


def fuse_optimizer(optim: torch.optim.Optimizer) -> None:
    """Have OLMo's AdamW update a parameter in one pass over memory, where all of them lie on the CPU.

    OLMo (olmo/optim.py:955) leaves torch's default, which on the CPU makes several passes. To be called after a
    checkpoint was loaded: what was saved says how that run did it.
    """
    parameters = [parameter for group in optim.param_groups for parameter in group["params"]]
    if isinstance(optim, AdamW) and all(parameter.device.type == "cpu" for parameter in parameters):
        for group in optim.param_groups:
            group["fused"] = True
