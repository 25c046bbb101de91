"""Where index sets run along a tensor, and what acting on them does to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, Dependent, Leaf, Sum, size
from modeconn_cli.symmetry.equations import resolve


@dataclass(frozen=True)
class Place:
    """Where a leaf runs along a tensor: (size, m) flat positions of its indices along ``dim``.

    within: of the other dimensions, the positions (n,) where this holds; everywhere along those that are not named.
    """

    leaf: Leaf
    dim: int
    at: Tensor
    within: tuple[tuple[int, Tensor], ...] = ()


@dataclass(frozen=True)
class _Span:
    """An axis that is not resolved into leaves yet, with what :class:`Place` says of a leaf."""

    axis: Axis
    dim: int
    at: Tensor
    within: tuple[tuple[int, Tensor], ...]


def places(axes: Sequence[Axis]) -> list[Place]:
    """Every place where a leaf runs along a tensor of these axes, a leaf before those that depend on it."""
    return _find(axes)[0]


def unplaced(axes: Sequence[Axis]) -> list[Dependent]:
    """The dependent axes of a tensor that does not say, or not clearly, at what index of ``over`` it stands."""
    return _find(axes)[1]


def _find(axes: Sequence[Axis]) -> tuple[list[Place], list[Dependent]]:
    sizes = [size(a) for a in axes]
    known = [
        span for d, axis in enumerate(axes) for span in _spans(_Span(axis, d, torch.arange(sizes[d])[:, None], ()))
    ]
    found: list[Place] = []
    lost: list[Dependent] = []
    todo = list(known)
    while todo:
        span = todo.pop(0)
        if isinstance(span.axis, Leaf):
            found.append(Place(span.axis, span.dim, span.at, span.within))
            continue
        assert isinstance(span.axis, Dependent)
        home = _place_of_over(span, known, sizes)
        if home is None:
            lost.append(span.axis)
            continue
        for i, member in enumerate(span.axis.members):
            if home.dim == span.dim:
                here = _among(span.at[0], home.at[i])
                at, within = span.at[:, here], span.within
            else:
                at, within = span.at, (*span.within, (home.dim, home.at[i]))
            if at.shape[1]:
                new = _spans(_Span(member, span.dim, at, within))
                known += new
                todo += new
    return found, lost


def _place_of_over(span: _Span, known: Sequence[_Span], sizes: Sequence[int]) -> _Span | None:
    """Where the index that an axis depends on runs: along its own dimension, else along one other."""
    assert isinstance(span.axis, Dependent)
    over = resolve(span.axis.over)
    candidates = [s for s in known if s.axis is over and _implied(s.within, span.within)]
    here = [s for s in candidates if s.dim == span.dim and bool(_among(span.at, s.at).all())]
    if here:
        return here[0] if len(here) == 1 else None
    there = [s for s in candidates if s.dim != span.dim and s.at.numel() == sizes[s.dim]]
    return there[0] if len(there) == 1 and len(candidates) == 1 else None


def _among(at: Tensor, positions: Tensor) -> Tensor:
    return torch.isin(at.contiguous(), positions.contiguous())


Within = Sequence[tuple[int, Tensor]]


def _implied(wide: Within, narrow: Within) -> bool:
    """Whether every bound of one place is also one of another."""
    return all(any(d == e and torch.equal(at, to) for e, to in narrow) for d, at in wide)


def _spans(span: _Span) -> list[_Span]:
    """Leaves and dependent axes along one dimension, each with the positions of its indices."""
    axis = resolve(span.axis)
    if isinstance(axis, Leaf | Dependent):
        return [_Span(axis, span.dim, span.at, span.within)]
    found: list[_Span] = []
    if isinstance(axis, Sum):
        start = 0
        for part in axis.parts:
            n = size(part)
            found += _spans(_Span(part, span.dim, span.at[start : start + n], span.within))
            start += n
        return found
    for k, part in enumerate(axis.parts):
        outer = math.prod(size(p) for p in axis.parts[:k])
        n = size(part)
        at = span.at.view(outer, n, -1, span.at.shape[1]).movedim(1, 0).reshape(n, -1)
        found += _spans(_Span(part, span.dim, at, span.within))
    return found


def permuted(value: Tensor, along: Sequence[Place], permutations: Mapping[Leaf, Tensor]) -> Tensor:
    """A tensor with its leaves permuted: each new index of a leaf comes from the one that ``permutations`` names.

    Args:
        along: the tensor's :func:`places`.
    """
    moves = [p for p in along if p.leaf in permutations]
    for dim in range(value.dim()):
        source = torch.arange(value.shape[dim])
        for place in moves:
            if place.dim == dim and not place.within:
                source = source[sources(place, permutations[place.leaf], value.shape[dim])]
        if not torch.equal(source, torch.arange(len(source))):
            value = value.index_select(dim, source.to(value.device))
    for place in moves:
        if place.within:
            value = _inside(value, place.within, lambda part, p=place: _shuffled(part, p, permutations[p.leaf]))  # type: ignore[misc]
    return value


def _shuffled(value: Tensor, place: Place, permutation: Tensor) -> Tensor:
    return value.index_select(place.dim, sources(place, permutation, value.shape[place.dim]).to(value.device))


def sources(place: Place, permutation: Tensor, length: int) -> Tensor:
    """Where each position (length,) of a dimension comes from when a leaf that runs along it is permuted."""
    found = torch.arange(length)
    found[place.at] = place.at[permutation]
    return found


def _inside(value: Tensor, within: Within, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor in which a part of it is changed."""
    if not within:
        return change(value)
    (dim, at), *others = within
    at = at.to(value.device)
    return value.index_copy(dim, at, _inside(value.index_select(dim, at), others, change))


def mixed(value: Tensor, place: Place, matrix: Tensor) -> Tensor:
    """A tensor with every index of a leaf replaced by a mixture of all, by the rows of ``matrix`` (size, size)."""
    return _replaced(value, place, lambda indices: matrix @ indices)


def averaged(value: Tensor, place: Place) -> Tensor:
    """A tensor with every index of a leaf replaced by the mean of its indices."""
    return _replaced(value, place, lambda indices: indices.mean(0).expand_as(indices))


def _replaced(value: Tensor, place: Place, new: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor with other indices of a leaf, made of those that it has (size, everything else)."""

    def replace(part: Tensor) -> Tensor:
        at = place.at.to(value.device)
        x = part.movedim(place.dim, 0)
        found = new(x[at.reshape(-1)].reshape(len(at), -1)).reshape(at.numel(), *x.shape[1:])
        if at.numel() == len(x) and torch.equal(at.reshape(-1), torch.arange(len(x), device=at.device)):
            return found.movedim(0, place.dim)
        return x.index_copy(0, at.reshape(-1), found).movedim(0, place.dim)

    return _inside(value, place.within, replace)
