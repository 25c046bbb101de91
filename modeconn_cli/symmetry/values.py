"""The values of a traced graph and the axes that they are known to have, as operations are gone through in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from modeconn_cli.symmetry.axes import Axes, Axis, Leaf, fixed
from modeconn_cli.symmetry.equations import pin, unify, unify_all


class Values:
    """Axes of every value so far, and what operations ask of them.

    axes: of a value; of an operation with several results, a list for each.
    made_anew: axes of constants, which are others at every use: being read twice makes nothing the same.
    alike: the constants that are everywhere the same number.
    statistics: BatchNorm's running means and variances.
    summed: sets of axes along which an operation neither sums nor compares. What depends on an index that is not among
        them would be mixed over that index, so it may not depend on it.
    """

    def __init__(self) -> None:
        self.axes: dict[Node, Axes | list[Axes]] = {}
        self.made_anew: dict[Node, Callable[[], Axes]] = {}
        self.alike: set[Node] = set()
        self.statistics: set[Node] = set()
        self.summed: list[Axes] = []

    def of(self, value: Any) -> Axes:
        """Axes of an input; none for a number."""
        if not isinstance(value, Node):
            return []
        axes = self.made_anew[value]() if value in self.made_anew else self.axes[value]
        return [a for a in axes if not isinstance(a, list)]

    def be_alike(self, node: Node) -> Axes:
        """Note that a value is everywhere the same number, so that no dimension of it has an order."""
        self.alike.add(node)
        self.made_anew[node] = lambda: [Leaf(n) for n in shape_of(node)]
        found: Axes = [Leaf(n) for n in shape_of(node)]
        self.axes[node] = found
        return found

    def every(self, arguments: Any) -> Axes:
        """The axes of all values among arguments, however they are nested."""
        values = [v for v in flatten(arguments) if isinstance(v, Node)]
        return [axis for v in values for axis in flatten(self.axes.get(v, []))]

    def pin_for(self, node: Node, axes: Sequence[Axis]) -> None:
        """Pin axes for an operation that needs their order, or is not known."""
        for axis in axes:
            pin(axis, name_of(node))

    def mix(self, axes: Axes, dims: Sequence[int]) -> None:
        """Note that an operation compares what stands along these dimensions with one another."""
        along = {int(d) % len(axes) for d in dims}
        self.summed.append([a for d, a in enumerate(axes) if d not in along])

    def contract(self, a: Axes, b: Axes) -> Axes:
        """The axes of a product of (batches of) matrices."""
        unify_all([*zip(a[:-2], b[:-2], strict=True)])
        unify(a[-1], b[-2])
        self.summed.append([*a[:-2], a[-1]])
        return [*a[:-1], b[-1]]


def fixed_axes(meta: Any, held_by: str | None = None) -> Axes:
    """Axes of a tensor like this one, each in its order."""
    return [fixed(int(n), held_by) for n in meta.shape] if isinstance(meta, Tensor) else []


def constant_axes(value: Tensor, held_by: str) -> Axes:
    """Axes of a tensor that is always this one: a dimension along which it is everywhere alike has no order."""
    alike = [bool((value == value.narrow(d, 0, min(n, 1))).all()) for d, n in enumerate(value.shape)]
    return [Leaf(n) if same else fixed(n, held_by) for n, same in zip(value.shape, alike, strict=True)]


def args_of(node: Node) -> tuple[Any, ...]:
    """An operation's positional arguments."""
    return node.args


def option_of(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument that is given by position or by name, or not at all."""
    return args_of(node)[position] if len(node.args) > position else node.kwargs.get(name, default)


def name_of(node: Node) -> str:
    """An operation's name: ``relu`` for aten.relu.default."""
    target = node.target
    return target.__name__ if target is operator.getitem else str(target).removeprefix("aten.").partition(".")[0]


def shape_of(node: Node) -> list[int]:
    """The shape of a value; empty where it is no tensor."""
    meta = node.meta.get("val")
    return [int(n) for n in meta.shape] if isinstance(meta, Tensor) else []


def flatten(value: Any) -> list[Any]:
    """What is in nested tuples, lists and dictionaries' values, in one list."""
    if isinstance(value, tuple | list):
        return [leaf for v in value for leaf in flatten(v)]
    if isinstance(value, dict):
        return flatten(list(value.values()))
    return [value]
