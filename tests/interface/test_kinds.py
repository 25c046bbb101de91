"""Networks of other kinds than float32 ones whose tensors are all their own, through methods that descend a loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import modeconn_cli as mc


class Tied(nn.Module):
    """A perceptron in float64, two layers of which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(F.relu(self.read(x)))))))


@pytest.mark.parametrize("method", ["straight_through", "sinkhorn"])
def test_tied_weights_in_float64_are_matched_by_a_loss(method: str) -> None:
    torch.manual_seed(0)
    a, b = Tied(), Tied()
    x, y = torch.randn(30, 3), torch.arange(30) % 2
    found = mc.align(a, b, (x, y), method=method, steps=2)
    with torch.no_grad():
        assert torch.allclose(found.module(x.double()), b(x.double()), rtol=1e-12, atol=1e-14)
    assert found.certificate["dtype"] == "float64"
    assert torch.equal(found.state["a.weight"], found.state["b.weight"])
    assert found.state["a.weight"].dtype is torch.float64
