"""The straight-through estimator: free weights follow the loss at the midpoint, and permutations are nearest to them.

Ainsworth et al. 2023 (arXiv:2209.04836), section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modeconn_cli.matching.ascent import ascend, first_pass
from modeconn_cli.matching.midpoint import BestMidpoint, Check, Loss, Parameters, Watch, told
from modeconn_cli.matching.problem import WeightProblem
from modeconn_cli.matching.search import NO_MEMORY, Matching, Memory
from modeconn_cli.symmetry.groups import Symmetry

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import StraightThrough


def match(options: StraightThrough, given: Given) -> Matching:
    """:func:`straight_through` between two networks, as the options say."""
    loss, check = given.losses(options.steps, options.batch_size, options.examples, options.seed)
    return straight_through(
        given.symmetry,
        given.parameters(0),
        given.parameters(1),
        loss,
        check,
        options.steps,
        options.lr or 1e-3,
        seed=options.seed,
        watch=told(given, options.steps),
        memory=given.memory,
    )


def straight_through(
    symmetry: Symmetry,
    a: Parameters,
    b: Parameters,
    loss: Loss,
    check: Check,
    steps: int,
    lr: float,
    check_every: int = 20,
    seed: int = 0,
    watch: Watch = lambda step, loss: None,
    memory: Memory = NO_MEMORY,
) -> Matching:
    """Match B to A for a low loss at the midpoint.

    Free weights start at A; every step projects them to the nearest permutation of B, by weight matching, takes the
    gradient of the loss halfway between A and that, and hands it to the free weights as if it were theirs (Adam). The
    first projection is the first start of weight matching, so on the checked examples what is found is never worse
    than that, nor than B as it is.

    Args:
        a, b: the parameters of the traced module that count, on one device.
        loss, check: of a network with other parameters, on a step's batch and on examples that stay the same.
        check_every: steps between looks at whether the midpoint is the best so far.
        memory: its state is left there whenever that is due.
    """
    best = BestMidpoint(symmetry, a, b, check)
    begun = memory.begun()
    free = _FreeWeights(symmetry, a, b, lr, seed, begun)
    if begun:
        best.load(begun["best"])
    for step in range(begun["step"] if begun else 0, steps):
        free.project()
        if step % check_every == 0:
            best.try_out(free.problem.permutations)
        now = free.descend(loss, step)
        if memory.due:
            memory.save({"step": step + 1, **free.state(), "best": best.state()})
        watch(step, now)
    free.project()
    best.try_out(free.problem.permutations)
    return best.matching()


class _FreeWeights:
    """Weights that begin at A and are trained, and the permuted B nearest to them."""

    def __init__(
        self, symmetry: Symmetry, a: Parameters, b: Parameters, lr: float, seed: int, begun: dict[str, Any] | None
    ) -> None:
        self.a, self.b, self.names = a, b, list(a)
        self.weights = {n: a[n].detach().float().clone() for n in self.names}
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr)
        self.rng = np.random.default_rng(seed)
        self.problem = WeightProblem(symmetry, self.weights, b, self.names, begun["permutations"] if begun else None)
        if begun is None:
            first_pass(self.problem)
            return
        for n, saved in zip(self.names, begun["free"], strict=True):
            self.weights[n].copy_(saved)
        self.optimizer.load_state_dict(begun["optimizer"])
        self.rng.bit_generator.state = begun["rng"]

    def project(self) -> None:
        """Permute B to be near the weights."""
        self.problem.retarget(self.weights)
        ascend(self.problem, self.rng)

    def descend(self, loss: Loss, step: int) -> float:
        """One step of the optimizer by the gradient at the midpoint; the loss there."""
        moved = self.problem.current()
        middle = {n: torch.lerp(self.a[n], moved.get(n, self.b[n]), 0.5).requires_grad_() for n in self.names}
        now = loss(middle, step)
        gradients = torch.autograd.grad(now, list(middle.values()), allow_unused=True)
        for n, gradient in zip(self.names, gradients, strict=True):
            self.weights[n].grad = torch.zeros_like(self.weights[n]) if gradient is None else gradient / 2
        self.optimizer.step()
        return float(now.detach())

    def state(self) -> dict[str, Any]:
        """What a later process goes on from."""
        return {
            "free": [self.weights[n] for n in self.names],
            "permutations": self.problem.permutations,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
        }
