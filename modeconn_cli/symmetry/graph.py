"""The symmetry groups of a network, from its traced graph.

The graph that torch.export gives is walked once. Every operation says which axes of its inputs and outputs are the
same index set; parameters, buffers, inputs and outputs are tensors like any other, the last two pinned. An operation
that is not known pins what it touches: that costs freedom and never correctness.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Node

from modeconn_cli.forward import evaluating
from modeconn_cli.symmetry import recurrent
from modeconn_cli.symmetry.axes import MISFIT, Axes, Leaf, size
from modeconn_cli.symmetry.constants import RESHAPING
from modeconn_cli.symmetry.equations import collapse, leaves, pin
from modeconn_cli.symmetry.groups import FROZEN, Symmetry, frozen, symmetry_of
from modeconn_cli.symmetry.places import unplaced
from modeconn_cli.symmetry.rules import LINEAR, NONLINEAR, RULES
from modeconn_cli.symmetry.values import Values, constant_axes, fixed_axes, name_of, shape_of


class CannotTrace(Exception):  # noqa: N818 - named for what happened
    """torch.export cannot trace this module; the message says what stopped it."""


def trace(module: nn.Module, example: Tensor) -> Symmetry:
    """The permutation groups of a module in evaluation mode.

    Args:
        example: a batch of inputs; two examples are enough, and what is in them does not matter.

    Raises:
        CannotTrace: torch.export does not get through the module.
    """
    program = export(module, example, decomposed=True)
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # with sympy, a second to import

    try:
        recurrent.apart(program)
        return _Walk(program, module).symmetry()
    except GuardOnDataDependentSymNode:
        raise CannotTrace(f"{type(module).__name__} cannot be traced: a shape in it depends on the data") from None


def export(module: nn.Module, example: Tensor, decomposed: bool = False) -> torch.export.ExportedProgram:
    """The graph of a module in evaluation mode; decomposed, of PyTorch's core operations alone.

    Raises:
        CannotTrace: torch.export does not get through the module.
    """
    mode = module.training
    try:
        # torch prints pages about what it cannot trace; a line is raised here instead.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.CRITICAL)
            program = torch.export.export(evaluating(module), (example.clone(),))
            return program.run_decompositions(recurrent.decompositions()) if decomposed else program
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        said = said.partition(" (unhinted")[0]  # names of symbols that are torch's own
        raise CannotTrace(f"{type(module).__name__} cannot be traced{_culprit(error)}: {said}") from error
    finally:
        module.train(mode)


def _culprit(error: BaseException) -> str:
    """The line of a model's own code that stopped it, where there is one."""
    inside = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_file() and not f.filename.startswith((inside, __file__))]
    return f" past {Path(own[-1].filename).name}:{own[-1].lineno} `{own[-1].line}`" if own else ""


class _Walk:
    """One pass over a graph."""

    def __init__(self, program: torch.export.ExportedProgram, module: nn.Module) -> None:
        self.program = program
        self.values = Values()
        self._axes_of_tensor: dict[int, Axes] = {}  # by identity, so that tied tensors have the same axes
        state = module.state_dict(keep_vars=True)
        read = self._go_through(state)
        self._pin_buffers(state)
        for name in frozen(module):
            for axis in self._of_tensor(state[name], list(state[name].shape)):
                pin(axis, FROZEN)
        self.tensors: dict[str, Axes] = {}
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            self.tensors[name] = self._of_tensor(value, list(value.shape))
            # Tied tensors are one tensor: read under any of their names, they are read.
            alive = any(value is state[r] for r in read)
            if not alive and not name.endswith("num_batches_tracked"):
                for axis in self.tensors[name]:
                    pin(axis)

    def _go_through(self, state: dict[str, Tensor]) -> set[str]:
        """Find the axes of every value; the names of the parameters and buffers that an operation reads."""
        signature = self.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        read: set[str] = set()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                name = stored.get(node.name)
                if name is not None and name in state:
                    self.values.axes[node] = self._of_tensor(state[name], shape_of(node))
                    if node.users:
                        read.add(name)
                else:
                    self.values.axes[node] = self._given(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                for axis in self.values.every(node.args):
                    pin(axis)
        return read

    def _given(self, node: Node) -> Axes:
        """The axes of an input, or of a tensor that the module makes and keeps in no state_dict."""
        signature = self.program.graph_signature
        constants = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        name = constants.get(node.name)
        value = self.program.constants.get(name) if name is not None else None
        if isinstance(value, Tensor):
            self.values.made_anew[node] = lambda: constant_axes(value, f"the constant {name}")
            return self.values.of(node)
        return fixed_axes(node.meta.get("val"))

    def _pin_buffers(self, state: dict[str, Tensor]) -> None:
        """Pin all buffers but BatchNorm's statistics.

        A buffer is no coordinate: on a path it is averaged or taken from one end, so only statistics, which are
        estimated anew, may move. Masks and tables stay as they are.
        """
        signature = self.program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        statistics = {stored.get(n.name) for n in self.values.statistics}
        for name in signature.inputs_to_buffers.values():
            if name in state and name not in statistics:
                for axis in self._of_tensor(state[name], list(state[name].shape)):
                    pin(axis, f"the buffer {name}")

    def _of_tensor(self, tensor: Tensor, shape: Sequence[int]) -> Axes:
        return self._axes_of_tensor.setdefault(id(tensor), [Leaf(n) for n in shape])

    def _call(self, node: Node) -> None:
        if name_of(node).startswith("_assert"):  # which looks at a value and gives none
            return
        if name_of(node) in RESHAPING and node.args[0] in self.values.alike:
            self.values.be_alike(node)
            return
        rule = RULES.get(name_of(node))
        try:
            found = rule(self.values, node) if rule is not None else None
        except (ValueError, IndexError, ZeroDivisionError, TypeError):  # a case that the rule was not written for
            found = None
        if found is not None and _fits(found, node):
            self.values.axes[node] = found
        else:
            self._give_up(node)
        for axis in self.values.every((node.args, node.kwargs)):
            for leaf in leaves(axis):
                if leaf.held_by == MISFIT:
                    leaf.held_by = name_of(node)

    def _give_up(self, node: Node) -> None:
        """Pin everything that an operation reads and gives."""
        read = self.values.every((node.args, node.kwargs))
        self.values.pin_for(node, read)
        # Named where it takes freedom: from what it reads, or else from what its result meets.
        took = any(leaf.held_by == name_of(node) for axis in read for leaf in leaves(axis))
        name = None if took else name_of(node)
        meta = node.meta.get("val")
        if isinstance(meta, tuple | list):
            self.values.axes[node] = [fixed_axes(m, name) for m in meta]
        else:
            self.values.axes[node] = fixed_axes(meta, name)

    def symmetry(self) -> Symmetry:
        """What the equations leave free."""
        self._merge_unplaced()
        found = symmetry_of(self.tensors)
        return replace(
            found, pinned_by=self._pinned_by(), program=self.program, activations=self._activations({*found.leaves})
        )

    def _merge_unplaced(self) -> None:
        """Make one of the members of every dependent axis that some tensor or operation does not tell apart."""
        values = [v if isinstance(v, list) else [v] for v in self.tensors.values()]
        for found in self.values.axes.values():
            nested = [a for a in found if isinstance(a, list)]
            values += nested or [[a for a in found if not isinstance(a, list)]]
        values += self.values.summed
        while True:
            lost = [dependent for axes in values for dependent in unplaced(axes)]
            if not lost:
                return
            for dependent in lost:
                collapse(dependent)

    def _activations(self, groups: set[Leaf]) -> dict[str, Axes]:
        """The values at which units are compared: what non-linearities give, and elsewhere what linear maps do."""
        nodes = [n for n in self.values.axes if n.op == "call_function"]
        computed = {n.name: self.values.of(n) for n in nodes}
        found = {n.name: computed[n.name] for n in nodes if name_of(n) in NONLINEAR or recurrent.shows_units(n)}
        reached = {leaf for axes in found.values() for axis in axes for leaf in leaves(axis)}
        linear = {n.name for n in nodes if name_of(n) in LINEAR}
        for name in sorted(linear):  # where no non-linearity is, as inside attention and along a residual stream
            if any(leaf in groups and leaf not in reached for axis in computed[name] for leaf in leaves(axis)):
                found[name] = computed[name]
        reached |= {leaf for axes in found.values() for axis in axes for leaf in leaves(axis)}
        for name, axes in computed.items():  # and where neither is, as at an embedding, the first value that has it
            there = {leaf for axis in axes if not unplaced([axis]) for leaf in leaves(axis) if leaf in groups}
            if there - reached:
                found[name] = axes
                reached |= there
        return found

    def _pinned_by(self) -> dict[str, list[str]]:
        """Operations that took freedom from tensors of the network, and the dimensions of these."""
        found: dict[str, dict[str, None]] = {}
        for name, axes in self.tensors.items():
            for dim, axis in enumerate(axes):
                for leaf in leaves(axis):
                    if leaf.held_by is not None and leaf.size > 1:
                        found.setdefault(leaf.held_by, {})[f"{name}[{dim}]"] = None
        return {operation: [*places] for operation, places in found.items()}


def _fits(found: Axes | list[Axes], node: Node) -> bool:
    """Whether axes are of the sizes that an operation's result has."""
    meta = node.meta.get("val")
    if not isinstance(meta, Tensor):
        return True
    return [size(a) for a in found if not isinstance(a, list)] == [int(n) for n in meta.shape]
