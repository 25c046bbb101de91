"""Many networks brought together: each gets a permutation, such that all of them lie near one another.

With one permutation a network, going from any network to another and on to a third and back leads to where one began,
which is not so where every pair is matched by itself; :func:`cycle_error` measures it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.matching.ascent import ascend
from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.layout import Layout
from modeconn_cli.matching.problem import WeightProblem
from modeconn_cli.matching.search import NO_MEMORY, AllMatched, Memory
from modeconn_cli.matching.sinkhorn import mix
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import Place

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import Searched

States = Sequence[Mapping[str, Tensor]]
Watch = Callable[[int, float], None]  # round, objective; it may raise to stop


def match_all(
    method: Callable[..., tuple[list[list[Tensor]], list[float]]], options: Searched, given: Given
) -> AllMatched:
    """:func:`merge_many` or :func:`cycle_consistent` of networks, as the options say."""

    def watch(step: int, objective: float) -> None:
        given.progress(min(step + 1, options.sweeps), options.sweeps, f"objective {objective:.4f}")
        given.check()

    here = [given.parameters(i) for i in range(len(given.states))]
    asked: dict[str, Any] = {} if options.restarts is None else {"restarts": options.restarts}
    asked |= {"rounds": options.sweeps, "seed": options.seed, "watch": watch, "memory": given.memory}
    return AllMatched(*method(given.symmetry, here, given.names, **asked))


def merge_many(
    symmetry: Symmetry,
    states: States,
    parameters: Sequence[str],
    rounds: int = 100,
    restarts: int = 3,
    seed: int = 0,
    watch: Watch = lambda step, objective: None,
    memory: Memory = NO_MEMORY,
) -> tuple[list[list[Tensor]], list[float]]:
    """Match every network to the mean of the others, until none moves (Ainsworth et al. 2023, algorithm 3).

    Args:
        rounds: most of one start.
        restarts: further starts, from random permutations; the best counts.
        memory: what is found is left there after every start.

    Returns:
        For every network a permutation of each group, the first network's the identity; and after every round the sum
        over pairs of the inner products of their parameters.
    """
    found = _found_so_far(memory)
    for start in range(len(found), restarts + 1):
        rng = np.random.default_rng([seed, start])
        permutations = [symmetry.identity() for _ in states]
        if start:
            permutations = [[torch.from_numpy(rng.permutation(g.size)) for g in symmetry.groups] for _ in states]
        found.append(_to_the_others(symmetry, states, parameters, permutations, rng, rounds, watch))
        memory.save({"found": found})
    permutations, objective = max(found, key=lambda f: f[1][-1])
    return _from_the_first(symmetry, permutations), objective


def _found_so_far(memory: Memory) -> list[tuple[list[list[Tensor]], list[float]]]:
    begun = memory.begun()
    return begun["found"] if begun else []


def _to_the_others(
    symmetry: Symmetry,
    states: States,
    parameters: Sequence[str],
    permutations: list[list[Tensor]],
    rng: np.random.Generator,
    rounds: int,
    watch: Watch,
) -> tuple[list[list[Tensor]], list[float]]:
    """Match each network to the mean of the others in turn, from these permutations on, until none moves."""
    own = [{n: s[n].detach().float() for n in parameters} for s in states]
    here = [symmetry.permute(s, p) for s, p in zip(own, permutations, strict=True)]
    objective = [_together(here)]
    layout = Layout(symmetry, own[0], parameters)
    for step in range(rounds):
        moved = False
        for i in rng.permutation(len(states)).tolist():
            others = [s for k, s in enumerate(here) if k != i]
            mean = {n: torch.stack([s[n] for s in others]).mean(0) for n in parameters}
            problem = WeightProblem(symmetry, mean, here[i], layout)
            ascend(problem, rng)
            if problem.clock:
                moved = True
                here[i] |= problem.current()
                permutations[i] = composed(symmetry, permutations[i], problem.permutations)
        objective.append(_together(here))
        watch(step, objective[-1])
        if not moved:
            break
    return permutations, objective


def cycle_consistent(
    symmetry: Symmetry,
    states: States,
    parameters: Sequence[str],
    rounds: int = 100,
    restarts: int = 6,
    seed: int = 0,
    watch: Watch = lambda step, objective: None,
    memory: Memory = NO_MEMORY,
) -> tuple[list[list[Tensor]], list[float]]:
    """Match all networks to one another at once by Frank-Wolfe (Crisostomi et al. 2024, C2M3, arXiv:2405.17897).

    The sum over pairs of the inner products of their parameters is followed uphill in the matrices of all groups of
    all networks, which are doubly stochastic on the way: every step goes towards the permutations that its gradient
    likes best, as far as is best (along that line the objective is a polynomial, so this is exact), and at the end the
    nearest permutations are taken. Here these are then settled as :func:`merge_many` would, which the paper does not:
    what Frank-Wolfe ends at need not be the best even for one group of one network.

    Args:
        rounds: most steps of one start.
        restarts: starts after the first, which is no permutation, as in the paper: matrices that prefer none, but for
            the first network's (were all such, none would have a gradient). Later ones begin at the best so far, but
            for one network, drawn each time, whose matrices prefer little: that finds more than other starts do.
        memory: as of :func:`merge_many`.

    Returns:
        As :func:`merge_many`.
    """
    found = _found_so_far(memory)
    for start in range(len(found), restarts + 1):
        rng = np.random.default_rng([seed, start])

        first = [[torch.eye(g.size) for g in symmetry.groups] for _ in states]
        if start == 1:
            first[1:] = [[torch.full_like(m, 1 / len(m)) for m in each] for each in first[1:]]
        elif start:
            first = _one_taken_out(max(found, key=lambda f: f[1][-1])[0], rng)
        nearest, climbed = _frank_wolfe(symmetry, states, parameters, rounds, first, watch)
        permutations, settled = _to_the_others(symmetry, states, parameters, nearest, rng, rounds, watch)
        found.append((permutations, [*climbed, *settled]))
        memory.save({"found": found})
    permutations, objective = max(found, key=lambda f: f[1][-1])
    return _from_the_first(symmetry, permutations), objective


def _one_taken_out(permutations: list[list[Tensor]], rng: np.random.Generator) -> list[list[Tensor]]:
    """Permutations as matrices, but for one network, whose own are uniform but for a twentieth, a random permutation.

    All others hold still at first, so that it finds its place among them once more, and then all move.
    """
    first = [[torch.eye(len(p))[p] for p in each] for each in permutations]
    taken = int(rng.integers(len(first)))
    first[taken] = [
        torch.lerp(torch.full_like(m, 1 / len(m)), m[torch.from_numpy(rng.permutation(len(m)))], 0.05)
        for m in first[taken]
    ]
    return first


def _frank_wolfe(
    symmetry: Symmetry,
    states: States,
    parameters: Sequence[str],
    rounds: int,
    soft: list[list[Tensor]],
    watch: Watch,
) -> tuple[list[list[Tensor]], list[float]]:
    """From the matrices ``soft``, one for each group of each network, to the permutations nearest to where it ends."""
    leaves = symmetry.leaves
    own = [{n: s[n].detach().float() for n in parameters} for s in states]
    device = own[0][parameters[0]].device
    soft = [[m.to(device) for m in each] for each in soft]
    # Of a tensor that k groups mix, a network's part has degree k along a line, and a pair's twice that.
    mixing = {n: [p for p in symmetry.places[n] if p.leaf in leaves] for n in parameters}
    degree = 2 * max((_factors(along, own[0][n].shape) for n, along in mixing.items()), default=0) or 1
    nodes = (1 - np.cos(np.pi * np.arange(degree + 1) / degree)) / 2
    objective: list[float] = []
    for step in range(rounds):
        with torch.enable_grad():
            free = [[m.requires_grad_() for m in each] for each in soft]
            worth = _pairwise(
                [mix(symmetry, s, dict(zip(leaves, m, strict=True))) for s, m in zip(own, free, strict=True)]
            )
            gradients = iter(torch.autograd.grad(worth, [m for each in free for m in each], allow_unused=True))
        soft = [[m.detach() for m in each] for each in free]
        objective.append(float(worth.detach()))
        watch(step, objective[-1])
        towards = [[_vertex(m, next(gradients)) for m in each] for each in soft]
        along = []
        for t in nodes.tolist():
            there = [
                [torch.lerp(m, v, t) for m, v in zip(*pair, strict=True)] for pair in zip(soft, towards, strict=True)
            ]
            mixtures = [mix(symmetry, s, dict(zip(leaves, m, strict=True))) for s, m in zip(own, there, strict=True)]
            along.append(float(_pairwise(mixtures)))
        line = np.polynomial.Polynomial.fit(nodes, along, degree, domain=[0, 1], window=[0, 1])
        turns = [float(r.real) for r in line.deriv().roots() if abs(r.imag) < 1e-9 and 0 < float(r.real) < 1]
        t = max([1.0, *turns], key=lambda t: float(line(t)))
        if float(line(t)) <= objective[-1] + 1e-7 * abs(objective[-1]):
            break
        soft = [[torch.lerp(m, v, t) for m, v in zip(*pair, strict=True)] for pair in zip(soft, towards, strict=True)]
    return [[torch.from_numpy(assign(m.double().cpu().numpy())) for m in each] for each in soft], objective


def _factors(along: Sequence[Place], shape: Sequence[int]) -> int:
    """By how many matrices any one element of a tensor is mixed."""
    count = torch.zeros(list(shape), dtype=torch.int64)
    for place in along:
        region = [torch.arange(n) for n in count.shape]
        for dim, at in [*place.within, (place.dim, place.at.reshape(-1))]:
            region[dim] = at
        count[torch.meshgrid(*region, indexing="ij")] += 1
    return int(count.max()) if count.numel() else 0


def _vertex(like: Tensor, gradient: Tensor | None) -> Tensor:
    """The permutation matrix that a gradient likes best."""
    if gradient is None:
        return like
    columns = torch.from_numpy(assign(gradient.double().cpu().numpy())).to(like.device)
    return torch.zeros_like(like).scatter_(1, columns[:, None], 1.0)


def _pairwise(states: States) -> Tensor:
    """The sum over pairs of inner products: half of what the square of the sum has more than the sum of squares."""
    total = torch.zeros((), dtype=torch.float64, device=next(iter(states[0].values())).device)
    for n in states[0]:
        each = torch.stack([s[n] for s in states]).double()
        total = total + (each.sum(0).square().sum() - each.square().sum()) / 2
    return total


def _together(states: States) -> float:
    return float(_pairwise(states))


def composed(symmetry: Symmetry, first: Sequence[Tensor], then: Sequence[Tensor]) -> list[Tensor]:
    """The permutations that act as one after the other."""
    found = [p.clone() for p in first]
    for g in _outer_first(symmetry):
        symmetry.permute_group(found, g, then[g])
    return found


def undone(symmetry: Symmetry, permutations: Sequence[Tensor], by: Sequence[Tensor]) -> list[Tensor]:
    """The permutations, and after them the inverse of others."""
    found = [p.clone() for p in permutations]
    for g in reversed(_outer_first(symmetry)):
        symmetry.permute_group(found, g, torch.argsort(by[g]))
    return found


def cycle_error(symmetry: Symmetry, matched: Mapping[tuple[int, int], Sequence[Tensor]], networks: int) -> float:
    """How many of all units are not back in their place after going round three networks, on average over triples.

    Args:
        matched: for a pair (i, j), i before j, the permutations that bring i to j.
    """
    total = sum(g.size for g in symmetry.groups)
    errors = []
    for i, j, k in itertools.combinations(range(networks), 3):
        there = composed(symmetry, matched[i, j], matched[j, k])
        back = undone(symmetry, there, matched[i, k])
        errors.append(sum(_not_back(symmetry, back)) / max(total, 1))
    return float(np.mean(errors)) if errors else 0.0


def _not_back(symmetry: Symmetry, back: Sequence[Tensor]) -> list[int]:
    """Of each group how many units are not where they were; inside an index that is not, none is."""
    away = [p != torch.arange(len(p)) for p in back]
    for outer in _outer_first(symmetry):
        for members in symmetry.inside.get(outer, []):
            for here, gone in zip(members, away[outer].tolist(), strict=True):
                for g in here if gone else []:
                    away[g] = torch.ones_like(away[g])
    return [int(a.sum()) for a in away]


def pairs_of(symmetry: Symmetry, universal: Sequence[Sequence[Tensor]]) -> dict[tuple[int, int], list[Tensor]]:
    """What one permutation a network says of every pair: to the common order, and back to the other's."""
    pairs = itertools.combinations(range(len(universal)), 2)
    return {(i, j): undone(symmetry, universal[i], universal[j]) for i, j in pairs}


def _from_the_first(symmetry: Symmetry, permutations: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The same permutations, seen from the order that the first network has as it is."""
    return [undone(symmetry, p, permutations[0]) for p in permutations]


def _outer_first(symmetry: Symmetry) -> list[int]:
    """Groups, those before what moves inside them."""
    depth = dict.fromkeys(range(len(symmetry.groups)), 0)
    for _ in depth:
        before = dict(depth)
        for outer, families in symmetry.inside.items():
            for g in {g for members in families for here in members for g in here}:
                depth[g] = max(depth[g], depth[outer] + 1)
        if depth == before:
            break
    return sorted(depth, key=depth.__getitem__)
