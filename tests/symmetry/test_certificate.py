"""The certificate tells the same function from another one, and from a network that computes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modeconn_cli.errors import RunFailed
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.certificate import certify, certify_all
from modeconn_cli.symmetry.graph import trace


def test_a_certificate_sees_a_permutation_that_is_not_one() -> None:
    torch.manual_seed(0)
    module = models.build("mlp", (8,), 3, width=6, depth=2).eval()
    symmetry = trace(module, torch.randn(2, 8))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(20, 8)
    good = symmetry.permute(state, [torch.randperm(g.size) for g in symmetry.groups])
    assert certify(module, symmetry, state, good, x)["difference"] < 1e-12
    bad = {**good, "hidden.0.weight": good["hidden.0.weight"].roll(1, 0)}
    assert certify(module, symmetry, state, bad, x)["difference"] > 1e-3


def test_a_network_that_is_not_a_number_is_not_certified() -> None:
    module = models.build("mlp", (8,), 3, width=6, depth=2).eval()
    symmetry = trace(module, torch.randn(2, 8))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    broken = {**state, "head.bias": torch.full((3,), torch.nan)}
    with pytest.raises(RunFailed, match="not the same function"):
        certify_all(module, symmetry, [state, state], [state, broken], torch.randn(5, 8))


def test_a_dead_network_is_not_certified_and_not_called_wrong() -> None:
    module = models.build("mlp", (8,), 3, width=6, depth=2).eval()
    symmetry = trace(module, torch.randn(2, 8))
    dead = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    with pytest.raises(RunFailed, match="do not depend on its hidden units"):
        certify_all(module, symmetry, [dead], [dead], torch.randn(5, 8))


class Norm(nn.Module):
    """RMSNorm as Llama has it: in a type that it names, whatever comes in."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = nn.Parameter(torch.ones(width)), dtype

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.dtype)
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Named(nn.Module):
    """A perceptron that casts its inputs by name, or its units."""

    def __init__(self, inputs: torch.dtype | None, units: torch.dtype | None) -> None:
        super().__init__()
        self.a, self.b, self.inputs = nn.Linear(8, 6), nn.Linear(6, 3), inputs
        self.norm = nn.Identity() if units is None else Norm(6, units)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x if self.inputs is None else x.to(self.inputs)))))


@pytest.mark.parametrize(
    ("inputs", "units", "network", "judged"),
    [
        (None, None, torch.float32, "float64"),
        (None, None, torch.bfloat16, "float64"),
        (None, torch.float32, torch.float32, "float32"),
        (torch.float32, None, torch.float32, "float32"),
        (None, torch.float16, torch.float32, "float16"),
        (None, torch.float32, torch.float64, "float32"),
    ],
)
def test_networks_are_judged_in_the_precision_that_they_compute_in(
    inputs: torch.dtype | None, units: torch.dtype | None, network: torch.dtype, judged: str
) -> None:
    torch.manual_seed(0)
    module = Named(inputs, units).to(network).eval()
    symmetry = trace(module, torch.randn(2, 8, dtype=network))
    assert [g.size for g in symmetry.groups] == [6]
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x, moved = torch.randn(20, 8), symmetry.permute(state, [torch.tensor([3, 4, 5, 0, 1, 2])])
    found = certify_all(module, symmetry, [state], [moved], x)
    assert found["dtype"] == judged
    with pytest.raises(RunFailed, match="not the same function"):
        certify_all(module, symmetry, [state], [{**moved, "a.weight": state["a.weight"]}], x)


def test_the_control_breaks_a_tied_tensor_under_all_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.read, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(torch.relu(self.read(x)))))))

    torch.manual_seed(0)
    module = Tied().eval()
    symmetry = trace(module, torch.randn(2, 4))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    symmetry.groups.sort(key=lambda g: g.tensor)  # so that the tied one is broken, and it alone
    assert [g.tensor for g in symmetry.groups] == ["a.weight"]
    moved = symmetry.permute(state, [torch.tensor([1, 2, 3, 4, 0])])
    found = certify_all(module, symmetry, [state], [moved], torch.randn(20, 4))
    assert found["control"] > 1e-3
