"""What tensors that a forward pass makes, and writes into, do to axes: rules beside those of :mod:`rules`."""

from __future__ import annotations

from torch.fx import Node

from modeconn_cli.symmetry.axes import Axes, size
from modeconn_cli.symmetry.equations import concatenation, split_sum, unify_all
from modeconn_cli.symmetry.rules import broadcast_axes, rule, slice_range
from modeconn_cli.symmetry.values import Values, args_of, fixed_axes, name_of, option_of, shape_of

# What makes a tensor that is everywhere the same number of one that is.
RESHAPING = {
    *("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "expand", "permute", "t"),
    *("transpose", "slice", "select", "clone", "_to_copy", "detach", "alias", "lift_fresh_copy", "contiguous"),
}


@rule(
    "full", "zeros", "ones", "empty", "scalar_tensor", "full_like", "zeros_like", "ones_like", "empty_like", "fill",
    "new_full", "new_zeros", "new_ones", "new_empty", "empty_permuted", "empty_strided", "new_empty_strided",
)  # fmt: skip
def _alike(values: Values, node: Node) -> Axes:
    # Everywhere the same number, or nothing yet.
    return values.be_alike(node)


@rule("arange", "linspace", "eye")
def _ordered_constant(values: Values, node: Node) -> Axes:
    return fixed_axes(node.meta.get("val"), name_of(node))


@rule("copy")
def _copy(values: Values, node: Node) -> Axes:
    return broadcast_axes([values.of(args_of(node)[1])], shape_of(node))


@rule("select_scatter")
def _select_scatter(values: Values, node: Node) -> Axes:
    x, written = list(values.of(args_of(node)[0])), values.of(args_of(node)[1])
    d = int(args_of(node)[2]) % len(x)
    values.pin_for(node, [x[d]])
    unify_all([*zip([a for i, a in enumerate(x) if i != d], written, strict=True)])
    return x


@rule("slice_scatter")
def _slice_scatter(values: Values, node: Node) -> Axes | None:
    x, written = list(values.of(args_of(node)[0])), values.of(args_of(node)[1])
    d = int(option_of(node, 2, "dim", 0)) % len(x)
    if int(option_of(node, 5, "step", 1)) != 1:
        return None
    start, end = slice_range(option_of(node, 3, "start"), option_of(node, 4, "end"), n := size(x[d]))
    pieces = split_sum(x[d], [s for s in (start, end - start, n - end) if s])
    if pieces is None:
        return None
    unify_all([(a, b) for i, (a, b) in enumerate(zip(x, written, strict=True)) if i != d])
    if end > start:
        pieces[1 if start else 0] = written[d]
    x[d] = concatenation(pieces)
    return x
