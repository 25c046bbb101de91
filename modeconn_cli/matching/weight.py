"""Weight matching: which permutation of B lies nearest to A in weight space.

The objective is the inner product of A with the permuted B over all parameters (Ainsworth et al. 2023,
arXiv:2209.04836, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.matching.ascent import coordinate_ascent, first_pass, solve
from modeconn_cli.matching.layout import Layout
from modeconn_cli.matching.problem import WeightProblem
from modeconn_cli.matching.search import NO_MEMORY, Matching, Memory
from modeconn_cli.symmetry.groups import Symmetry

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import Weight

PERTURBED_SHARE = 0.6  # of the groups, which a further start shuffles
GAIN_HORIZON = 5  # sweeps: a further start ends where so many like its last would not make it the best


def match(options: Weight, given: Given) -> Matching:
    """:func:`weight_matching` of two networks, as the options say."""
    restarts = default_restarts(given.symmetry) if options.restarts is None else options.restarts

    def watch(start: int, sweep: int, objective: float) -> None:
        given.progress(start, restarts + 1, f"sweep {sweep + 1} objective {objective:.4f}")
        given.check()

    a, b = given.parameters(0), given.parameters(1)
    return weight_matching(
        given.symmetry, a, b, given.names, options.seed, restarts, options.sweeps, watch, given.memory
    )


def weight_matching(
    symmetry: Symmetry,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Sequence[str],
    seed: int = 0,
    restarts: int | None = None,
    sweeps: int = 100,
    watch: Callable[[int, int, float], None] = lambda start, sweep, objective: None,
    memory: Memory = NO_MEMORY,
) -> Matching:
    """Match B to A by their weights.

    The first start settles the groups in order of how far the rest determines them: next to inputs, outputs and
    groups that are settled; the others count on average over all that they may be. Later starts shuffle some of the
    groups of the best so far and solve these first. Each is swept until nothing moves, or a later one until it gains
    too little to become the best; the best is kept.

    Args:
        a, b: state_dicts of the traced module, on one device.
        parameters: names of the tensors that count; BatchNorm's running statistics and the like do not.
        restarts: further starts; None: :func:`default_restarts`.
        sweeps: most of one start.
        watch: called after every sweep with start, sweep and objective; it may raise to stop.
        memory: what is found is left there after every start.
    """
    begun = memory.begun()
    best = Matching(**begun["best"]) if begun else None
    if restarts is None:
        restarts = default_restarts(symmetry)
    layout = Layout(symmetry, a, parameters)
    for start in range(begun["starts"] if begun else 0, restarts + 1):
        rng = np.random.default_rng([seed, start])
        problem = WeightProblem(symmetry, a, b, layout, best.permutations if best else None)
        solved = None
        if best is None:
            before = problem.objective()
            if not problem.groups:
                return Matching([], [before], 0, before, before)
            solved = first_pass(problem)
        else:
            before = best.before
            _perturb(problem, rng)
        objective = [problem.objective()]
        for sweep in coordinate_ascent(problem, rng, sweeps, solved):
            objective.append(problem.objective())
            watch(start, sweep, objective[-1])
            if best and objective[-1] + GAIN_HORIZON * (objective[-1] - objective[-2]) < best.objective[-1]:
                break
        if best is None or objective[-1] > best.objective[-1]:
            best = Matching(problem.permutations, objective, start, before, objective[-1])
        memory.save({"starts": start + 1, "best": dict(vars(best))})
    assert best is not None
    return best


def default_restarts(symmetry: Symmetry) -> int:
    """How many further starts weight matching makes when not told; wide layers gain little by them and take long."""
    return 8 if all(g.size <= 1024 for g in symmetry.groups) else 1


def _perturb(problem: WeightProblem, rng: np.random.Generator) -> None:
    """Shuffle some of the groups, and give each of these its best permutation before any other is asked again."""
    groups = len(problem.groups)
    some = rng.permutation(groups)[: max(2, round(PERTURBED_SHARE * groups))]
    for g in some.tolist():
        problem.move(g, torch.from_numpy(rng.permutation(problem.groups[g].size)))
    for g in some.tolist():
        solve(problem, g)
