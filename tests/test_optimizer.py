"""The optimizer's one pass computes what its several passes do."""

import torch
from olmo.optim import AdamW, LionW

from olmoe_parrots.optimizer import fuse_optimizer


def test_fused_steps_are_adamws() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(40, 30), torch.randn(5, 40, 30)
    found = []
    for fused in (False, True):
        parameter = torch.nn.Parameter(start.clone())
        optim = AdamW([{"params": [parameter], "param_names": ["p"]}], lr=0.01, weight_decay=0.1)
        for step, gradient in enumerate(gradients):
            if fused and step == 2:  # as after a checkpoint of a run that did not
                fuse_optimizer(optim)
            parameter.grad = gradient.clone()
            optim.step()
        assert optim.param_groups[0]["fused"] is (True if fused else None)
        assert optim.state[parameter]["step"] == 5
        found.append(parameter.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    assert not torch.equal(found[0], start)


def test_others_are_left_as_they_are() -> None:
    lion = LionW([torch.nn.Parameter(torch.ones(2))])
    fuse_optimizer(lion)
    assert "fused" not in lion.param_groups[0]
    on_meta = AdamW([torch.nn.Parameter(torch.ones(2, device="meta"))])
    fuse_optimizer(on_meta)
    assert on_meta.param_groups[0]["fused"] is None
