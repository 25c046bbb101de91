"""Points made of networks, judged on the validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.dataset import Split
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.forward import evaluating, rest_kept
from modeconn_cli.merging.given import Score


class Judge:
    """What merging.given.Given asks of validation examples; a network's score there may be infinite.

    Args:
        evaluator: its network is moved.
        states: of the networks.
        column: of the task, that scores are means of.
    """

    def __init__(self, evaluator: Evaluator, states: Sequence[Mapping[str, Tensor]], column: str) -> None:
        self.evaluator, self.column = evaluator, column
        net = evaluator.net
        self.points = torch.stack([net.flatten(s) for s in states])
        coordinates, device = {*net.names}, net.point.device
        self.buffers = [{k: v.to(device) for k, v in s.items() if k not in coordinates} for s in states]
        columns = {c.name: c for c in evaluator.task.columns}
        if column not in columns:
            raise UserError(f"soup.by={column}: no such column; there are {', '.join(columns)}.")
        self.sign = -1.0 if columns[column].better == "higher" else 1.0

    def alone(self) -> list[Score]:
        """Of every network, with its own buffers."""
        return [self._scored_alone(i) for i in range(len(self.points))]

    def _scored_alone(self, i: int) -> Score:
        self._become(i)
        return self._mean()

    def score(self, point: Tensor, shares: Sequence[float]) -> Score:
        """At a point (P,), buffers found as the evaluator finds them between networks; lower is better."""
        with self.evaluator.merged(self.points, point, self.buffers, shares):
            return self._mean()

    def gradient(self, point: Tensor, shares: Sequence[float]) -> tuple[float, Tensor]:
        """The task's loss there, of every validation example, and its gradient (P,), buffers held."""
        evaluator = self.evaluator
        net, task, split = evaluator.net, evaluator.task, self._split
        size, n = evaluator.options.batch_size, len(split)
        mean, total = 0.0, torch.zeros_like(net.point)
        with evaluator.merged(self.points, point, self.buffers, shares), rest_kept(net.module), torch.enable_grad():
            evaluating(net.module)
            for start, batch in zip(range(0, n, size), evaluator.batches(split), strict=True):
                share = min(size, n - start) / n
                loss = task.loss(net(batch.x.clone()), batch)
                mean += share * float(loss.detach())
                own = dict(zip(net.names, net.gradients(loss), strict=True))
                total.add_(net.flatten(own), alpha=share)
        return mean, total

    def residuals(self) -> Tensor:
        """Every network's answers less what they should be, (N, n, D): class probabilities, or normalised numbers."""
        task, split, found = self.evaluator.task, self._split, []
        for i in range(len(self.points)):
            self._become(i)
            found.append(self.evaluator.read(split, task.predicted))  # type: ignore[attr-defined]
        y = split.y.cpu()
        wanted = y.reshape(len(y), -1) if task.data.classes is None else F.one_hot(y, found[0].shape[1])
        return torch.stack(found) - wanted

    def _become(self, i: int) -> None:
        self.evaluator.net.point.copy_(self.points[i])
        self.evaluator.net.load_rest(self.buffers[i])

    def _mean(self) -> Score:
        try:
            found = self.evaluator.score(self._split)
        except RunFailed:  # its loss is NaN or infinite
            return math.inf, math.inf
        return self.sign * found.means[self.column], found.objective

    @property
    def _split(self) -> Split:
        found = self.evaluator.task.data.validation
        assert found is not None
        return found
