"""Which permutation of B has units that do what A's do: matched by their values on the same inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.search import Matching
from modeconn_cli.symmetry.axes import Axis, size
from modeconn_cli.symmetry.equations import leaves
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import Place, permuted, places, unplaced

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import Activation


def match(options: Activation, given: Given) -> Matching:
    """:func:`activation_matching` of two networks, as the options say."""
    total, batches = given.inputs(options.examples)
    done = itertools.count(1)

    def watch() -> None:
        given.progress(min(next(done), total), total, "comparing units")
        given.check()

    a, b = given.states
    return activation_matching(given.symmetry, a, b, batches, options.similarity == "correlation", watch)


@torch.no_grad()
def activation_matching(
    symmetry: Symmetry,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    centred: bool = True,
    watch: Callable[[], None] = lambda: None,
) -> Matching:
    """Match B to A by what their units do on the same examples: every group at its non-linearities' outputs.

    A permutation of B only renames what its units do, so groups do not depend on one another.

    Args:
        batches: inputs, each of the shape that the module was traced with.
        centred: by correlation (Li et al. 2016, arXiv:1511.07543); else by least squares, which is the
            uncentred inner product. A unit that is constant correlates with none.
        watch: called after every batch; it may raise to stop.
    """
    groups = {g.leaf for g in symmetry.groups}
    sites = {
        (name, dim): axis
        for name, axes in symmetry.activations.items()
        for dim, axis in enumerate(axes)
        if any(leaf in groups for leaf in leaves(axis)) and not unplaced([axis])
    }
    sums = {place: _Moments(size(axis)) for place, axis in sites.items()}
    wanted = {name for name, _ in sites}
    for x in batches:
        seen = [_observe(symmetry, state, x, wanted) for state in (a, b)]
        for name, dim in sites:
            sums[name, dim].add(*(s[name].movedim(dim, 0).flatten(1).double() for s in seen))
        watch()
    alike = {place: m.correlation() if centred else m.product for place, m in sums.items()}
    problem = _ActivationProblem(symmetry, sites, alike)
    objective = [problem.objective()]
    # Groups that are factors of one axis, heads and what is inside them, depend on one another; others settle at once.
    for g in sorted(range(len(symmetry.groups)), key=lambda g: (g not in symmetry.inside, symmetry.groups[g].size)):
        problem.solve(g, problem.first_cost(g))
    while True:
        objective.append(problem.objective())
        watch()
        moved = [problem.solve(g, problem.cost(g)) for g in range(len(symmetry.groups))]
        if not any(moved):
            return Matching(problem.permutations, objective, 0, objective[0], objective[-1], "likeness of units")


class _ActivationProblem:
    """Likeness of units (D, D) along axes, and the permutations of the groups that these axes are made of."""

    def __init__(
        self, symmetry: Symmetry, sites: Mapping[tuple[str, int], Axis], alike: Mapping[tuple[str, int], Tensor]
    ):
        self.symmetry, self.groups = symmetry, symmetry.groups
        self.permutations = symmetry.identity()
        self.sites, self.alike = sites, alike
        self.along: dict[tuple[str, int], list[Place]] = {}
        number = {g.leaf: i for i, g in enumerate(self.groups)}
        self.places: list[list[tuple[tuple[str, int], Tensor]]] = [[] for _ in self.groups]
        for place, axis in sites.items():
            self.along[place] = places([axis])
            for run in self.along[place]:
                if run.leaf in number:
                    self.places[number[run.leaf]].append((place, run.at))

    def now(self, place: tuple[str, int]) -> Tensor:
        """Likeness of A's units with B's as permuted now."""
        by_leaf = dict(zip(self.symmetry.leaves, self.permutations, strict=True))
        return self.alike[place][:, permuted(torch.arange(len(self.alike[place])), self.along[place], by_leaf)]

    def cost(self, group: int) -> Tensor:
        """(size, size), for permutations from what the group is now."""
        n = self.groups[group].size
        total = torch.zeros(n, n, dtype=torch.float64)
        for place, at in self.places[group]:
            now = self.now(place)
            for m in range(at.shape[1]):
                total += now[at[:, m]][:, at[:, m]]
        return total

    def first_cost(self, group: int) -> Tensor:
        """Like :meth:`cost`, but with the other factors of an axis matched at their best for every pair by itself."""
        n = self.groups[group].size
        total = torch.zeros(n, n, dtype=torch.float64)
        for place, at in self.places[group]:
            if at.shape[1] == 1:
                total += self.alike[place][at[:, 0]][:, at[:, 0]]
                continue
            for i, j in np.ndindex(n, n):
                block = self.alike[place][at[i]][:, at[j]].numpy()
                total[i, j] += block[np.arange(len(block)), assign(block)].sum()
        return total

    def solve(self, group: int, cost: Tensor) -> bool:
        """Give a group its best permutation by these costs; whether it moved."""
        relative = torch.from_numpy(assign(cost.numpy()))
        gain = float(cost[torch.arange(len(cost)), relative].sum() - cost.trace())
        minimum_gain = 1e-9 * float(cost.abs().sum() + 1e-300)
        if gain <= minimum_gain:
            return False
        along = [place for place, _ in self.places[group]]
        twice = len(set(along)) < len(along)  # along one axis, so that the costs are but a linearisation
        before = self.objective() if twice else 0.0
        self.symmetry.permute_group(self.permutations, group, relative)
        if twice and self.objective() <= before + minimum_gain:
            self.symmetry.permute_group(self.permutations, group, torch.argsort(relative))
            return False
        return True

    def objective(self) -> float:
        """Likeness of every unit with its partner, summed."""
        return sum(float(self.now(place).trace()) for place in self.sites)


class _Moments:
    """Sums over examples of two sets of units, rows (size, examples)."""

    def __init__(self, size: int) -> None:
        self.n = 0
        self.product = torch.zeros(size, size, dtype=torch.float64)
        self.sums = [torch.zeros(size, dtype=torch.float64) for _ in "ab"]
        self.squares = [torch.zeros(size, dtype=torch.float64) for _ in "ab"]

    def add(self, a: Tensor, b: Tensor) -> None:
        self.n += a.shape[1]
        self.product += (a @ b.T).cpu()
        for i, x in enumerate((a, b)):
            self.sums[i] += x.sum(1).cpu()
            self.squares[i] += x.square().sum(1).cpu()

    def correlation(self) -> Tensor:
        """(size, size), zero for units that do not vary."""
        mean = [s / self.n for s in self.sums]
        std = [(q / self.n - m.square()).clamp(min=0).sqrt() for q, m in zip(self.squares, mean, strict=True)]
        covariance = self.product / self.n - mean[0][:, None] * mean[1][None, :]
        scale = std[0][:, None] * std[1][None, :]
        return torch.where(scale > 1e-12, covariance / scale.clamp(min=1e-12), 0.0)


def _observe(symmetry: Symmetry, state: Mapping[str, Tensor], x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
    """The named values of the traced graph on a batch, with these weights."""
    program = symmetry.program
    assert program is not None
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: dict[str, Tensor] = {}

    class Observer(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                found[n.name] = value[0] if isinstance(value, tuple | list) else value
            return value

    inputs: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            break
        name = stored.get(node.name)
        if name is not None:
            inputs.append(state[name] if name in state else program.constants[name])
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            inputs.append(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
        else:
            inputs.append(x)
    Observer(program.graph_module).run(*inputs)
    return found
