"""Tensor dimensions as sums and products of index sets, and the equations between them.

A dimension of a tensor is an *axis*: a leaf (an index set of its own), a product of axes (a flattened dimension,
attention heads) or a sum of axes (a concatenation). Two axes that an operation pairs index by index are unified; a leaf
that turns out to be a product or a sum is refined. What is left at the end are leaves: the pinned ones stay as they
are, each of the others may be permuted freely, everywhere at once, and the network's function does not change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
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


Axis = Leaf | Product | Sum


def size(axis: Axis) -> int:
    """How many indices an axis has."""
    if isinstance(axis, Leaf):
        return axis.size
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
    if isinstance(axis, Leaf):
        if axis.to is None:
            return axis
        found = resolve(axis.to)
        axis.to = found
        return found
    return product(axis.parts) if isinstance(axis, Product) else concatenation(axis.parts)


def leaves(axis: Axis) -> Iterator[Leaf]:
    """Every leaf of an axis, resolved."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


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
        if not isinstance(other, Leaf) and any(part is leaf for part in leaves(other)):
            pin(other)
            return
        if leaf.pinned:
            pin(other)
        leaf.to = other
        return
    if isinstance(a, Product) and isinstance(b, Product):
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


def _unify_products(a: Product, b: Product) -> None:
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = resolve(left.pop(0)), resolve(right.pop(0))
        if size(x) == size(y):
            unify(x, y)
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
        parts: list[Axis] = [Leaf(first, axis.pinned), Leaf(n // first, axis.pinned)]
        axis.to = Product(tuple(parts))
        return parts
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
    # Equal pieces one after another are a product, once they move together.
    sizes = [n // first] * first
    pieces = split_sum(axis, sizes)
    if pieces is None:
        return None
    for piece in pieces[1:]:
        unify(pieces[0], piece)
    return [Leaf(first, pinned=True), resolve(pieces[0])]


def split_sum(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """An axis as a concatenation of pieces of these sizes; None where it cannot be."""
    axis = resolve(axis)
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, Leaf):
        parts: list[Axis] = [Leaf(s, axis.pinned) for s in sizes]
        axis.to = Sum(tuple(parts))
        return parts
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
        cut = split_sum(first, [s // inner for s in sizes])
        return None if cut is None else [product([c, *others]) for c in cut]
    # A cut inside one index of the first factor: that index apart, it is a cut of the other factors.
    before = odd // inner
    lengths = [n for n in (before, 1, size(first) - before - 1) if n]
    apart = split_sum(first, lengths)
    return None if apart is None else split_sum(concatenation([product([c, *others]) for c in apart]), sizes)


def index(axis: Axis, permutations: dict[Leaf, Tensor]) -> Tensor:
    """Where each new index of an axis comes from, (size,), given what each leaf's new indices come from."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        found = permutations.get(axis)
        return torch.arange(axis.size) if found is None else found
    parts = [index(p, permutations) for p in axis.parts]
    if isinstance(axis, Sum):
        starts = [0]
        for p in parts:
            starts.append(starts[-1] + len(p))
        return torch.cat([p + s for p, s in zip(parts, starts, strict=False)])
    whole = parts[0]
    for p in parts[1:]:
        whole = (whole[:, None] * len(p) + p[None, :]).reshape(-1)
    return whole


def positions(axis: Axis) -> list[tuple[Leaf, Tensor]]:
    """Every place where a leaf runs along an axis: (leaf, (size, m) flat positions of each of its indices)."""
    axis = resolve(axis)
    if isinstance(axis, Leaf):
        return [(axis, torch.arange(axis.size)[:, None])]
    found: list[tuple[Leaf, Tensor]] = []
    if isinstance(axis, Sum):
        start = 0
        for part in axis.parts:
            found += [(leaf, at + start) for leaf, at in positions(part)]
            start += size(part)
        return found
    for k, part in enumerate(axis.parts):
        outer = math.prod(size(p) for p in axis.parts[:k])
        inner = math.prod(size(p) for p in axis.parts[k + 1 :])
        for leaf, at in positions(part):
            slow = torch.arange(outer)[None, :, None, None] * (size(part) * inner)
            fast = torch.arange(inner)[None, None, None, :]
            found.append((leaf, (slow + at[:, None, :, None] * inner + fast).reshape(len(at), -1)))
    return found
