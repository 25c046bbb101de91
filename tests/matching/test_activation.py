"""Activation matching against NumPy, where units are constant, and where one group stands twice along an axis."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from modeconn_cli.matching.activation import activation_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace


def test_activations_that_one_group_has_twice_are_matched_to_an_end() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 7), nn.Linear(49, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.b(torch.tanh((h[:, :, None] * h[:, None, :] + 0.3 * h[:, :, None]).flatten(1)))

    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    symmetry = trace(Products(), x)
    for seed in range(3, 7):
        torch.manual_seed(seed)
        a, b = (dict(Products().state_dict()) for _ in range(2))
        found = activation_matching(symmetry, a, b, [x])
        assert all(after >= before for before, after in itertools.pairwise(found.objective))


def test_units_that_do_not_vary_make_no_nan() -> None:
    torch.manual_seed(0)
    module = models.build("mlp", (8,), 3, width=6, depth=2).eval()
    symmetry = trace(module, torch.randn(10, 8))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["hidden.0.bias"][:3] = -100.0  # never active
    found = activation_matching(symmetry, state, state, [torch.randn(10, 8)])
    assert [sorted(p.tolist()) for p in found.permutations] == [list(range(6))] * 2
    assert all(v == v for v in found.objective)


def test_units_are_matched_as_their_correlations_or_products_say() -> None:
    """Units of other scales and offsets, so that the two differ; against NumPy on every example at once."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(60, 5)
    symmetry = trace(module, x[:30])
    a, b = ({k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in "ab")
    b["0.weight"] *= torch.logspace(-1, 1, 8)[:, None]
    hidden = [torch.relu(x @ s["0.weight"].T + s["0.bias"]).double().numpy() for s in (a, b)]
    wanted = []
    for centred in (True, False):
        alike = np.corrcoef(*hidden, rowvar=False)[:8, 8:] if centred else hidden[0].T @ hidden[1]
        found = activation_matching(symmetry, a, b, x.split(30), centred)
        wanted.append(linear_sum_assignment(alike, maximize=True)[1].tolist())
        assert found.permutations[0].tolist() == wanted[-1]
        best = float(alike[np.arange(8), wanted[-1]].sum())
        assert found.objective[-1] == pytest.approx(best, rel=1e-5)
    assert wanted[0] != wanted[1]
