"""What every operation of a traced graph does to axes.

A rule gives the axes of an operation's result, having unified or pinned those of its inputs; None where the operation
is used in a way that the rule does not cover, and everything that it touches is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.fx import Node

from modeconn_cli.symmetry.axes import Axes, Axis, Dependent, Leaf, fixed, size
from modeconn_cli.symmetry.equations import (
    concatenation,
    pin,
    product,
    regroup,
    resolve,
    restrict,
    split_product,
    split_sum,
    unify,
    unify_all,
)
from modeconn_cli.symmetry.values import Values, args_of, fixed_axes, flatten, name_of, option_of, shape_of

NONLINEAR = {
    *("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "softplus", "mish"),
    *("relu6", "hardsigmoid"),
}

LINEAR = {"add", "addmm", "mm", "bmm", "linear", "convolution", "native_layer_norm", "mul"}

Rule = Callable[[Values, Node], "Axes | list[Axes] | None"]
RULES: dict[str, Rule] = {}  # by the name of an operation of aten


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Declare a function to be the rule of these operations."""

    def add(f: Rule) -> Rule:
        for name in names:
            RULES[name] = f
        return f

    return add


@rule(
    "relu", "gelu", "silu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "erf", "elu", "leaky_relu",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "clone", "contiguous", "_to_copy", "alias", "detach",
    "dropout", "native_dropout", "reciprocal", "square", "sin", "cos", "logical_not", "mish", "log1p", "expm1", "sign",
    "floor", "ceil", "trunc", "round", "lift_fresh_copy", "log_sigmoid_forward", "relu6", "isnan", "isinf", "isfinite",
    "nan_to_num", "tan", "asin", "acos", "atan", "sinh", "cosh", "bitwise_not", "log2", "log10", "exp2", "erfinv",
    "_softmax", "_log_softmax", "_safe_softmax",
)  # fmt: skip
def _same(values: Values, node: Node) -> Axes | list[Axes] | None:
    if sum(isinstance(a, Node) for a in flatten((node.args, node.kwargs))) > 1:
        return None
    x = values.of(args_of(node)[0])
    if "softmax" in name_of(node):
        values.mix(x, [int(args_of(node)[1])])
    return x


@rule(
    "add", "sub", "mul", "div", "maximum", "minimum", "pow", "where", "eq", "ne", "lt", "le", "gt", "ge", "fmod",
    "remainder", "clamp", "clamp_min", "clamp_max", "logical_and", "logical_or",
    "rsub", "addcmul", "lerp", "atan2", "bitwise_and", "bitwise_or",
)  # fmt: skip
def _broadcast(values: Values, node: Node) -> Axes | None:
    inputs = [values.of(a) for a in flatten((node.args, node.kwargs)) if isinstance(a, Node)]
    return broadcast_axes(inputs, shape_of(node))


def broadcast_axes(inputs: Sequence[Axes], shape: Sequence[int]) -> Axes:
    out: Axes = []
    pairs: list[tuple[Axis, Axis]] = []
    for back in range(1, len(shape) + 1):
        here = [axes[-back] for axes in inputs if len(axes) >= back and size(axes[-back]) == shape[-back]]
        pairs += [(here[0], axis) for axis in here[1:]]
        out.insert(0, here[0] if here else Leaf(shape[-back]))
    unify_all(pairs)
    return out


@rule("getitem")
def _getitem(values: Values, node: Node) -> Axes | None:
    axes = values.axes[args_of(node)[0]]
    at = args_of(node)[1]
    found = axes[at] if isinstance(at, int) and at < len(axes) else None
    # A rule that gives one list of axes has one result that anybody asks for, the first.
    if isinstance(found, list):
        return found
    return values.of(args_of(node)[0]) if at == 0 else fixed_axes(node.meta.get("val"), name_of(args_of(node)[0]))


@rule("convolution")
def _convolution(values: Values, node: Node) -> Axes | None:
    x, weight, bias = (values.of(args_of(node)[i]) for i in range(3))
    transposed, groups = bool(args_of(node)[6]), int(args_of(node)[8])
    n, channels, *space = x
    for axis in [*space, *weight[2:]]:
        pin(axis)
    per_group_out, per_group_in = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    if groups == 1:
        unify(channels, per_group_in)
        values.summed.append([per_group_in])
        out = per_group_out
    elif transposed:
        return None
    else:
        # Groups of channels may change places, and inside each of them channels may.
        outer = split_product(per_group_out, groups)
        inner = split_product(channels, groups)
        if outer is None or inner is None:
            return None
        unify(outer[0], inner[0])
        unify(inner[1], per_group_in)
        out = product(outer)
    if bias:
        unify(bias[0], out)
    return [n, out, *(fixed(s) for s in shape_of(node)[2:])]


@rule("mm", "bmm", "matmul")
def _matmul(values: Values, node: Node) -> Axes | None:
    a, b = values.of(args_of(node)[0]), values.of(args_of(node)[1])
    if len(a) != len(b) or len(a) < 2:
        return None
    return values.contract(a, b)


@rule("addmm", "baddbmm")
def _addmm(values: Values, node: Node) -> Axes | None:
    bias, a, b = (values.of(args_of(node)[i]) for i in range(3))
    return broadcast_axes([values.contract(a, b), bias], shape_of(node))


@rule("linear")
def _linear(values: Values, node: Node) -> Axes | None:
    x, weight, bias = values.of(args_of(node)[0]), values.of(args_of(node)[1]), values.of(option_of(node, 2, "bias"))
    unify(x[-1], weight[1])
    values.summed.append([weight[1]])
    if bias:
        unify(bias[0], weight[0])
    return [*x[:-1], weight[0]]


@rule("_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(values: Values, node: Node) -> list[Axes]:
    x = values.of(args_of(node)[0])
    for argument in args_of(node)[1:5]:
        for axis in values.of(argument):
            unify(x[1], axis)
    values.statistics |= {a for a in args_of(node)[3:5] if isinstance(a, Node)}
    return [x, [], []]


@rule("native_layer_norm")
def _layer_norm(values: Values, node: Node) -> list[Axes]:
    x = values.of(args_of(node)[0])
    last = len(args_of(node)[1])
    for argument in args_of(node)[2:4]:
        axes = values.of(argument)
        unify_all([*zip(x[len(x) - len(axes) :], axes, strict=True)])
    values.mix(x, range(len(x) - last, len(x)))
    return [x, [], []]


@rule("native_group_norm")
def _group_norm(values: Values, node: Node) -> list[Axes] | None:
    x = values.of(args_of(node)[0])
    for argument in args_of(node)[1:3]:
        for axis in values.of(argument):
            unify(x[1], axis)
    # Within a group channels are alike; whole groups may change places.
    if split_product(x[1], int(args_of(node)[6])) is None:
        return None
    return [x, [], []]


@rule("mean", "sum", "amax", "amin", "var", "any", "prod", "logsumexp", "norm", "linalg_vector_norm", "argmax")
def _reduce(values: Values, node: Node) -> Axes | None:
    x = values.of(args_of(node)[0])
    name = name_of(node)
    given = option_of(node, 2 if name == "linalg_vector_norm" else 1, "dim")
    dims = range(len(x)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {int(d) % len(x) for d in dims}
    if name == "argmax":
        values.pin_for(node, [x[d] for d in gone])
    kept = len(shape_of(node)) == len(x)
    return [Leaf(1) if d in gone else axis for d, axis in enumerate(x) if kept or d not in gone]


@rule("permute", "transpose", "t")
def _permute(values: Values, node: Node) -> Axes:
    x = values.of(args_of(node)[0])
    name = name_of(node)
    if name == "permute":
        return [x[int(d)] for d in args_of(node)[1]]
    a, b = (0, 1) if name == "t" else (int(args_of(node)[1]), int(args_of(node)[2]))
    if len(x) > 1:
        x = list(x)
        x[a], x[b] = x[b], x[a]
    return x


@rule("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "flatten", "unflatten")
def _view(values: Values, node: Node) -> Axes | None:
    source = args_of(node)[0]
    assert isinstance(source, Node)
    if source.meta["val"].numel() != node.meta["val"].numel():  # as another type, whose numbers are parts of these
        return None
    return regroup(values.of(source), shape_of(node))


@rule("expand")
def _expand(values: Values, node: Node) -> Axes:
    # Along a dimension that is copied every index is alike, so it is free to be whatever it meets.
    return broadcast_axes([values.of(args_of(node)[0])], shape_of(node))


@rule("as_strided")
def _as_strided(values: Values, node: Node) -> Axes | None:
    source = args_of(node)[0]
    assert isinstance(source, Node)
    before, after = source.meta["val"], node.meta["val"]
    steps = [[s for n, s in zip(t.shape, t.stride(), strict=True) if n != 1] for t in (before, after)]
    alike = before.shape == after.shape and steps[0] == steps[1]
    return values.of(source) if alike and before.storage_offset() == after.storage_offset() else None


@rule("slice")
def _slice(values: Values, node: Node) -> Axes | None:
    x = list(values.of(args_of(node)[0]))
    d = int(option_of(node, 1, "dim", 0)) % len(x)
    n = size(x[d])
    if not shape_of(node)[d]:
        x[d] = fixed(0)
        return x
    start, end = slice_range(option_of(node, 2, "start"), option_of(node, 3, "end"), n)
    if int(option_of(node, 4, "step", 1)) != 1:
        values.pin_for(node, [x[d]])
        x[d] = fixed(shape_of(node)[d], name_of(node))
        return x
    pieces = split_sum(x[d], [s for s in (start, end - start, n - end) if s])
    if pieces is None:
        values.pin_for(node, [x[d]])
        x[d] = fixed(end - start, name_of(node))
    else:
        x[d] = pieces[1 if start else 0]
    return x


def slice_range(start: int | None, end: int | None, n: int) -> tuple[int, int]:
    """Where a slice of n indices begins and ends."""
    start = 0 if start is None else max(start + n, 0) if start < 0 else min(start, n)
    end = n if end is None else max(end + n, 0) if end < 0 else min(end, n)
    return start, max(start, end)


@rule("select")
def _select(values: Values, node: Node) -> Axes:
    x = list(values.of(args_of(node)[0]))
    d = int(args_of(node)[1]) % len(x)
    values.pin_for(node, [x[d]])
    return _at(x, d, int(args_of(node)[2]))


def _at(axes: Axes, dim: int, i: int) -> Axes:
    """The other axes, where one stands at an index."""
    i = i % max(size(axes[dim]), 1)
    over = resolve(axes[dim])
    return [restrict(a, over, i) for d, a in enumerate(axes) if d != dim]


@rule("split", "split_with_sizes", "chunk", "unbind")
def _split(values: Values, node: Node) -> list[Axes] | None:
    x = values.of(args_of(node)[0])
    d = int(option_of(node, 1 if name_of(node) == "unbind" else 2, "dim", 0)) % len(x)
    shapes = [list(m.shape) for m in node.meta["val"]]
    if name_of(node) == "unbind":
        values.pin_for(node, [x[d]])
        return [_at(x, d, i) for i in range(len(shapes))]
    pieces = split_sum(x[d], [s[d] for s in shapes])
    if pieces is None:
        return None
    return [[p if i == d else a for i, a in enumerate(x)] for p in pieces]


@rule("cat")
def _cat(values: Values, node: Node) -> Axes:
    inputs = [values.of(a) for a in args_of(node)[0]]
    d = int(option_of(node, 1, "dim", 0)) % len(inputs[0])
    if node.meta.get("apart"):
        return _apart(inputs)
    unify_all([(inputs[0][i], axes[i]) for axes in inputs[1:] for i in range(len(axes)) if i != d])
    out = list(inputs[0])
    out[d] = concatenation([axes[d] for axes in inputs])
    return out


def _apart(inputs: Sequence[Axes]) -> Axes:
    """Tensors one after another along dimension 0, which has an order, each with a last dimension of its own."""
    own = [restrict(a[-1], resolve(a[0]), i) for a in inputs for i in range(size(a[0]))]
    over = fixed(len(own))
    return [over, *inputs[0][1:-1], Dependent(over, own)]


@rule("stack")
def _stack(values: Values, node: Node) -> Axes:
    inputs = [values.of(a) for a in args_of(node)[0]]
    out = broadcast_axes(inputs, shape_of(inputs_node) if isinstance(inputs_node := args_of(node)[0][0], Node) else [])
    out.insert(int(option_of(node, 1, "dim", 0)) % (len(out) + 1), fixed(len(inputs)))
    return out


@rule("constant_pad_nd")
def _pad(values: Values, node: Node) -> Axes:
    x = list(values.of(args_of(node)[0]))
    pads = [int(p) for p in args_of(node)[1]]
    for i in range(len(pads) // 2):
        before, after = pads[2 * i], pads[2 * i + 1]
        d = len(x) - 1 - i
        if before < 0 or after < 0:
            values.pin_for(node, [x[d]])
            x[d] = fixed(shape_of(node)[d], name_of(node))
        elif before or after:
            # Padding is the same everywhere, so the padded indices are alike among themselves.
            x[d] = concatenation([Leaf(before), x[d], Leaf(after)])
    return x


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d_with_indices",
    "avg_pool1d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest2d",
    "upsample_bilinear2d", "max_pool2d", "adaptive_avg_pool2d",
)  # fmt: skip
def _pool(values: Values, node: Node) -> Axes | list[Axes]:
    x = values.of(args_of(node)[0])
    meta = node.meta["val"]
    first = meta[0] if isinstance(meta, tuple | list) else meta
    space = 1 if "1d" in name_of(node) else 3 if "3d" in name_of(node) else 2
    for axis in x[-space:]:
        pin(axis)
    out: Axes = [*x[:-space], *(fixed(int(n)) for n in first.shape[-space:])]
    return [out, list(out)] if isinstance(meta, tuple | list) else out


@rule("embedding")
def _embedding(values: Values, node: Node) -> Axes:
    weight, indices = values.of(args_of(node)[0]), values.of(args_of(node)[1])
    pin(weight[0])
    return [*indices, weight[1]]


@rule("index_select")
def _index_select(values: Values, node: Node) -> Axes:
    x = list(values.of(args_of(node)[0]))
    d = int(args_of(node)[1]) % len(x)
    values.pin_for(node, [x[d], *values.of(args_of(node)[2])])
    x[d] = fixed(shape_of(node)[d], name_of(node))
    return x


@rule("index")
def _index(values: Values, node: Node) -> Axes | None:
    x = list(values.of(args_of(node)[0]))
    indices = list(args_of(node)[1])
    used = [d for d, i in enumerate(indices) if i is not None]
    if not used or used != list(range(used[0], used[-1] + 1)):
        return None
    values.pin_for(node, [*(x[d] for d in used), *(a for i in indices for a in values.of(i))])
    shape = shape_of(node)
    new = len(shape) - (len(x) - len(used))
    picked: Axes = [fixed(n, name_of(node)) for n in shape[used[0] : used[0] + new]]
    return [*x[: used[0]], *picked, *x[used[-1] + 1 :]]


@rule("roll", "flip", "cumsum")
def _ordered(values: Values, node: Node) -> Axes:
    x = values.of(args_of(node)[0])
    given = option_of(node, 2 if name_of(node) == "roll" else 1, "dims")
    dims = [given] if isinstance(given, int) else list(given or range(len(x)))
    values.pin_for(node, [x[int(d)] for d in dims])
    values.mix(x, dims)
    return x
