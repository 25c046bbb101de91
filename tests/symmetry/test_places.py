"""Where index sets run along a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, Dependent, Leaf, size
from modeconn_cli.symmetry.equations import (
    leaves,
    product,
    split_product,
)
from modeconn_cli.symmetry.places import permuted, places, unplaced


def along(axis: Axis, permutations: dict[Leaf, Tensor]) -> Tensor:
    """Where each new index of an axis comes from."""
    return permuted(torch.arange(size(axis)), places([axis]), permutations)


def test_what_is_inside_an_index_moves_there_alone_and_goes_where_it_goes() -> None:
    heads, inner = split_product(Leaf(6), 2) or []
    assert isinstance(inner, Dependent)
    first, second = leaves(inner)
    moved = along(product([heads, inner]), {heads: torch.tensor([1, 0]), first: torch.tensor([2, 0, 1])})  # type: ignore[dict-item]
    assert moved.tolist() == [5, 3, 4, 0, 1, 2]
    # Over two dimensions: row i is permuted as its own member says.
    grid = torch.arange(6).view(2, 3)
    turned = permuted(grid, places([heads, inner]), {second: torch.tensor([1, 2, 0])})
    assert turned.tolist() == [[0, 1, 2], [4, 5, 3]]
    assert unplaced([inner]) == [inner]
    assert unplaced([heads, inner]) == unplaced([product([heads, inner])]) == []
