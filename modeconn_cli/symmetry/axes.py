"""What a tensor's dimension is made of: index sets, and sums, products and dependent families of them.

A dimension of a tensor is an *axis*: a leaf (an index set of its own), a product of axes (a flattened dimension,
attention heads), a sum of axes (a concatenation) or a dependent axis (what is inside a head: an index set for each
head, which one depending on where the tensor stands along the heads). Equations between axes say which are the
same; what is left at the end are leaves, each of which may be acted on freely, everywhere at once, and the network's
function does not change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

MISFIT = "dimensions divided in two ways"  # holds axes that cannot be matched, until the operation is known


class Action(IntEnum):
    """Which matrices may act on an index set; each kind includes those before it.

    A ReLU lets a permutation through, a tanh also signs, RMSNorm without a scale any orthogonal matrix, and between two
    linear maps every invertible one may stand. The graph's rules make ``fixed`` and ``permutation`` so far, and
    :func:`modeconn_cli.symmetry.groups.symmetry_of` refuses the others.

    >>> Action.fixed < Action.permutation < Action.signed < Action.orthogonal < Action.invertible
    True
    """

    fixed = 0
    permutation = 1
    signed = 2
    orthogonal = 3
    invertible = 4


@dataclass(eq=False)
class Leaf:
    """An index set of ``size`` indices.

    to: what it was unified with or refined into. held_by: the operation that holds a fixed one in its order; None
    where that is nothing to wonder at, as of inputs, outputs and the pixels of a kernel.
    """

    size: int
    action: Action = Action.permutation
    to: Axis | None = field(default=None, repr=False)
    held_by: str | None = field(default=None, repr=False)

    @property
    def pinned(self) -> bool:
        """Whether the order of its indices matters, so that nothing may act on it."""
        return self.action is Action.fixed


@dataclass(frozen=True, eq=False)
class Product:
    """Pairs, triples... of indices, the first the slowest."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """Index sets one after another."""

    parts: tuple[Axis, ...]


@dataclass(eq=False)
class Dependent:
    """``members[i]`` where a tensor stands at index i of ``over``, an axis it also has; all members of one size."""

    over: Axis
    members: list[Axis]
    to: Axis | None = field(default=None, repr=False)


Axis = Leaf | Product | Sum | Dependent
Axes = list[Axis]  # of a tensor, one for each of its dimensions


def fixed(size: int, held_by: str | None = None) -> Leaf:
    """An index set whose order matters."""
    return Leaf(size, Action.fixed, held_by=held_by)


def size(axis: Axis) -> int:
    """How many indices an axis has.

    >>> size(Product((Leaf(3), Sum((Leaf(2), Leaf(5))))))
    21
    """
    if isinstance(axis, Leaf):
        return axis.size
    if isinstance(axis, Dependent):
        return size(axis.members[0])
    sizes = [size(p) for p in axis.parts]
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)
