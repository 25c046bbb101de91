"""Permutations found by gradient descent on the loss between two networks, rather than by what their weights are.

The straight-through estimator (Ainsworth et al. 2023, arXiv:2209.04836, section 3.3) follows the loss at the midpoint
with weights that are free, and takes at every step the permutation nearest to them. Sinkhorn re-basin (Pena et al.
2023, arXiv:2212.12042) lets matrices that are doubly stochastic mix units, and makes permutations of them at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.matching.weight import Forgetful, Matching, Memory, WeightProblem, ascend, assign, settle
from modeconn_cli.symmetry.axes import Leaf, mixed
from modeconn_cli.symmetry.groups import Symmetry

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters, int], Tensor]  # of a network with these parameters, on a step's batch
Check = Callable[[Parameters], float]  # of a network with these parameters, on examples that are always the same
Watch = Callable[[int, float], None]  # step, loss; it may raise to stop

MARGIN = 1e-5  # how far a round may still move the logarithm of a scale
MOST_ROUNDS = 200


class _Best:
    """The permutations with the lowest midpoint loss so far, from none on, and what every check found."""

    def __init__(self, symmetry: Symmetry, a: Parameters, b: Parameters, check: Check) -> None:
        self.symmetry, self.a, self.b, self.check = symmetry, a, b, check
        self.found: list[float] = []
        self._lowest = float("inf")
        self.permutations = symmetry.identity()
        self.try_out(self.permutations)

    def try_out(self, permutations: Sequence[Tensor]) -> None:
        moved = self.symmetry.permute(dict(self.b), permutations)
        loss = self.check({n: torch.lerp(self.a[n], moved[n], 0.5) for n in self.a})
        if loss < self._lowest:
            self.permutations, self._lowest = [p.clone() for p in permutations], loss
        self.found.append(loss)

    def state(self) -> dict[str, Any]:
        return {"found": self.found, "lowest": self._lowest, "permutations": self.permutations}

    def load(self, state: Mapping[str, Any]) -> None:
        self.found, self._lowest, self.permutations = state["found"], state["lowest"], state["permutations"]

    def matching(self) -> Matching:
        return Matching(self.permutations, self.found, 0, self.found[0], self._lowest, "midpoint loss")


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
    memory: Memory = Forgetful(),  # noqa: B008 - it has no state
) -> Matching:
    """Match B to A for a low loss at the midpoint.

    Free weights start at A; every step projects them to the nearest permutation of B, by weight matching, takes the
    gradient of the loss halfway between A and that, and hands it to the free weights as if it were theirs (Adam). The
    first projection is the first start of weight matching, so on the checked examples what is found is never worse
    than that, nor than B as it is.

    Args:
        a, b: the parameters of the traced module that count, on one device.
        check_every: steps between looks at whether the midpoint is the best so far.
        memory: its state is left there whenever that is due.
    """
    names = list(a)
    free = {n: a[n].detach().float().clone() for n in names}
    optimizer = torch.optim.Adam(list(free.values()), lr)
    best = _Best(symmetry, a, b, check)
    rng = np.random.default_rng(seed)
    begun = memory.begun()
    problem = WeightProblem(symmetry, free, b, names, begun["permutations"] if begun else None)
    if begun:
        for n, saved in zip(names, begun["free"], strict=True):
            free[n].copy_(saved)
        optimizer.load_state_dict(begun["optimizer"])
        rng.bit_generator.state = begun["rng"]
        best.load(begun["best"])
    else:
        settle(problem)
    for step in range(begun["step"] if begun else 0, steps):
        problem.aim(free)
        deque(ascend(problem, rng), 0)
        if step % check_every == 0:
            best.try_out(problem.permutations)
        moved = problem.present()
        middle = {n: torch.lerp(a[n], moved.get(n, b[n]), 0.5).requires_grad_() for n in names}
        here = loss(middle, step)
        for n, gradient in zip(names, torch.autograd.grad(here, list(middle.values()), allow_unused=True), strict=True):
            free[n].grad = torch.zeros_like(free[n]) if gradient is None else gradient / 2
        optimizer.step()
        if memory.due:
            memory.save(
                {
                    "step": step + 1,
                    "free": [free[n] for n in names],
                    "permutations": problem.permutations,
                    "optimizer": optimizer.state_dict(),
                    "rng": rng.bit_generator.state,
                    "best": best.state(),
                }
            )
        watch(step, float(here.detach()))
    problem.aim(free)
    deque(ascend(problem, rng), 0)
    best.try_out(problem.permutations)
    return best.matching()


def sinkhorn_matching(
    symmetry: Symmetry,
    a: Parameters,
    b: Parameters,
    loss: Loss | None,
    check: Check,
    steps: int,
    lr: float,
    temperature: float = 1.0,
    unrolled: int | None = None,
    everywhere: bool = False,
    check_every: int = 20,
    seed: int = 0,
    watch: Watch = lambda step, loss: None,
    memory: Memory = Forgetful(),  # noqa: B008 - it has no state
) -> Matching:
    """Match B to A by doubly stochastic matrices, trained by gradient descent (Adam).

    They start uniform, so that the order in which B happens to have its units plays no part.

    Args:
        loss: of a point between A and B as mixed; None: the squared distance of the two (the paper's L2).
        temperature: what the matrices' logarithms are divided by; lower is nearer to permutations.
        unrolled: differentiate through so many rounds of normalisation; None: implicitly, at their limit.
        everywhere: a random point of the line at every step (the paper's Rnd), not its midpoint (Mid).
        memory: as of :func:`straight_through`.
    """
    best = _Best(symmetry, a, b, check)
    device = next(iter(a.values())).device
    logits = [torch.zeros(g.size, g.size, device=device, requires_grad=True) for g in symmetry.groups]
    columns = [torch.zeros(1, g.size, device=device) for g in symmetry.groups]  # where the last limits were found
    optimizer = torch.optim.Adam(logits, lr)
    generator = torch.Generator().manual_seed(seed)
    scale = sum(float(v.square().sum()) for v in a.values())
    begun = memory.begun()
    if begun:
        for own, saved in zip([*logits, *columns], [*begun["logits"], *begun["columns"]], strict=True):
            own.data.copy_(saved)
        optimizer.load_state_dict(begun["optimizer"])
        generator.set_state(begun["rng"])
        best.load(begun["best"])
    for step in range(begun["step"] if begun else 0, steps):
        soft = {
            g.leaf: sinkhorn(x / temperature, unrolled, v)
            for g, x, v in zip(symmetry.groups, logits, columns, strict=True)
        }
        moved = mix(symmetry, b, soft)
        if loss is None:
            here = sum(((a[n] - moved[n]).square().sum() for n in a), torch.zeros((), device=device)) / scale
        else:
            share = float(torch.rand((), generator=generator)) if everywhere else 0.5
            here = loss({n: torch.lerp(a[n], moved[n], share) for n in a}, step)
        optimizer.zero_grad()
        here.backward()
        optimizer.step()
        if step % check_every == check_every - 1 or step == steps - 1:
            best.try_out([torch.from_numpy(assign(x.detach().double().cpu().numpy())) for x in logits])
        if memory.due:
            memory.save(
                {
                    "step": step + 1,
                    "logits": [x.detach() for x in logits],
                    "columns": columns,
                    "optimizer": optimizer.state_dict(),
                    "rng": generator.get_state(),
                    "best": best.state(),
                }
            )
        watch(step, float(here.detach()))
    return best.matching()


def mix(symmetry: Symmetry, state: Parameters, matrices: Mapping[Leaf, Tensor]) -> dict[str, Tensor]:
    """A state with every group's indices mixed by a matrix (size, size); a permutation matrix permutes it."""
    found = {}
    for name, value in state.items():
        for place in symmetry.places.get(name, []):
            if place.leaf in matrices:
                value = mixed(value, place, matrices[place.leaf])
        found[name] = value
    return found


def sinkhorn(x: Tensor, unrolled: int | None = None, columns: Tensor | None = None) -> Tensor:
    """The doubly stochastic matrix (n, n) that normalising rows and columns of exp(x) in turn leads to.

    Args:
        unrolled: so many rounds, which autograd differentiates through; None: to the limit, differentiated implicitly
            (Eisenberger et al. 2022, arXiv:2205.06688).
        columns: (1, n) logarithms of column scales to begin the way to the limit with, which does not depend on them;
            they are set to those at its end.
    """
    if unrolled is not None:
        for _ in range(unrolled):
            x = x - x.logsumexp(1, keepdim=True)
            x = x - x.logsumexp(0, keepdim=True)
        return x.exp()
    found: Tensor = _Limit.apply(x, torch.zeros_like(x[:1]) if columns is None else columns)
    return found


class _Limit(torch.autograd.Function):
    """Sinkhorn's limit P of x. With row and column sums held at 1, dP = P * (dx + u 1' + 1 v') for some u and v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor) -> Tensor:
        for _ in range(MOST_ROUNDS):
            rows = (x - columns).logsumexp(1, keepdim=True)
            after = (x - rows).logsumexp(0, keepdim=True)
            still = float((after - columns).abs().max()) < MARGIN
            columns.copy_(after)
            if still:
                break
        p = (x - rows - columns).exp()
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        (g,) = gradients
        # The adjoint: u and v such that P * (g - u 1' - 1 v') sums to nothing along rows and columns. v is determined
        # up to a constant, which u takes back, so one of its entries is held at zero.
        p, g = p.double(), g.double()
        q = p * g
        rows, columns = p.sum(1), p.sum(0)
        left = torch.diag(columns) - p.T @ (p / rows[:, None])
        right = q.sum(0) - p.T @ (q.sum(1) / rows)
        n = len(p)
        v = torch.zeros(n, dtype=p.dtype, device=p.device)
        if n > 1:
            ridge = 1e-12 * torch.eye(n - 1, dtype=p.dtype, device=p.device)
            v[1:] = torch.linalg.solve(left[1:, 1:] + ridge, right[1:])
        u = (q.sum(1) - p @ v) / rows
        return (p * (g - u[:, None] - v[None, :])).to(gradients[0].dtype), None
