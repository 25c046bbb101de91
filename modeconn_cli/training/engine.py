"""How a loss and its gradient are computed at a point; the training loop knows no more than this."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from modeconn_cli.tasks.base import Batch, Task
from modeconn_cli.training.precision import autocast
from modeconn_cli.training.recipe import Precision
from modeconn_cli.weights import FlatModule


class Engine(Protocol):
    """Everything stays on the device: an engine reads nothing back and draws nothing but the network's dropout."""

    def gradient(self, w_p: Tensor, batch: Batch, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """At w (P,) on a batch: the loss () and the sums over the batch (C,) of the task's columns but the first; and
        the gradient (P,) of loss + decay / 2 |w|^2, times ``scale`` () where one is given, which the caller may change
        until the next call. Scaling here costs no pass over memory.
        """


class Eager:
    """The network as PyTorch runs it, operation by operation.

    Args:
        decay: weight decay that is a term of the objective, and so acts at the point; a decoupled one is not.
    """

    def __init__(self, net: FlatModule, task: Task, precision: Precision, decay: float) -> None:
        self.net, self.task, self.precision, self.decay = net, task, precision, decay
        self._gradient_p = torch.zeros_like(net.point)
        self._parts = net.views(self._gradient_p)

    def gradient(self, w_p: Tensor, batch: Batch, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        net, task = self.net, self.task
        if w_p is not net.point:
            net.bind(w_p)
        with autocast(self.precision, w_p.device):
            output = net(batch.x)
            loss = task.loss(output, batch)
        with torch.no_grad():
            sums = loss.new_empty(0)
            if len(task.columns) > 1:
                scores = task.scores(output, batch)
                sums = torch.stack([scores[c.name].sum().to(loss.dtype) for c in task.columns[1:]])
        gradients = net.gradients(loss if scale is None else loss * scale)
        with torch.no_grad():
            self._gather(gradients, scale)
        return loss.detach(), sums, self._gradient_p

    def _gather(self, gradients: list[Tensor], scale: Tensor | None) -> None:
        """Write the objective's gradient into the flat vector, given the loss's, scaled."""
        share = None if scale is None else scale * self.decay
        if self.decay and self._gradient_p.device.type == "cpu":  # one pass over memory in place of two
            for part, gradient, w in zip(self._parts, gradients, self.net.parameters, strict=True):
                if share is None:
                    torch.add(gradient, w, alpha=self.decay, out=part)
                else:
                    torch.addcmul(gradient, w, share, out=part)
            return
        torch._foreach_copy_(self._parts, gradients)
        if self.decay and share is None:
            self._gradient_p.add_(self.net.point, alpha=self.decay)
        elif share is not None and self.decay:
            self._gradient_p.addcmul_(self.net.point, share)
