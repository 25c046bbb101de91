"""The certificate tells the same function from another one, and from a network that computes nothing."""

from __future__ import annotations

import pytest
import torch

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
