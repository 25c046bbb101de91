"""The permutation groups of a network, from its traced graph.

The graph that torch.export gives is walked once. Every operation says which axes of its inputs and outputs are the
same index set; parameters, buffers, inputs and outputs are tensors like any other, the last two pinned. An operation
that is not known pins what it touches: that costs freedom and never correctness.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import operator
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes
from torch import Tensor, nn
from torch.fx import Node

from modeconn_cli.symmetry.axes import (
    Axis,
    Leaf,
    Product,
    collapse,
    concatenation,
    homeless,
    leaves,
    pin,
    product,
    resolve,
    restrict,
    size,
    split_product,
    split_sum,
    unify,
    unify_all,
)
from modeconn_cli.symmetry.groups import Axes, Symmetry, symmetry_of


class CannotTrace(Exception):  # noqa: N818 - named for what happened
    """torch.export cannot trace this module; the message says what stopped it."""


def trace(module: nn.Module, example: Tensor) -> Symmetry:
    """The permutation groups of a module in evaluation mode.

    Args:
        example: a batch of inputs; two examples are enough, and what is in them does not matter.

    Raises:
        CannotTrace: torch.export does not get through the module.
    """
    mode = module.training
    try:
        # torch prints pages about what it cannot trace; a line is raised here instead.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.CRITICAL)
            program = torch.export.export(module.eval(), (example,)).run_decompositions()
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        said = said.partition(" (unhinted")[0]  # names of symbols that are torch's own
        raise CannotTrace(f"{type(module).__name__} cannot be traced{_culprit(error)}: {said}") from error
    finally:
        module.train(mode)
    try:
        return _Walk(program, module).symmetry()
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode:
        raise CannotTrace(f"{type(module).__name__} cannot be traced: a shape in it depends on the data") from None


def _culprit(error: BaseException) -> str:
    """The line of a model's own code that stopped it, where there is one."""
    inside = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_file() and not f.filename.startswith((inside, __file__))]
    return f" past {Path(own[-1].filename).name}:{own[-1].lineno} `{own[-1].line}`" if own else ""


class _Walk:
    """One pass over a graph, keeping the axes of every value."""

    def __init__(self, program: torch.export.ExportedProgram, module: nn.Module) -> None:
        self.program = program
        self.axes: dict[Node, Axes | list[Axes]] = {}
        self.held: list[tuple[str, list[Leaf]]] = []  # operations that hold what they touch in place, and what was free
        signature = program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.tensors: dict[str, Axes] = {}
        self._constants: dict[int, Axes] = {}
        self.statistics: set[Node] = set()
        # Sets of dimensions along which an operation sums or compares: what depends on an index that is not among
        # them would be mixed over that index, so it may not depend on it.
        self.mixed: list[Axes] = []
        state = module.state_dict(keep_vars=True)
        read: set[str] = set()
        for node in program.graph.nodes:
            if node.op == "placeholder":
                shape = _shape(node)
                name = stored.get(node.name)
                if name is not None and name in state:
                    axes = self._of_tensor(state[name], shape)
                    if node.users:
                        read.add(name)
                else:
                    axes = [Leaf(n, pinned=True) for n in shape]
                self.axes[node] = axes
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                for axis in self._every(node.args):
                    pin(axis)
        # A buffer is no coordinate: on a path it is averaged or taken from one end, so only BatchNorm's statistics,
        # which are estimated anew, may move. Masks and tables stay as they are.
        kept = {stored.get(n.name) for n in self.statistics}
        for name in signature.inputs_to_buffers.values():
            if name in state and name not in kept:
                for axis in self._of_tensor(state[name], list(state[name].shape)):
                    pin(axis)
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            self.tensors[name] = self._of_tensor(value, list(value.shape))
            # Tied tensors are one tensor: read under any of their names, they are read.
            alive = any(value is state[r] for r in read)
            if not alive and not name.endswith("num_batches_tracked"):
                for axis in self.tensors[name]:
                    pin(axis)

    def _of_tensor(self, tensor: Tensor, shape: Sequence[int]) -> Axes:
        return self._constants.setdefault(id(tensor), [Leaf(n) for n in shape])

    def _tie_families(self) -> None:
        """Make one of every family that some tensor or operation does not tell apart."""
        values = [v if isinstance(v, list) else [v] for v in self.tensors.values()]
        for found in self.axes.values():
            nested = [a for a in found if isinstance(a, list)]
            values += nested or [[a for a in found if not isinstance(a, list)]]
        values += self.mixed
        while True:
            lost = [family for axes in values for family in homeless(axes)]
            if not lost:
                return
            for family in lost:
                collapse(family)

    def symmetry(self) -> Symmetry:
        self._tie_families()
        found = symmetry_of(self.tensors)
        groups = {g.leaf for g in found.groups}
        computed = {n.name: self.of(n) for n in self.axes if n.op == "call_function"}
        activations = {n.name: computed[n.name] for n in self.axes if n.op == "call_function" and _name(n) in NONLINEAR}
        reached = {leaf for axes in activations.values() for axis in axes for leaf in leaves(axis)}
        linear = {n.name for n in self.axes if n.op == "call_function" and _name(n) in LINEAR}
        for name in sorted(linear):  # where no non-linearity is, as inside attention and along a residual stream
            if any(leaf in groups and leaf not in reached for axis in computed[name] for leaf in leaves(axis)):
                activations[name] = computed[name]
        return replace(found, held_by=self._held_by(), program=self.program, seen_at=activations)

    def _held_by(self) -> dict[str, list[str]]:
        """Operations that took freedom from tensors of the network, and the dimensions of these."""
        stored: dict[Leaf, list[str]] = {}
        for name, axes in self.tensors.items():
            for dim, axis in enumerate(axes):
                for leaf in leaves(axis):
                    stored.setdefault(leaf, []).append(f"{name}[{dim}]")
        found: dict[str, dict[str, None]] = {}
        for operation, free in self.held:
            places = [place for axis in free for leaf in leaves(axis) for place in stored.get(leaf, [])]
            if places:
                found.setdefault(operation, {}).update(dict.fromkeys(places))
        return {operation: [*places] for operation, places in found.items()}

    def hold(self, node: Node, axes: Sequence[Axis]) -> None:
        """Pin axes for an operation that needs their order, or is not known."""
        free = [leaf for axis in axes for leaf in leaves(axis) if not leaf.pinned and leaf.size > 1]
        self.held.append((_name(node), free))
        for axis in axes:
            pin(axis)

    # ------------------------------------------------------------------------------------------ one operation

    def _call(self, node: Node) -> None:
        name = _name(node)
        rule = RULES.get(name)
        try:
            found = rule(self, node) if rule is not None else None
        except (ValueError, IndexError, ZeroDivisionError, TypeError):  # a case that the rule was not written for
            found = None
        if found is not None and self._fits(found, node):
            self.axes[node] = found
        else:
            self._give_up(node)

    def _fits(self, found: Axes | list[Axes], node: Node) -> bool:
        """Whether the axes are of the sizes that the operation's result has."""
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor):
            return True
        return [size(a) for a in found if not isinstance(a, list)] == [int(n) for n in meta.shape]

    def _give_up(self, node: Node) -> None:
        """Pin everything that an operation reads and gives."""
        self.hold(node, self._every((node.args, node.kwargs)))
        meta = node.meta.get("val")
        if isinstance(meta, tuple | list):
            self.axes[node] = [_fresh_pinned(m) for m in meta]
        else:
            self.axes[node] = _fresh_pinned(meta)

    def _every(self, arguments: Any) -> Axes:
        """The axes of all values among arguments, however they are nested."""
        values = [v for v in _flatten(arguments) if isinstance(v, Node)]
        return [axis for v in values for axis in _flatten(self.axes.get(v, []))]

    def mix(self, axes: Axes, dims: Sequence[int]) -> None:
        """Note that an operation compares what stands along these dimensions with one another."""
        along = {int(d) % len(axes) for d in dims}
        self.mixed.append([a for d, a in enumerate(axes) if d not in along])

    def contract(self, a: Axes, b: Axes) -> Axes:
        """The axes of a product of (batches of) matrices."""
        unify_all([*zip(a[:-2], b[:-2], strict=True)])
        unify(a[-1], b[-2])
        self.mixed.append([*a[:-2], a[-1]])
        return [*a[:-1], b[-1]]

    def of(self, value: Any) -> Axes:
        """Axes of an input; none for a number."""
        if not isinstance(value, Node):
            return []
        axes = self.axes[value]
        return [a for a in axes if not isinstance(a, list)]


def _fresh_pinned(meta: Any) -> Axes:
    return [Leaf(int(n), pinned=True) for n in meta.shape] if isinstance(meta, Tensor) else []


def _args(node: Node) -> tuple[Any, ...]:
    return node.args


def _name(node: Node) -> str:
    target = node.target
    return target.__name__ if target is operator.getitem else str(target).removeprefix("aten.").partition(".")[0]


def _shape(node: Node) -> list[int]:
    meta = node.meta.get("val")
    return [int(n) for n in meta.shape] if isinstance(meta, Tensor) else []


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for v in value for leaf in _flatten(v)]
    if isinstance(value, dict):
        return _flatten(list(value.values()))
    return [value]


# -------------------------------------------------------------------------------------------------------- rules
# A rule gives the axes of an operation's result, having unified or pinned those of its inputs; None: not its case.

NONLINEAR = {
    *("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "softplus", "mish"),
    *("relu6", "hardsigmoid"),
}

LINEAR = {"add", "addmm", "mm", "bmm", "linear", "convolution", "native_layer_norm", "mul"}

Rule = Callable[[_Walk, Node], "Axes | list[Axes] | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(f: Rule) -> Rule:
        for name in names:
            RULES[name] = f
        return f

    return add


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return _args(node)[position]
    return node.kwargs.get(name, default)


@rule(
    "relu", "gelu", "silu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "erf", "elu", "leaky_relu",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "clone", "contiguous", "_to_copy", "alias", "detach",
    "dropout", "native_dropout", "reciprocal", "square", "sin", "cos", "logical_not", "full_like", "zeros_like",
    "ones_like", "mish", "log1p", "expm1", "sign", "floor", "round", "lift_fresh_copy", "log_sigmoid_forward", "relu6",
    "_softmax", "_log_softmax", "_safe_softmax",
)  # fmt: skip
def _same(walk: _Walk, node: Node) -> Axes | list[Axes] | None:
    if sum(isinstance(a, Node) for a in _flatten((node.args, node.kwargs))) > 1:
        return None
    x = walk.of(_args(node)[0])
    if "softmax" in _name(node):
        walk.mix(x, [int(_args(node)[1])])
    return x


@rule(
    "add", "sub", "mul", "div", "maximum", "minimum", "pow", "where", "eq", "ne", "lt", "le", "gt", "ge", "fmod",
    "remainder", "clamp", "clamp_min", "clamp_max", "logical_and", "logical_or",
    "rsub", "addcmul", "lerp", "atan2", "bitwise_and", "bitwise_or",
)  # fmt: skip
def _broadcast(walk: _Walk, node: Node) -> Axes | None:
    inputs = [walk.of(a) for a in _flatten((node.args, node.kwargs)) if isinstance(a, Node)]
    return _broadcast_axes(inputs, _shape(node))


def _broadcast_axes(inputs: Sequence[Axes], shape: Sequence[int]) -> Axes:
    out: Axes = []
    pairs: list[tuple[Axis, Axis]] = []
    for back in range(1, len(shape) + 1):
        here = [axes[-back] for axes in inputs if len(axes) >= back and size(axes[-back]) == shape[-back]]
        pairs += [(here[0], axis) for axis in here[1:]]
        out.insert(0, here[0] if here else Leaf(shape[-back]))
    unify_all(pairs)
    return out


@rule("getitem")
def _getitem(walk: _Walk, node: Node) -> Axes | None:
    axes = walk.axes[_args(node)[0]]
    at = _args(node)[1]
    found = axes[at] if isinstance(at, int) and at < len(axes) else None
    # A rule that gives one list of axes has one result that anybody asks for, the first.
    if isinstance(found, list):
        return found
    return walk.of(_args(node)[0]) if at == 0 else _fresh_pinned(node.meta.get("val"))


@rule("convolution")
def _convolution(walk: _Walk, node: Node) -> Axes | None:
    x, weight, bias = (walk.of(_args(node)[i]) for i in range(3))
    transposed, groups = bool(_args(node)[6]), int(_args(node)[8])
    n, channels, *space = x
    for axis in [*space, *weight[2:]]:
        pin(axis)
    per_group_out, per_group_in = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    if groups == 1:
        unify(channels, per_group_in)
        walk.mixed.append([per_group_in])
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
    return [n, out, *(Leaf(s, pinned=True) for s in _shape(node)[2:])]


@rule("mm", "bmm", "matmul")
def _matmul(walk: _Walk, node: Node) -> Axes | None:
    a, b = walk.of(_args(node)[0]), walk.of(_args(node)[1])
    if len(a) != len(b) or len(a) < 2:
        return None
    return walk.contract(a, b)


@rule("addmm", "baddbmm")
def _addmm(walk: _Walk, node: Node) -> Axes | None:
    bias, a, b = (walk.of(_args(node)[i]) for i in range(3))
    return _broadcast_axes([walk.contract(a, b), bias], _shape(node))


@rule("linear")
def _linear(walk: _Walk, node: Node) -> Axes | None:
    x, weight, bias = walk.of(_args(node)[0]), walk.of(_args(node)[1]), walk.of(_argument(node, 2, "bias"))
    unify(x[-1], weight[1])
    walk.mixed.append([weight[1]])
    if bias:
        unify(bias[0], weight[0])
    return [*x[:-1], weight[0]]


@rule("_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(walk: _Walk, node: Node) -> list[Axes]:
    x = walk.of(_args(node)[0])
    for argument in _args(node)[1:5]:
        for axis in walk.of(argument):
            unify(x[1], axis)
    walk.statistics |= {a for a in _args(node)[3:5] if isinstance(a, Node)}
    return [x, [], []]


@rule("native_layer_norm")
def _layer_norm(walk: _Walk, node: Node) -> list[Axes]:
    x = walk.of(_args(node)[0])
    last = len(_args(node)[1])
    for argument in _args(node)[2:4]:
        axes = walk.of(argument)
        unify_all([*zip(x[len(x) - len(axes) :], axes, strict=True)])
    walk.mix(x, range(len(x) - last, len(x)))
    return [x, [], []]


@rule("native_group_norm")
def _group_norm(walk: _Walk, node: Node) -> list[Axes] | None:
    x = walk.of(_args(node)[0])
    for argument in _args(node)[1:3]:
        for axis in walk.of(argument):
            unify(x[1], axis)
    # Within a group channels are alike; whole groups may change places.
    if split_product(x[1], int(_args(node)[6])) is None:
        return None
    return [x, [], []]


@rule("mean", "sum", "amax", "amin", "var", "any", "prod", "logsumexp", "norm", "linalg_vector_norm", "argmax")
def _reduce(walk: _Walk, node: Node) -> Axes | None:
    x = walk.of(_args(node)[0])
    name = _name(node)
    given = _argument(node, 2 if name == "linalg_vector_norm" else 1, "dim")
    dims = range(len(x)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {int(d) % len(x) for d in dims}
    if name == "argmax":
        for d in gone:
            pin(x[d])
    kept = len(_shape(node)) == len(x)
    return [Leaf(1) if d in gone else axis for d, axis in enumerate(x) if kept or d not in gone]


@rule("permute", "transpose", "t")
def _permute(walk: _Walk, node: Node) -> Axes:
    x = walk.of(_args(node)[0])
    name = _name(node)
    if name == "permute":
        return [x[int(d)] for d in _args(node)[1]]
    a, b = (0, 1) if name == "t" else (int(_args(node)[1]), int(_args(node)[2]))
    if len(x) > 1:
        x = list(x)
        x[a], x[b] = x[b], x[a]
    return x


@rule("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "flatten", "unflatten")
def _view(walk: _Walk, node: Node) -> Axes | None:
    return regroup(walk.of(_args(node)[0]), _shape(node))


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


@rule("expand")
def _expand(walk: _Walk, node: Node) -> Axes:
    # Along a dimension that is copied every index is alike, so it is free to be whatever it meets.
    return _broadcast_axes([walk.of(_args(node)[0])], _shape(node))


@rule("as_strided")
def _as_strided(walk: _Walk, node: Node) -> Axes | None:
    source = _args(node)[0]
    assert isinstance(source, Node)
    before, after = source.meta["val"], node.meta["val"]
    steps = [[s for n, s in zip(t.shape, t.stride(), strict=True) if n != 1] for t in (before, after)]
    alike = before.shape == after.shape and steps[0] == steps[1]
    return walk.of(source) if alike and before.storage_offset() == after.storage_offset() else None


@rule("slice")
def _slice(walk: _Walk, node: Node) -> Axes | None:
    x = list(walk.of(_args(node)[0]))
    d = int(_argument(node, 1, "dim", 0)) % len(x)
    n = size(x[d])
    if not _shape(node)[d]:
        x[d] = Leaf(0, pinned=True)
        return x
    start, end = _argument(node, 2, "start"), _argument(node, 3, "end")
    start = 0 if start is None else max(start + n, 0) if start < 0 else min(start, n)
    end = n if end is None else max(end + n, 0) if end < 0 else min(end, n)
    if int(_argument(node, 4, "step", 1)) != 1:
        walk.hold(node, [x[d]])
        x[d] = Leaf(_shape(node)[d], pinned=True)
        return x
    pieces = split_sum(x[d], [s for s in (start, end - start, n - end) if s])
    if pieces is None:
        pin(x[d])
        x[d] = Leaf(end - start, pinned=True)
    else:
        x[d] = pieces[1 if start else 0]
    return x


@rule("select")
def _select(walk: _Walk, node: Node) -> Axes:
    x = list(walk.of(_args(node)[0]))
    d = int(_args(node)[1]) % len(x)
    pin(x[d])
    return _at(x, d, int(_args(node)[2]))


def _at(axes: Axes, dim: int, i: int) -> Axes:
    """The other axes, where one stands at an index."""
    i = i % max(size(axes[dim]), 1)
    over = resolve(axes[dim])
    return [restrict(a, over, i) for d, a in enumerate(axes) if d != dim]


@rule("split", "split_with_sizes", "chunk", "unbind")
def _split(walk: _Walk, node: Node) -> list[Axes] | None:
    x = walk.of(_args(node)[0])
    d = int(_argument(node, 1 if _name(node) == "unbind" else 2, "dim", 0)) % len(x)
    shapes = [list(m.shape) for m in node.meta["val"]]
    if _name(node) == "unbind":
        pin(x[d])
        return [_at(x, d, i) for i in range(len(shapes))]
    pieces = split_sum(x[d], [s[d] for s in shapes])
    if pieces is None:
        return None
    return [[p if i == d else a for i, a in enumerate(x)] for p in pieces]


@rule("cat")
def _cat(walk: _Walk, node: Node) -> Axes:
    inputs = [walk.of(a) for a in _args(node)[0]]
    d = int(_argument(node, 1, "dim", 0)) % len(inputs[0])
    unify_all([(inputs[0][i], axes[i]) for axes in inputs[1:] for i in range(len(axes)) if i != d])
    out = list(inputs[0])
    out[d] = concatenation([axes[d] for axes in inputs])
    return out


@rule("stack")
def _stack(walk: _Walk, node: Node) -> Axes:
    inputs = [walk.of(a) for a in _args(node)[0]]
    out = _broadcast_axes(inputs, _shape(inputs_node) if isinstance(inputs_node := _args(node)[0][0], Node) else [])
    out.insert(int(_argument(node, 1, "dim", 0)) % (len(out) + 1), Leaf(len(inputs), pinned=True))
    return out


@rule("constant_pad_nd")
def _pad(walk: _Walk, node: Node) -> Axes:
    x = list(walk.of(_args(node)[0]))
    pads = [int(p) for p in _args(node)[1]]
    for i in range(len(pads) // 2):
        before, after = pads[2 * i], pads[2 * i + 1]
        d = len(x) - 1 - i
        if before < 0 or after < 0:
            pin(x[d])
            x[d] = Leaf(_shape(node)[d], pinned=True)
        elif before or after:
            # Padding is the same everywhere, so the padded indices are alike among themselves.
            x[d] = concatenation([Leaf(before), x[d], Leaf(after)])
    return x


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d_with_indices",
    "avg_pool1d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest2d",
    "upsample_bilinear2d", "max_pool2d", "adaptive_avg_pool2d",
)  # fmt: skip
def _pool(walk: _Walk, node: Node) -> Axes | list[Axes]:
    x = walk.of(_args(node)[0])
    meta = node.meta["val"]
    first = meta[0] if isinstance(meta, tuple | list) else meta
    space = 1 if "1d" in _name(node) else 3 if "3d" in _name(node) else 2
    for axis in x[-space:]:
        pin(axis)
    out: Axes = [*x[:-space], *(Leaf(int(n), pinned=True) for n in first.shape[-space:])]
    return [out, list(out)] if isinstance(meta, tuple | list) else out


@rule("embedding")
def _embedding(walk: _Walk, node: Node) -> Axes:
    weight, indices = walk.of(_args(node)[0]), walk.of(_args(node)[1])
    pin(weight[0])
    return [*indices, weight[1]]


@rule("index_select")
def _index_select(walk: _Walk, node: Node) -> Axes:
    x = list(walk.of(_args(node)[0]))
    d = int(_args(node)[1]) % len(x)
    for axis in [x[d], *walk.of(_args(node)[2])]:
        pin(axis)
    x[d] = Leaf(_shape(node)[d], pinned=True)
    return x


@rule("index")
def _index(walk: _Walk, node: Node) -> Axes | None:
    x = list(walk.of(_args(node)[0]))
    indices = list(_args(node)[1])
    used = [d for d, i in enumerate(indices) if i is not None]
    if not used or used != list(range(used[0], used[-1] + 1)):
        return None
    for axis in [*(x[d] for d in used), *(a for i in indices for a in walk.of(i))]:
        pin(axis)
    shape = _shape(node)
    new = len(shape) - (len(x) - len(used))
    picked: Axes = [Leaf(n, pinned=True) for n in shape[used[0] : used[0] + new]]
    return [*x[: used[0]], *picked, *x[used[-1] + 1 :]]


@rule("roll", "flip", "cumsum")
def _ordered(walk: _Walk, node: Node) -> Axes:
    x = walk.of(_args(node)[0])
    given = _argument(node, 2 if _name(node) == "roll" else 1, "dims")
    dims = [given] if isinstance(given, int) else list(given or range(len(x)))
    walk.hold(node, [x[int(d)] for d in dims])
    walk.mix(x, dims)
    return x


@rule("full", "scalar_tensor", "arange", "zeros", "ones", "empty", "lift_fresh_copy", "new_zeros", "new_ones")
def _constant(walk: _Walk, node: Node) -> Axes:
    return _fresh_pinned(node.meta.get("val"))
