"""The one evaluator: points of weight space in, every example's scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modeconn_cli.data.dataset import Split
from modeconn_cli.errors import RunFailed, listed
from modeconn_cli.evaluation.buffers import Kinds
from modeconn_cli.evaluation.options import BatchNorm, Interpolation, Renormalise
from modeconn_cli.evaluation.repair import Repair
from modeconn_cli.evaluation.spectral import settle
from modeconn_cli.evaluation.statistics import estimable, norm_layers, reestimate
from modeconn_cli.families.base import Array
from modeconn_cli.forward import EXAMPLES, Passes, require_repeatable, rest_kept
from modeconn_cli.tasks.base import Batch, Column, Task
from modeconn_cli.weights import FlatModule, combine

BATCH_NORM_BATCH = 1000
KEPT_BYTES = 1 << 29  # inputs of a split that are kept normalised between points, rather than made anew at each


@dataclass(frozen=True)
class Scores:
    """One network on one split.

    columns: by the task's column names and in their order, (n,) each, on the CPU, unscaled (an error is 0 or 1).
    scales: what a column's mean is multiplied with to be in the column's unit; 1 where none is named.
    """

    columns: dict[str, Tensor]
    scales: Mapping[str, float]

    @property
    def means(self) -> dict[str, float]:
        """Each column's mean over every example, in its unit."""
        return {k: self.scales.get(k, 1.0) * float(v.double().mean()) for k, v in self.columns.items()}

    @property
    def objective(self) -> float:
        """Mean of the first column, which is the task's objective."""
        return next(iter(self.means.values()))


def metrics(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Means by ``<split>_<column>``."""
    return {f"{split}_{column}": mean for split, found in scores.items() for column, mean in found.means.items()}


class Evaluator:
    """Measures a network at points of its weight space on the training and the test split.

    Args:
        net: the network; it is moved, and its buffers are overwritten.
        task: its data on the network's device. Examples are clean: neither augmented nor smoothed.
        options: batch size, BatchNorm policy and how many training examples count (a fixed draw).
    """

    def __init__(self, net: FlatModule, task: Task, options: Interpolation) -> None:
        self.net, self.task, self.options = net, task, options
        self.has_batch_norm = bool(norm_layers(net.module))
        self.kinds = Kinds.of(net.module)
        data = task.data
        self.splits = {"train": _part(data.train, options.train_examples), "test": data.test}
        # In the data's own order, sorted classes would make batches that are unlike the whole.
        n = len(data.train)
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        self._kept: dict[str, list[Batch]] = {}
        self._repair: Repair | None = None
        self._bn_order = shuffled[: options.bn_examples or n].to(data.train.x.device)

    def batches(self, split: Split) -> Iterable[Batch]:
        """A split in order, ready for the network; the short last batch included, and one of one example twice."""
        if 4 * split.x.numel() > KEPT_BYTES:
            return self._made(split)
        if split.name not in self._kept:
            self._kept[split.name] = list(self._made(split))
        return self._kept[split.name]

    def _made(self, split: Split) -> Iterator[Batch]:
        size = self.options.batch_size
        for start in range(0, len(split), size):
            index: slice | Tensor = slice(start, start + size)
            if min(size, len(split) - start) == 1:  # goes in twice, for networks that squeeze a lone one's dimension
                index = torch.tensor([start, start], device=split.x.device)
            yield self.task.batch(split, index)

    def reestimate(self) -> None:
        """Estimate BatchNorm statistics at the network's present point on training data, clean or augmented once.

        Statistics depend on the batches they are averaged over, so these are the same whatever
        ``options.batch_size``: of BATCH_NORM_BATCH examples, shuffled once and for all.
        """
        reestimate(self.net, self._bn_batches(), self._norms)

    @cached_property
    def _norms(self) -> list[nn.Module]:
        """The layers whose statistics are estimated."""
        return estimable(self.net, next(self._bn_batches())) if self.has_batch_norm else []

    def notes(self, buffers: Sequence[Mapping[str, Tensor]]) -> list[str]:
        """Remarks about what the networks with these buffers have at points between them."""
        unknown = self.kinds.unknown(buffers)
        left = {*norm_layers(self.net.module)} - {*self._norms}
        unknown += [name for name, part in self.net.module.named_modules() if part in left]
        if not unknown:
            return []
        return [
            f"{listed(unknown)}: neither weights nor statistics that can be re-estimated, and different at the ends; "
            "between them real numbers are interpolated and others taken from the nearer end"
        ]

    @torch.no_grad()
    def require_repeatable(self) -> None:
        """Raise UserError where the network answers the same examples differently each time."""
        x = next(iter(self.batches(self.splits["test"]))).x[:EXAMPLES]
        with rest_kept(self.net.module):
            require_repeatable(self.net, self.net.module, x)

    def _bn_batches(self) -> Iterator[Tensor]:
        batches = self._bn_order.split(BATCH_NORM_BATCH)
        if len(batches) > 1 and len(batches[-1]) == 1:  # one example has no variance
            batches = batches[:-1]
        data = self.task.data
        return (self.task.batch(data.train, index, data.for_statistics(index)).x for index in batches)

    @torch.no_grad()
    def score(self, split: Split) -> Scores:
        """Per-example scores at the network's present point and buffers, on the CPU.

        Raises:
            RunFailed: a loss is NaN or infinite.
            UserError: the network's answers are random.
        """
        parts = [
            {k: v[:rows] for k, v in self.task.scores(output, batch).items()}
            for output, batch, rows in self._answers(split)
        ]
        columns = {c.name: torch.cat([part[c.name] for part in parts]).cpu() for c in self.task.columns}
        if not all(torch.isfinite(values).all() for values in columns.values()):
            raise RunFailed(
                f"the loss on the {split.name} split is NaN or infinite; no mean and no barrier can be given."
            )
        return Scores(columns, {c.name: c.scale for c in self.task.columns})

    @torch.no_grad()
    def read(self, split: Split, what: Callable[[Any], Tensor]) -> Tensor:
        """What is read (B, ...) from the output of every batch of a split, (n, ...) on the CPU."""
        return torch.cat([what(output)[:rows].cpu() for output, _, rows in self._answers(split)])

    def _answers(self, split: Split) -> Iterator[tuple[Any, Batch, int]]:
        """Every batch of a split, what the network makes of it, and how many examples it is: a lone one is in twice."""
        passes, size = Passes(self.net), self.options.batch_size
        for start, batch in zip(range(0, len(split), size), self.batches(split), strict=True):
            yield passes(batch.x), batch, min(size, len(split) - start)

    def scores(self) -> dict[str, Scores]:
        """:meth:`score` of both splits."""
        return {name: self.score(split) for name, split in self.splits.items()}

    @torch.no_grad()
    def at(
        self,
        control_points: Tensor,
        coefficients: Array,
        buffers: list[dict[str, Tensor]],
        fixed: tuple[bool, bool] = (True, True),
        shares: Array | None = None,
    ) -> dict[str, Scores]:
        """Scores at w = c @ W; see :meth:`placed`."""
        with self.placed(control_points, coefficients, buffers, fixed, shares):
            return self.scores()

    @contextmanager
    def placed(
        self,
        control_points: Tensor,
        coefficients: Array,
        buffers: list[dict[str, Tensor]],
        fixed: tuple[bool, bool] = (True, True),
        shares: Array | None = None,
    ) -> Iterator[None]:
        """The network at w = c @ W, buffers and all, for as long as it is looked at.

        Args:
            control_points: W (K, P).
            coefficients: c (K,). A one-hot c on the first or last row is that endpoint: the weights of the row
                exactly, with the endpoint's own buffers.
            buffers: those of the first and of the last row's endpoints.
            fixed: whether those rows are the endpoints still; a row that was trained has no buffers of its own.
            shares: (2,) of the ends' buffers, elsewhere; None: each row's by its place.
        """
        with torch.no_grad():
            repair = self._ready_repair(control_points[[0, -1]], buffers)
            combine(coefficients.tolist(), control_points, self.net.point)
        if coefficients[0] == 1 and fixed[0]:
            self.net.load_rest(buffers[0])
            yield
        elif coefficients[-1] == 1 and fixed[1]:
            self.net.load_rest(buffers[1])
            yield
        else:
            place = coefficients @ np.linspace(0, 1, len(coefficients))
            share = float(place if shares is None else shares[1])
            with self._between(buffers, [1 - share, share], repair):
                yield

    @torch.no_grad()
    def centre(self, points: Tensor, buffers: list[dict[str, Tensor]]) -> dict[str, Scores]:
        """Scores at the mean of networks (N, P) with these buffers; the network is left there."""
        with self.merged(points, points.mean(0), buffers, [1 / len(buffers)] * len(buffers)):
            return self.scores()

    @contextmanager
    def merged(
        self, points: Tensor, point: Tensor, buffers: list[dict[str, Tensor]], shares: Sequence[float]
    ) -> Iterator[None]:
        """The network at a point (P,) made of networks (N, P), which have these buffers and shares in its buffers.

        Without REPAIR it stays there afterwards.
        """
        with torch.no_grad():
            repair = self._ready_repair(points, buffers)
            self.net.point.copy_(point)
        with self._between(buffers, shares, repair):
            yield

    @contextmanager
    def _between(
        self, buffers: list[dict[str, Tensor]], shares: Sequence[float], repair: Repair | None
    ) -> Iterator[None]:
        """With the weights as they are, and what else a network between ends has by these shares."""
        with torch.no_grad():
            self.net.load_rest(self.kinds.between(buffers, shares))
            settle(self.net.module)
            if repair is not None:
                repair.set([*shares])
            elif self.options.batch_norm is BatchNorm.reestimate:
                self.reestimate()
        try:
            yield
        finally:
            if repair is not None:
                repair.release()

    def _ready_repair(self, points: Tensor, buffers: list[dict[str, Tensor]]) -> Repair | None:
        """The repair, where one is asked for, that knows the statistics of all ends."""
        if self.options.renormalise is Renormalise.none:
            return None
        if self._repair is None:
            shift = self.options.renormalise is Renormalise.repair
            self._repair = Repair(self.net, self._bn_batches, shift, self._norms)
            for row, own in zip(points, buffers, strict=True):
                self.net.point.copy_(row)
                self.net.load_rest(own)
                self._repair.add_end()
        return self._repair


def _part(split: Split, n: int | None) -> Split:
    """A fixed random draw of n examples, in order; all of them for None."""
    if n is None or n >= len(split):
        return split
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n].sort().values
    drawn = drawn.to(split.x.device)
    return Split(split.name, split.x[drawn], split.y[drawn])


@torch.no_grad()
def gram(control_points: Tensor) -> Array:
    """Inner products (K, K), in float64, of the rows W[0], W[1]-W[0], ..., W[K-1]-W[0]; see paths.geometry."""
    total = torch.zeros(len(control_points), len(control_points), dtype=torch.float64)
    for part in control_points.split(1 << 22, dim=1):
        part = part.cpu() if part.device.type == "mps" else part  # which has no float64
        rows = part.to(torch.float64, copy=True)
        rows[1:] -= rows[0].clone()
        total += (rows @ rows.T).cpu()
    return total.numpy()


def search_maximum(f: Callable[[float], float], t: Array, values: Array, evaluations: int) -> None:
    """Look for a higher value than any on the grid, next to the grid's highest, by bounded Brent.

    ``f`` records what it evaluates; at most ``evaluations`` calls are made.
    """
    from scipy.optimize import minimize_scalar

    best = int(np.argmax(values))
    bounds = (float(t[max(best - 1, 0)]), float(t[min(best + 1, len(t) - 1)]))
    if evaluations == 1:  # Brent takes two before it looks at its budget
        f((t[best] + max(bounds, key=lambda b: abs(b - t[best]))) / 2)
    elif evaluations:
        minimize_scalar(
            lambda s: -f(float(s)),
            bounds=bounds,
            method="bounded",
            options={"maxiter": evaluations, "xatol": 1e-4 * (bounds[1] - bounds[0])},
        )


def require_same(
    recorded: dict[str, float],
    measured: dict[str, float],
    where: str,
    columns: Sequence[Column],
    rtol: float = 1e-4,
) -> None:
    """Check that an end of a path reproduces its endpoint's own recorded metrics.

    Raises:
        RunFailed: naming the end, the metric and both figures. Batches of another size round differently, by
            far less than ``rtol``; a column that counts examples may move by single ones on a tie.
    """
    counted = tuple(f"_{c.name}" for c in columns if c.counts)
    for key, value in recorded.items():
        slack = rtol * max(abs(value), 1e-3) + (0.05 if key.endswith(counted) else 0.0)
        if not abs(measured[key] - value) <= slack:
            raise RunFailed(
                f"{where} does not reproduce its endpoint: {key} is {measured[key]:.6g}, recorded "
                f"{value:.6g}. The checkpoint and the data or settings it was measured with differ."
            )
