"""Sinkhorn re-basin: doubly stochastic matrices mix units, are trained by gradient descent, and become permutations.

Pena et al. 2023 (arXiv:2212.12042).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.midpoint import BestMidpoint, Check, Loss, Parameters, Watch, told
from modeconn_cli.matching.search import NO_MEMORY, Matching, Memory
from modeconn_cli.symmetry.axes import Leaf
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import mixed

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import Sinkhorn

MARGIN = 1e-5  # how far a round may still move the logarithm of a scale at the limit
MOST_ROUNDS = 200


def match(options: Sinkhorn, given: Given) -> Matching:
    """:func:`sinkhorn_matching` of two networks, as the options say."""
    loss, check = given.losses(options.steps, options.batch_size, options.examples, options.seed)
    return sinkhorn_matching(
        given.symmetry,
        given.parameters(0),
        given.parameters(1),
        None if options.between == "l2" else loss,
        check,
        options.steps,
        options.lr or 0.1,
        options.temperature,
        options.unrolled,
        options.between == "random",
        seed=options.seed,
        watch=told(given, options.steps),
        memory=given.memory,
    )


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
    memory: Memory = NO_MEMORY,
) -> Matching:
    """Match B to A by doubly stochastic matrices, trained by gradient descent (Adam).

    They start uniform, so that the order in which B happens to have its units plays no part.

    Args:
        a, b: the parameters of the traced module that count, on one device.
        loss: of a point between A and B as mixed; None: the squared distance of the two (the paper's L2).
        check: loss of a network with other parameters, on examples that stay the same.
        temperature: what the matrices' logarithms are divided by; lower is nearer to permutations.
        unrolled: differentiate through so many rounds of normalisation; None: implicitly, at their limit.
        everywhere: a random point of the line at every step (the paper's Rnd), not its midpoint (Mid).
        check_every: steps between looks at whether the nearest permutations are the best so far.
        memory: its state is left there whenever that is due.
    """
    best = BestMidpoint(symmetry, a, b, check)
    soft = _SoftPermutations(symmetry, next(iter(a.values())).device, lr, seed)
    scale = sum(float(v.square().sum()) for v in a.values())
    begun = memory.begun()
    if begun:
        soft.load(begun)
        best.load(begun["best"])
    for step in range(begun["step"] if begun else 0, steps):
        moved = mix(symmetry, b, soft.matrices(temperature, unrolled))
        if loss is None:
            distances = ((a[n] - moved[n]).square().sum() for n in a)
            now = sum(distances, torch.zeros((), device=soft.device)) / scale
        else:
            share = soft.draw() if everywhere else 0.5
            now = loss({n: torch.lerp(a[n], moved[n], share) for n in a}, step)
        soft.descend(now)
        if step % check_every == check_every - 1 or step == steps - 1:
            best.try_out(soft.nearest())
        if memory.due:
            memory.save({"step": step + 1, **soft.state(), "best": best.state()})
        watch(step, float(now.detach()))
    return best.matching()


class _SoftPermutations:
    """A doubly stochastic matrix for each group, by the logarithms (size, size) that are trained."""

    def __init__(self, symmetry: Symmetry, device: torch.device, lr: float, seed: int) -> None:
        self.symmetry, self.device = symmetry, device
        self.logits = [torch.zeros(g.size, g.size, device=device, requires_grad=True) for g in symmetry.groups]
        self.columns = [torch.zeros(1, g.size, device=device) for g in symmetry.groups]  # where the last limits were
        self.optimizer = torch.optim.Adam(self.logits, lr)
        self.generator = torch.Generator().manual_seed(seed)

    def matrices(self, temperature: float, unrolled: int | None) -> dict[Leaf, Tensor]:
        of_group = zip(self.symmetry.leaves, self.logits, self.columns, strict=True)
        return {leaf: sinkhorn(x / temperature, unrolled, v) for leaf, x, v in of_group}

    def draw(self) -> float:
        """A random share of the line."""
        return float(torch.rand((), generator=self.generator))

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def nearest(self) -> list[Tensor]:
        """The permutations (size,) that the matrices are nearest to."""
        return [torch.from_numpy(assign(x.detach().double().cpu().numpy())) for x in self.logits]

    def state(self) -> dict[str, Any]:
        """What a later process goes on from."""
        return {
            "logits": [x.detach() for x in self.logits],
            "columns": self.columns,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.generator.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        saved = [*state["logits"], *state["columns"]]
        for own, value in zip([*self.logits, *self.columns], saved, strict=True):
            own.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["rng"])


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

    >>> p = sinkhorn(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    >>> bool(torch.allclose(p.sum(0), torch.ones(2))), bool(torch.allclose(p.sum(1), torch.ones(2)))
    (True, True)
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
