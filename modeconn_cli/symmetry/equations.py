"""Equations between axes, and what axes turn out to be by them.

Two axes that an operation pairs index by index are unified; a leaf that turns out to have parts is refined into them.
An axis is *resolved* when every leaf in it has been replaced by what became of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from modeconn_cli.symmetry.axes import MISFIT, Action, Axes, Axis, Dependent, Leaf, Product, Sum, fixed, size


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
    if isinstance(axis, Leaf | Dependent) and axis.to is not None:
        axis.to = found = resolve(axis.to)
        return found
    if isinstance(axis, Leaf):
        return axis
    if isinstance(axis, Product):
        return product(axis.parts)
    if isinstance(axis, Sum):
        return concatenation(axis.parts)
    return _resolve_dependent(axis)


def _resolve_dependent(dependent: Dependent) -> Axis:
    over = resolve(dependent.over)
    members = dependent.members = [*map(resolve, dependent.members)]
    if size(dependent) == 1 or all(same(members[0], m) for m in members[1:]):
        dependent.to = members[0]
    elif isinstance(over, Product):  # of an axis that was split since: dependent twice
        first, *others = over.parts
        each = len(members) // size(first)
        rest = product(others)
        inner = [restrict(rest, first, i) for i in range(size(first))]
        dependent.to = Dependent(first, [Dependent(x, members[i * each :][:each]) for i, x in enumerate(inner)])
    elif not isinstance(over, Leaf):
        _merge_members(dependent)
    else:
        for kind in (Product, Sum):
            if not all(isinstance(m, kind) for m in members):
                continue
            parts = [m.parts for m in members if isinstance(m, kind)]
            if len({tuple(map(size, p)) for p in parts}) == 1:
                dependent.to = kind(tuple(Dependent(over, [*p]) for p in zip(*parts, strict=True)))
    return dependent if dependent.to is None else resolve(dependent)


def same(a: Axis, b: Axis) -> bool:
    """Whether two resolved axes are the same index sets in the same arrangement."""
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        return a is b
    if type(a) is not type(b):
        return False
    if isinstance(a, Dependent) and isinstance(b, Dependent):
        return resolve(a.over) is resolve(b.over) and all(map(same, a.members, b.members))
    assert not isinstance(a, Dependent)
    assert not isinstance(b, Dependent)
    return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Every leaf of an axis, resolved."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.members if isinstance(axis, Dependent) else axis.parts:
            yield from leaves(part)


def dependents(axis: Axis) -> Iterator[Dependent]:
    """Every dependent axis in an axis, resolved, the outer ones first."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        return
    if isinstance(axis, Dependent):
        yield axis
    for part in axis.members if isinstance(axis, Dependent) else axis.parts:
        yield from dependents(part)


def collapse(axis: Axis) -> None:
    """Make all members of every dependent axis in an axis move together."""
    for dependent in [*dependents(axis)]:
        if dependent.to is None:
            _merge_members(dependent)


def _merge_members(dependent: Dependent) -> None:
    first, *others = dependent.members
    dependent.to = first
    for member in others:
        unify(first, member)


def restrict(axis: Axis, over: Axis, i: int) -> Axis:
    """An axis where ``over`` stands at index i."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        return axis
    if isinstance(axis, Dependent):
        if resolve(axis.over) is over:
            return restrict(axis.members[i], over, i)
        return Dependent(axis.over, [restrict(m, over, i) for m in axis.members])
    parts = [restrict(p, over, i) for p in axis.parts]
    return product(parts) if isinstance(axis, Product) else concatenation(parts)


def limit(axis: Axis, action: Action, held_by: str | None = None) -> None:
    """Let no more than this act on an axis."""
    for leaf in leaves(axis):
        if action < leaf.action:
            leaf.action, leaf.held_by = action, held_by


def pin(axis: Axis, held_by: str | None = None) -> None:
    """Hold an axis in its order; by an operation, where that is worth a name."""
    limit(axis, Action.fixed, held_by)


def unify(a: Axis, b: Axis) -> None:
    """Make two axes of one size move together; where their structures cannot be matched, both are pinned.

    Raises:
        ValueError: they differ in size.

    >>> channels, flat = Leaf(3), Leaf(12)
    >>> unify(product([channels, fixed(4)]), flat)
    >>> [leaf is channels for leaf in leaves(flat)]
    [True, False]
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if size(a) != size(b):
        raise ValueError(f"axes of {size(a)} and {size(b)} indices cannot be the same")
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        leaf, other = (a, b) if isinstance(a, Leaf) else (b, a)
        assert isinstance(leaf, Leaf)
        _unify_leaf(leaf, other)
    elif isinstance(a, Dependent) and isinstance(b, Dependent) and resolve(a.over) is resolve(b.over):
        pairs = [*zip(a.members, b.members, strict=True)]
        a.to = b
        for x, y in pairs:
            unify(x, y)
    elif isinstance(a, Dependent) or isinstance(b, Dependent):
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
            pin(a, MISFIT)
            pin(b, MISFIT)
        else:
            for part, piece in zip(total.parts, split, strict=True):
                unify(part, piece)


def _unify_leaf(leaf: Leaf, other: Axis) -> None:
    if not isinstance(other, Leaf):
        inside = {*leaves(other)}
        if leaf in inside or any(leaf in leaves(f.over) for f in dependents(other)):
            if any(True for _ in dependents(other)):
                collapse(other)
                unify(leaf, other)
            else:
                pin(other, MISFIT)
            return
    limit(other, leaf.action, leaf.held_by)
    for held in leaves(other) if leaf.pinned and leaf.held_by is None else ():
        held.held_by = None
    leaf.to = other


def unify_all(pairs: Sequence[tuple[Axis, Axis]]) -> None:
    """Unify pairs, those that dependent axes may depend on before those that have dependent axes."""
    later = []
    for a, b in pairs:
        if any(True for x in (a, b) for _ in dependents(x)):
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
                pin(axis, MISFIT)
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
        pin(a, MISFIT)
        pin(b, MISFIT)
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
        outer = Leaf(first, axis.action, held_by=axis.held_by)
        # What is inside may differ from one outer index to the next until something says that it does not.
        members: list[Axis] = [Leaf(n // first, axis.action) for _ in range(first)]
        inner = fixed(n // first, axis.held_by) if axis.pinned else Dependent(outer, members)
        axis.to = Product((outer, inner))
        return [outer, inner]
    if isinstance(axis, Dependent):
        pairs = [split_product(m, first) for m in axis.members]
        whole = [p for p in pairs if p is not None]
        if len(whole) < len(pairs):
            return None
        return [Dependent(axis.over, [p[k] for p in whole]) for k in (0, 1)]
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
    outer = fixed(first)
    return [outer, Dependent(outer, pieces)]


def split_sum(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """An axis as a concatenation of pieces of these sizes; None where it cannot be."""
    axis = resolve(axis)
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, Leaf):
        parts: list[Axis] = [Leaf(s, axis.action, held_by=axis.held_by) for s in sizes]
        axis.to = Sum(tuple(parts))
        return parts
    if isinstance(axis, Dependent):
        each = [split_sum(m, sizes) for m in axis.members]
        whole = [p for p in each if p is not None]
        if len(whole) < len(each):
            return None
        return [Dependent(axis.over, [p[k] for p in whole]) for k in range(len(sizes))]
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
    """A product as pieces, its first factor cut into these lengths; dependent axes over that factor are cut with it."""
    first, *others = map(resolve, axis.parts)
    if not isinstance(first, Leaf):
        for part in others:
            for dependent in [*dependents(part)]:
                if dependent.to is None and any(leaf in [*leaves(first)] for leaf in leaves(dependent.over)):
                    collapse(dependent)
        cut = split_sum(first, lengths)
        return None if cut is None else [product([c, *others]) for c in cut]
    ends = [*itertools.accumulate(lengths, initial=0)]
    kept: list[list[Callable[[Axis], Axis]]] = []

    def piece(part: Axis, start: int, stop: int) -> Callable[[Axis], Axis]:
        part = resolve(part)
        if isinstance(part, Dependent) and resolve(part.over) is first:
            members = part.members[start:stop]
            return lambda over: members[0] if len(members) == 1 else Dependent(over, members)
        if any(resolve(f.over) is first for f in dependents(part)):
            collapse(part)
        return lambda over: part

    for start, stop in itertools.pairwise(ends):
        kept.append([piece(part, start, stop) for part in others])
    cut = split_sum(first, lengths)
    if cut is None:
        return None
    return [product([c, *(make(c) for make in makes)]) for c, makes in zip(cut, kept, strict=True)]


def regroup(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes of a tensor whose elements are laid out anew in another shape; None where structures do not allow."""
    rest = [a for a in axes if size(a) != 1]
    out: Axes = []
    for n in shape:
        taken: list[Axis] = []
        while math.prod(size(t) for t in taken) < n:
            part = resolve(rest.pop(0))
            want = n // math.prod(size(t) for t in taken)
            if isinstance(part, Product):
                rest[:0] = part.parts
                continue
            if size(part) > want:
                pair = split_product(part, want)
                if pair is None:
                    return None
                part = pair[0]
                rest.insert(0, pair[1])
            elif want % size(part):
                return None
            taken.append(part)
        out.append(product(taken) if taken else Leaf(1))
    return out
