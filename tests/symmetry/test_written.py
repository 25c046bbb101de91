"""Groups as a text."""

from __future__ import annotations

import pytest
import torch
from symmetric_networks import (
    OURS,
    differs,
    shuffled,
    stirred,
)
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.written import read_groups, write_groups
from modeconn_cli.torchvision_compat import import_torchvision


@pytest.mark.parametrize("name", [*OURS, "packed"])
def test_groups_that_are_written_are_read_again(name: str) -> None:
    if name == "packed":
        module = import_torchvision().models.VisionTransformer(32, 8, 1, 3, 24, 48, num_classes=5)
    else:
        module = models.build(OURS[name][0], (3, 32, 32), 10, **OURS[name][1])
    x = torch.randn(2, 3, 32, 32)
    symmetry, module = trace(module, x), stirred(module)
    again = read_groups(write_groups(symmetry, module.state_dict()), module.state_dict(), "a file")
    assert [g.size for g in again.groups] == [g.size for g in symmetry.groups]
    moved = again.permute(module.double().state_dict(), shuffled(again))
    assert differs(module, moved, x) < 1e-11


WRONG = {
    "a: [": "not YAML",
    "a: [1\nb: 2": "not YAML: .* in line 2, column 2",
    "a: \x01": "not YAML: unacceptable character",
    "- a": "names no tensor",
    "wait: [a, b]": "no tensor 'wait'",
    "0.weight: [a]": "give a list of 2",
    "0.weight: [a!, b]": "is no dimension",
    "0.weight: [7, b]": "has 5 indices, and what is written has 7",
    "0.weight: [5 * a + 1, b]": "are no multiple of 5",
    "0.weight: [a * b, c]": "leave the size of a open",
    "0.weight: [a:5, a:4]": "two index sets",
    "0.weight: [a:5, b:4(c)]": "no dimension runs along c",
    "{0.weight: [a, b], 2.weight: [3, d(a)]}": "an index set for each of a, and no one dimension",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_text_that_does_not_fit_says_where(text: str) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(UserError, match=WRONG[text]):
        read_groups(text, module.state_dict(), "groups.yaml")
