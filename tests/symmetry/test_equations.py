"""Equations between axes: what is unified moves together, and any cut or regrouping agrees with torch."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, Leaf, fixed, size
from modeconn_cli.symmetry.equations import (
    concatenation,
    leaves,
    pin,
    product,
    regroup,
    split_product,
    split_sum,
    unify,
)
from modeconn_cli.symmetry.places import permuted, places


def along(axis: Axis, permutations: dict[Leaf, Tensor]) -> Tensor:
    """Where each new index of an axis comes from."""
    return permuted(torch.arange(size(axis)), places([axis]), permutations)


def test_a_flattened_dimension_is_the_product_of_its_parts() -> None:
    channels, height, width = Leaf(3), fixed(2), fixed(2)
    flat = Leaf(12)
    unify(product([channels, height, width]), flat)
    moved = along(flat, {channels: torch.tensor([2, 0, 1])})
    expected = torch.arange(12).view(3, 2, 2)[[2, 0, 1]].reshape(-1)
    assert torch.equal(moved, expected)


def test_a_concatenation_moves_part_by_part() -> None:
    a, b = Leaf(2), Leaf(3)
    whole = Leaf(5)
    unify(whole, concatenation([a, b]))
    moved = along(whole, {a: torch.tensor([1, 0]), b: torch.tensor([0, 2, 1])})
    assert moved.tolist() == [1, 0, 2, 4, 3]


def test_sums_with_different_cuts_are_cut_at_both() -> None:
    a, b, c, d = Leaf(2), Leaf(4), Leaf(3), Leaf(3)
    unify(concatenation([a, b]), concatenation([c, d]))
    assert [size(x) for x in leaves(concatenation([a, b]))] == [2, 1, 3]
    assert [*leaves(concatenation([a, b]))] == [*leaves(concatenation([c, d]))]


def test_pinning_reaches_what_a_leaf_became() -> None:
    whole = Leaf(6)
    parts = split_product(whole, 2)
    assert parts is not None
    pin(parts[1])
    assert [leaf.pinned for leaf in leaves(whole)] == [False, True, True]
    other = fixed(6)
    unify(whole, other)
    assert all(leaf.pinned for leaf in leaves(whole))


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@given(SHAPES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_regrouping_agrees_with_reshape(shape: list[int], random: object) -> None:
    """Permuting factors before a reshape is permuting the reshaped axes after it."""
    axes: list[Axis] = [Leaf(n) for n in shape]
    total = math.prod(shape)
    for target in ([total], [*shape[:1], total // shape[0]], [total // shape[-1], shape[-1]], shape):
        regrouped = regroup(axes, target)
        assert regrouped is not None
        free = [leaf for axis in axes for leaf in leaves(axis) if leaf.size > 1]
        generator = torch.Generator().manual_seed(total)
        permutations = {leaf: torch.randperm(leaf.size, generator=generator) for leaf in free}
        x = torch.arange(total).view(shape)
        moved = permuted(x, places(axes), permutations)
        after = permuted(x.reshape(target), places(regrouped), permutations)
        assert torch.equal(moved.reshape(target), after)


@given(st.integers(2, 5), st.integers(2, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_of_a_product_is_a_sum(first: int, second: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, first * second - 1))
    a, b = Leaf(first), Leaf(second)
    whole = product([a, b])
    pieces = split_sum(whole, [at, first * second - at])
    assert pieces is not None
    free = [*dict.fromkeys(leaves(concatenation(pieces)))]
    permutations = {leaf: torch.randperm(leaf.size) for leaf in free}
    moved = along(whole, permutations)
    assert sorted(moved.tolist()) == list(range(first * second))
    assert {*moved[:at].tolist()} == set(range(at))
    for place in places([whole]):
        assert place.at.shape[0] == place.leaf.size
        assert len(place.at.unique()) == place.at.numel()
