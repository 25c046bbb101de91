"""Recurrent layers of a traced graph, kept whole: unrolled over time they would be thousands of operations.

A layer's units carry one permutation, the same at every time: of the rows of W_ih, W_hh and the biases gate by gate,
and of the columns of W_hh. With a projection (``proj_size``) the columns are the projected units', which are a group
of their own. A second direction and a next layer have units of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, Node

from modeconn_cli.symmetry.axes import Axes, Axis, Dependent, Leaf, fixed, size
from modeconn_cli.symmetry.equations import concatenation, unify
from modeconn_cli.symmetry.rules import rule
from modeconn_cli.symmetry.values import Values, args_of, name_of, shape_of

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
OPERATIONS = [getattr(torch.ops.aten, name).input for name in GATES]
OUT, HIDDEN, CELL = 0, 1, 2  # places in an operation's results


def decompositions() -> dict[Any, Any]:
    """Which operations torch.export is to take apart: those that it does by default, but these."""
    return dict(_decompositions(frozenset(dir(torch.ops))))


@cache
def _decompositions(libraries: frozenset[str]) -> dict[Any, Any]:
    """The table of the libraries of operations there are: finding them takes as long as tracing a small network."""
    table: dict[Any, Any] = torch.export.default_decompositions()
    for operation in OPERATIONS:
        table.pop(operation, None)
    return dict(table)


def is_recurrent(node: Any) -> bool:
    """Whether a node is a recurrent layer, or several."""
    return isinstance(node, Node) and node.target in OPERATIONS


def shows_units(node: Node) -> bool:
    """Whether a value is what a recurrent layer's units do: its outputs, or an LSTM's last cell state."""
    return name_of(node) == "getitem" and is_recurrent(node.args[0]) and node.args[1] in (OUT, CELL)


def apart(program: torch.export.ExportedProgram) -> None:
    """Make one operation of every layer of a stack, so that what is between them is a value of the graph."""
    graph = program.graph_module.graph
    for node in [n for n in graph.nodes if is_recurrent(n)]:
        with graph.inserting_before(node):
            _replace(graph, node)
    graph.lint()
    program.graph_module.recompile()


def _replace(graph: Graph, node: Node) -> None:
    x, state, parameters, biases, layers, _, _, bidirectional, batch_first = node.args
    states = list(state) if isinstance(state, list | tuple) else [state]
    assert isinstance(parameters, list | tuple)
    assert isinstance(layers, int)
    directions, each = 1 + bool(bidirectional), len(parameters) // layers
    shapes = [list(v.shape) for v in node.meta["val"]]
    made: list[list[Node]] = []
    for k in range(layers):
        own = []
        for s in states:
            assert isinstance(s, Node)
            own.append(graph.call_function(torch.ops.aten.slice.Tensor, (s, 0, k * directions, (k + 1) * directions)))
            own[-1].meta["val"] = torch.empty(directions, *shape_of(s)[1:], device="meta")
        layer = graph.call_function(
            node.target,  # type: ignore[arg-type]
            (x, own if len(own) > 1 else own[0], list(parameters[k * each : (k + 1) * each]), biases, 1, 0.0, False,
             bidirectional, batch_first),
        )  # fmt: skip
        ours = [shapes[OUT], *([directions, *s[1:]] for s in shapes[1:])]
        layer.meta["val"] = tuple(torch.empty(s, device="meta") for s in ours)
        made.append([graph.call_function(operator.getitem, (layer, i)) for i in range(len(shapes))])
        for i, value in enumerate(made[-1]):
            value.meta["val"] = layer.meta["val"][i]
        x = made[-1][OUT]
    for old in [*node.users]:
        place = old.args[1]
        assert isinstance(place, int)
        if place == OUT:
            assert isinstance(x, Node)
            old.replace_all_uses_with(x)
        else:
            _replace_states(graph, old, [results[place] for results in made], directions)
        graph.erase_node(old)
    graph.erase_node(node)


def _replace_states(graph: Graph, old: Node, made: Sequence[Node], directions: int) -> None:
    """Put layers' own last states in place of those of all: where one is picked out, that one."""
    for user in [*old.users]:
        if name_of(user) == "select" and user.args[1] == 0:
            i = int(user.args[2]) % (directions * len(made))  # type: ignore[arg-type]
            user.args = (made[i // directions], 0, i % directions)
    if old.users:
        whole = made[0] if len(made) == 1 else graph.call_function(torch.ops.aten.cat.default, ([*made], 0))
        whole.meta |= {"val": old.meta["val"], "apart": True}
        old.replace_all_uses_with(whole)


@rule(*GATES)
def _layer(values: Values, node: Node) -> list[Axes]:
    x = values.of(args_of(node)[0])
    states, parameters = args_of(node)[1], args_of(node)[2]
    states = [values.of(s) for s in (states if isinstance(states, list | tuple) else [states])]
    directions = 1 + bool(args_of(node)[7])
    each = len(parameters) // directions
    time = 1 if len(x) == 3 and args_of(node)[8] else 0
    values.pin_for(node, [x[time]])
    found = [
        _direction(values, node, x[-1], [values.of(p) for p in parameters[k * each : (k + 1) * each]])
        for k in range(directions)
    ]
    over = fixed(directions)
    out = [*x[:-1], concatenation([hidden for hidden, _ in found])]
    results: list[Axes] = [out]
    for axes, members in zip(states, zip(*found, strict=True), strict=False):
        units = members[0] if directions == 1 else Dependent(over, [*members])
        state: Axes = [over, *(a for d, a in enumerate(x[:-1]) if d != time), units]
        for a, b in zip(axes, state, strict=True):
            unify(a, b)
        results.append(state)
    return results


def _direction(values: Values, node: Node, x: Axis, parameters: Sequence[Axes]) -> tuple[Axis, Axis]:
    """The axes of one direction's hidden state and of its units, which differ where there is a projection."""
    gates = GATES[name_of(node)]
    biases = 2 if args_of(node)[3] else 0
    w_ih, w_hh, *others = parameters
    units: Axis = Leaf(size(w_ih[0]) // gates)
    rows = concatenation([units] * gates)
    for axes in (w_ih, w_hh, *others[:biases]):
        unify(axes[0], rows)
    hidden = units
    if len(others) > biases:  # the projection's weight
        hidden = others[biases][0]
        unify(others[biases][1], units)
        values.summed.append([others[biases][1]])
    unify(x, w_ih[1])
    unify(hidden, w_hh[1])
    values.summed += [[w_ih[1]], [w_hh[1]]]
    return hidden, units
