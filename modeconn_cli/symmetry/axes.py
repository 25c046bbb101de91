"""Tensor dimensions as sums, products and families of index sets, and the equations between them.

A dimension of a tensor is an *axis*: a leaf (an index set of its own), a product of axes (a flattened dimension,
attention heads), a sum of axes (a concatenation) or a family (what is inside a head: an index set for each head, which
one depending on where the tensor stands along the heads). Two axes that an operation pairs index by index are unified;
a leaf that turns out to have parts is refined. What is left at the end are leaves: the pinned ones stay as they are,
each of the others may be permuted freely, everywhere at once, and the network's function does not change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Leaf:
    """An index set. ``to`` is what it was unified with or refined into; ``pinned``: its order matters."""

    size: int
    pinned: bool = False
    to: Axis | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Product:
    """Pairs, triples... of indices, the first the slowest."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """Index sets one after another."""

    parts: tuple[Axis, ...]


@dataclass(eq=False)
class Family:
    """``members[i]`` where a tensor stands at index i of ``over``, an axis it also has; all members of one size."""

    over: Axis
    members: list[Axis]
    to: Axis | None = field(default=None, repr=False)


Axis = Leaf | Product | Sum | Family


def size(axis: Axis) -> int:
    """How many indices an axis has."""
    if isinstance(axis, Leaf):
        return axis.size
    if isinstance(axis, Family):
        return size(axis.members[0])
    sizes = [size(p) for p in axis.parts]
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)


def product(parts: Sequence[Axis]) -> Axis:
    """A product without nested products and without parts of size one."""
    flat: list[Axis] = []
    for part in map(resolve, parts):
        flat += part.parts if isinstance(part, Product) else [part]
    flat = [p for p in flat if size(p) != 1]
    return flat[0] if len(flat) == 1 else Product(tuple(flat)) if flat else Leaf(1)


def concatenation(parts: Sequence[Axis]) -> Axis:
    """A sum without nested sums and without empty parts."""
    flat: list[Axis] = []
    for part in map(resolve, parts):
        flat += part.parts if isinstance(part, Sum) else [part]
    flat = [p for p in flat if size(p)]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def resolve(axis: Axis) -> Axis:
    """The axis as it is known by now, every leaf replaced by what became of it."""
    if isinstance(axis, Leaf | Family) and axis.to is not None:
        axis.to = found = resolve(axis.to)
        return found
    if isinstance(axis, Leaf):
        return axis
    if isinstance(axis, Product):
        return product(axis.parts)
    if isinstance(axis, Sum):
        return concatenation(axis.parts)
    return _resolve_family(axis)


def _resolve_family(family: Family) -> Axis:
    over = resolve(family.over)
    members = family.members = [resolve(m) for m in family.members]
    if size(family) == 1 or all(same(members[0], m) for m in members[1:]):
        family.to = members[0]
    elif isinstance(over, Product):  # of an axis that was split since: a family of families
        first, *others = over.parts
        each = len(members) // size(first)
        inner = [
            Family(restrict(product(others), first, i), members[i * each : (i + 1) * each]) for i in range(size(first))
        ]
        family.to = Family(first, [*inner])
    elif not isinstance(over, Leaf):
        _tie(family)
    else:
        for kind in (Product, Sum):
            if not all(isinstance(m, kind) for m in members):
                continue
            parts = [m.parts for m in members if isinstance(m, kind)]
            if len({tuple(map(size, p)) for p in parts}) == 1:
                family.to = kind(tuple(Family(over, [*p]) for p in zip(*parts, strict=True)))
    return family if family.to is None else resolve(family)


def same(a: Axis, b: Axis) -> bool:
    """Whether two resolved axes are the same index sets in the same arrangement."""
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        return a is b
    if type(a) is not type(b):
        return False
    if isinstance(a, Family) and isinstance(b, Family):
        return resolve(a.over) is resolve(b.over) and all(map(same, a.members, b.members))
    assert not isinstance(a, Family)
    assert not isinstance(b, Family)
    return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Every leaf of an axis, resolved."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.members if isinstance(axis, Family) else axis.parts:
            yield from leaves(part)


def families(axis: Axis) -> Iterator[Family]:
    """Every family in an axis, resolved, the outer ones first."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        return
    if isinstance(axis, Family):
        yield axis
    for part in axis.members if isinstance(axis, Family) else axis.parts:
        yield from families(part)


def collapse(axis: Axis) -> None:
    """Make all members of every family in an axis move together."""
    for family in [*families(axis)]:
        if family.to is None:
            _tie(family)


def _tie(family: Family) -> None:
    first, *others = family.members
    family.to = first
    for member in others:
        unify(first, member)


def restrict(axis: Axis, over: Axis, i: int) -> Axis:
    """An axis where ``over`` stands at index i."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        return axis
    if isinstance(axis, Family):
        if resolve(axis.over) is over:
            return restrict(axis.members[i], over, i)
        return Family(axis.over, [restrict(m, over, i) for m in axis.members])
    parts = [restrict(p, over, i) for p in axis.parts]
    return product(parts) if isinstance(axis, Product) else concatenation(parts)


def pin(axis: Axis) -> None:
    """Hold an axis in its order."""
    for leaf in leaves(axis):
        leaf.pinned = True


def unify(a: Axis, b: Axis) -> None:
    """Make two axes of one size move together; where their structures cannot be matched, both are pinned."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if size(a) != size(b):
        raise ValueError(f"axes of {size(a)} and {size(b)} indices cannot be the same")
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        leaf, other = (a, b) if isinstance(a, Leaf) else (b, a)
        assert isinstance(leaf, Leaf)
        _unify_leaf(leaf, other)
    elif isinstance(a, Family) and isinstance(b, Family) and resolve(a.over) is resolve(b.over):
        pairs = [*zip(a.members, b.members, strict=True)]
        a.to = b
        for x, y in pairs:
            unify(x, y)
    elif isinstance(a, Family) or isinstance(b, Family):
        collapse(a)
        collapse(b)
        unify(a, b)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_products(a, b)
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _unify_sums(a, b)
    else:
        total, factors = (a, b) if isinstance(a, Sum) else (b, a)
        assert isinstance(total, Sum)
        assert isinstance(factors, Product)
        split = split_sum(factors, [size(p) for p in total.parts])
        if split is None:
            pin(a)
            pin(b)
        else:
            for part, piece in zip(total.parts, split, strict=True):
                unify(part, piece)


def _unify_leaf(leaf: Leaf, other: Axis) -> None:
    if not isinstance(other, Leaf):
        inside = {*leaves(other)}
        if leaf in inside or any(leaf in leaves(f.over) for f in families(other)):
            if any(True for _ in families(other)):
                collapse(other)
                unify(leaf, other)
            else:
                pin(other)
            return
    if leaf.pinned:
        pin(other)
    leaf.to = other


def unify_all(pairs: Sequence[tuple[Axis, Axis]]) -> None:
    """Unify pairs, those that families may depend on before those that have families."""
    later = []
    for a, b in pairs:
        if any(True for x in (a, b) for _ in families(x)):
            later.append((a, b))
        else:
            unify(a, b)
    for a, b in later:
        unify(a, b)


def _unify_products(a: Product, b: Product) -> None:
    left, right = list(a.parts), list(b.parts)
    pairs: list[tuple[Axis, Axis]] = []
    while left and right:
        x, y = resolve(left.pop(0)), resolve(right.pop(0))
        if size(x) == size(y):
            pairs.append((x, y))
            continue
        (small, small_rest), (large, large_rest) = (
            ((x, left), (y, right)) if size(x) < size(y) else ((y, right), (x, left))
        )
        parts = split_product(large, size(small))
        if parts is None:
            for axis in (a, b):
                pin(axis)
            return
        large_rest[:0] = parts
        small_rest.insert(0, small)
    unify_all(pairs)


def _unify_sums(a: Sum, b: Sum) -> None:
    ends: set[int] = set()
    for axis in (a, b):
        at = 0
        for part in axis.parts:
            at += size(part)
            ends.add(at)
    cuts = sorted(ends)
    sizes = [e - s for s, e in zip([0, *cuts], cuts, strict=False)]
    pieces = [split_sum(axis, sizes) for axis in (a, b)]
    if pieces[0] is None or pieces[1] is None:
        pin(a)
        pin(b)
        return
    for x, y in zip(*pieces, strict=True):
        unify(x, y)


def split_product(axis: Axis, first: int) -> list[Axis] | None:
    """An axis as a product of a first factor of this size and the rest; None where it cannot be."""
    axis = resolve(axis)
    n = size(axis)
    if first == n:
        return [axis, Leaf(1)]
    if first == 1:
        return [Leaf(1), axis]
    if n % first:
        return None
    if isinstance(axis, Leaf):
        outer = Leaf(first, axis.pinned)
        # What is inside may differ from one outer index to the next until something says that it does not.
        inner = Leaf(n // first, True) if axis.pinned else Family(outer, [Leaf(n // first) for _ in range(first)])
        axis.to = Product((outer, inner))
        return [outer, inner]
    if isinstance(axis, Family):
        pairs = [split_product(m, first) for m in axis.members]
        whole = [p for p in pairs if p is not None]
        if len(whole) < len(pairs):
            return None
        return [Family(axis.over, [p[k] for p in whole]) for k in (0, 1)]
    if isinstance(axis, Product):
        head: list[Axis] = []
        rest = list(axis.parts)
        want = first
        while want > 1:
            part = rest.pop(0)
            if want % size(part) == 0:
                head.append(part)
                want //= size(part)
                continue
            pair = split_product(part, want)
            if pair is None:
                return None
            head.append(pair[0])
            rest.insert(0, pair[1])
            want = 1
        return [product(head), product(rest)]
    pieces = split_sum(axis, [n // first] * first)
    if pieces is None:
        return None
    outer = Leaf(first, pinned=True)
    return [outer, Family(outer, pieces)]


def split_sum(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """An axis as a concatenation of pieces of these sizes; None where it cannot be."""
    axis = resolve(axis)
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, Leaf):
        parts: list[Axis] = [Leaf(s, axis.pinned) for s in sizes]
        axis.to = Sum(tuple(parts))
        return parts
    if isinstance(axis, Family):
        each = [split_sum(m, sizes) for m in axis.members]
        whole = [p for p in each if p is not None]
        if len(whole) < len(each):
            return None
        return [Family(axis.over, [p[k] for p in whole]) for k in range(len(sizes))]
    if isinstance(axis, Sum):
        rest = list(axis.parts)
        pieces: list[Axis] = []
        for want in sizes:
            taken: list[Axis] = []
            while want:
                part = rest.pop(0)
                if size(part) > want:
                    pair = split_sum(part, [want, size(part) - want])
                    if pair is None:
                        return None
                    part = pair[0]
                    rest.insert(0, pair[1])
                taken.append(part)
                want -= size(part)
            pieces.append(concatenation(taken))
        return pieces
    first, *others = axis.parts
    inner = math.prod(size(p) for p in others)
    odd = next((at for at in itertools.accumulate(sizes) if at % inner), None)
    if odd is None:
        return _cut_first(axis, [s // inner for s in sizes])
    # A cut inside one index of the first factor: that index apart, it is a cut of the other factors.
    before = odd // inner
    lengths = [n for n in (before, 1, size(first) - before - 1) if n]
    apart = _cut_first(axis, lengths)
    return None if apart is None else split_sum(concatenation(apart), sizes)


def _cut_first(axis: Product, lengths: Sequence[int]) -> list[Axis] | None:
    """A product as pieces, its first factor cut into these lengths; families over that factor are cut with it."""
    first, *others = map(resolve, axis.parts)
    if not isinstance(first, Leaf):
        for part in others:
            for family in [*families(part)]:
                if family.to is None and any(leaf in [*leaves(first)] for leaf in leaves(family.over)):
                    collapse(family)
        cut = split_sum(first, lengths)
        return None if cut is None else [product([c, *others]) for c in cut]
    ends = [*itertools.accumulate(lengths, initial=0)]
    kept: list[list[Callable[[Axis], Axis]]] = []

    def piece(part: Axis, start: int, stop: int) -> Callable[[Axis], Axis]:
        part = resolve(part)
        if isinstance(part, Family) and resolve(part.over) is first:
            members = part.members[start:stop]
            return lambda over: members[0] if len(members) == 1 else Family(over, members)
        if any(resolve(f.over) is first for f in families(part)):
            collapse(part)
        return lambda over: part

    for start, stop in itertools.pairwise(ends):
        kept.append([piece(part, start, stop) for part in others])
    cut = split_sum(first, lengths)
    if cut is None:
        return None
    return [product([c, *(make(c) for make in makes)]) for c, makes in zip(cut, kept, strict=True)]


# ----------------------------------------------------------------------------------------- where leaves are in a tensor


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
class _Spot:
    axis: Axis
    dim: int
    at: Tensor
    within: tuple[tuple[int, Tensor], ...]


def places(axes: Sequence[Axis]) -> list[Place]:
    """Every place where a leaf runs along a tensor of these axes, a leaf before those that depend on it."""
    return _find(axes)[0]


def homeless(axes: Sequence[Axis]) -> list[Family]:
    """The families of a tensor of which it does not say, or not clearly, at what index of ``over`` it stands."""
    return _find(axes)[1]


def _find(axes: Sequence[Axis]) -> tuple[list[Place], list[Family]]:
    sizes = [size(a) for a in axes]
    known = [
        spot for d, axis in enumerate(axes) for spot in _spots(_Spot(axis, d, torch.arange(sizes[d])[:, None], ()))
    ]
    found: list[Place] = []
    lost: list[Family] = []
    todo = list(known)
    while todo:
        spot = todo.pop(0)
        if isinstance(spot.axis, Leaf):
            found.append(Place(spot.axis, spot.dim, spot.at, spot.within))
            continue
        assert isinstance(spot.axis, Family)
        home = _home(spot, known, sizes)
        if home is None:
            lost.append(spot.axis)
            continue
        for i, member in enumerate(spot.axis.members):
            if home.dim == spot.dim:
                here = _among(spot.at[0], home.at[i])
                at, within = spot.at[:, here], spot.within
            else:
                at, within = spot.at, (*spot.within, (home.dim, home.at[i]))
            if at.shape[1]:
                new = _spots(_Spot(member, spot.dim, at, within))
                known += new
                todo += new
    return found, lost


def _home(spot: _Spot, known: Sequence[_Spot], sizes: Sequence[int]) -> _Spot | None:
    """Where the index that a family depends on runs: along its own dimension, else along one other."""
    assert isinstance(spot.axis, Family)
    over = resolve(spot.axis.over)
    candidates = [s for s in known if s.axis is over and _implied(s.within, spot.within)]
    here = [s for s in candidates if s.dim == spot.dim and bool(_among(spot.at, s.at).all())]
    if here:
        return here[0] if len(here) == 1 else None
    there = [s for s in candidates if s.dim != spot.dim and s.at.numel() == sizes[s.dim]]
    return there[0] if len(there) == 1 and len(candidates) == 1 else None


def _among(at: Tensor, positions: Tensor) -> Tensor:
    return torch.isin(at.contiguous(), positions.contiguous())


Within = Sequence[tuple[int, Tensor]]


def _implied(wide: Within, narrow: Within) -> bool:
    """Whether every bound of one place is also one of another."""
    return all(any(d == e and torch.equal(at, to) for e, to in narrow) for d, at in wide)


def _spots(spot: _Spot) -> list[_Spot]:
    """Leaves and families along one dimension, each with the positions of its indices."""
    axis = resolve(spot.axis)
    if isinstance(axis, Leaf | Family):
        return [_Spot(axis, spot.dim, spot.at, spot.within)]
    found: list[_Spot] = []
    if isinstance(axis, Sum):
        start = 0
        for part in axis.parts:
            n = size(part)
            found += _spots(_Spot(part, spot.dim, spot.at[start : start + n], spot.within))
            start += n
        return found
    for k, part in enumerate(axis.parts):
        outer = math.prod(size(p) for p in axis.parts[:k])
        n = size(part)
        at = spot.at.view(outer, n, -1, spot.at.shape[1]).movedim(1, 0).reshape(n, -1)
        found += _spots(_Spot(part, spot.dim, at, spot.within))
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
    """A tensor with every index of a leaf replaced by a mixture of its indices, by the rows of ``matrix``."""
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
