"""The best midpoint so far, by a loss that is worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modeconn_cli.matching.midpoint import BestMidpoint, Parameters
from modeconn_cli.symmetry.graph import trace


def test_the_lowest_midpoint_is_kept_from_none_on_and_every_check_is_told() -> None:
    module = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    symmetry = trace(module, torch.randn(2, 1))
    a = {"0.weight": torch.tensor([[0.0], [2.0], [4.0]]), "2.weight": torch.zeros(1, 3)}
    b = {"0.weight": torch.tensor([[2.0], [4.0], [0.0]]), "2.weight": torch.zeros(1, 3)}

    def check(parameters: Parameters) -> float:
        """How far units of the midpoint are from A's."""
        return float((parameters["0.weight"] - a["0.weight"]).abs().sum())

    best = BestMidpoint(symmetry, a, b, check)
    tried = [[1, 0, 2], [2, 0, 1], [0, 2, 1]]
    for order in tried:
        best.try_out([torch.tensor(order)])
    found = best.matching()
    assert found.objective == [4, 4, 0, 2]
    assert [p.tolist() for p in found.permutations] == [[2, 0, 1]]
    assert (found.before, found.after) == (4, 0)
    again = BestMidpoint(symmetry, a, b, check)
    again.load(best.state())
    again.try_out([torch.tensor([0, 1, 2])])
    assert again.matching().objective == [4, 4, 0, 2, 4]
    assert again.matching().after == pytest.approx(0)
