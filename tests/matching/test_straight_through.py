"""What methods that descend a loss find, beside what weights alone do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.matching.midpoint import Parameters
from modeconn_cli.matching.sinkhorn import sinkhorn_matching
from modeconn_cli.matching.straight_through import straight_through
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace


def test_training_lowers_the_midpoint_below_what_weights_alone_find() -> None:
    x, y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = models.build("mlp", (8,), 4, width=16, depth=2)
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
        states.append({k: v.detach().clone() for k, v in module.named_parameters()})
    symmetry = trace(module, x[:2])

    def loss(parameters: Parameters, step: int = 0) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(module, dict(parameters), (x,)), y)

    def check(parameters: Parameters) -> float:
        return float(loss(parameters))

    a, b = states
    found = straight_through(symmetry, a, b, loss, check, steps=60, lr=1e-2, check_every=5)
    moved = symmetry.permute(b, found.permutations)
    assert check({n: (a[n] + moved[n]) / 2 for n in a}) == pytest.approx(min(found.objective))
    assert min(found.objective) < 0.98 * found.objective[0]  # which is weight matching's
    soft = sinkhorn_matching(symmetry, a, b, loss, check, steps=150, lr=0.1)
    assert min(soft.objective) < check({n: (a[n] + b[n]) / 2 for n in a})
