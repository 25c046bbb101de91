"""How a loss and its gradient are computed at a point; the training loop knows no more than this."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from modeconn_cli.tasks.base import Batch, Task
from modeconn_cli.training.precision import autocast
from modeconn_cli.training.recipe import Precision
from modeconn_cli.weights import FlatModule


def log_dtype(w_p: Tensor) -> torch.dtype:
    """In what losses and sums over batches are kept: w's type, but for half precision, whose bfloat16 counts to 256."""
    return torch.promote_types(w_p.dtype, torch.float32)


class Engine(Protocol):
    """Everything stays on the device: an engine reads nothing back and draws nothing but the network's dropout."""

    def gradient(self, w_p: Tensor, batch: Batch, scale: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """At w (P,) on a batch: the loss and after it the sums over the batch of the task's columns but the first, (C,)
        in :func:`log_dtype`; and the gradient of loss + decay / 2 |w|^2, times ``scale`` (), where given: whole,
        [(P,)], or in pieces, a tensor for each parameter. It is the caller's to change. Scaling costs no pass over
        memory here.
        """


class Eager:
    """The network as PyTorch runs it, operation by operation.

    Args:
        decay: weight decay that is a term of the objective, and so acts at the point; a decoupled one is not.
        whole: give the gradient as one vector, which costs a pass over memory; else in pieces.
    """

    def __init__(self, net: FlatModule, task: Task, precision: Precision, decay: float, whole: bool = True) -> None:
        self.net, self.task, self.precision, self.decay = net, task, precision, decay
        self.whole = whole
        self._gradient_p = torch.zeros_like(net.point if whole else net.point[:0])
        self._parts = net.views(self._gradient_p) if whole else []

    def gradient(self, w_p: Tensor, batch: Batch, scale: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        net, task = self.net, self.task
        if w_p is not net.point:
            net.bind(w_p)
        with autocast(self.precision, w_p.device):
            output = net(batch.x)
            loss = task.loss(output, batch)
        with torch.no_grad():
            kind = log_dtype(w_p)
            log = [loss.detach().to(kind)]
            if len(task.columns) > 1:
                scores = getattr(task, "scores_beside_loss", task.scores)(output, batch)
                log += [scores[c.name].sum(dtype=kind) for c in task.columns[1:]]
        gradients = net.gradients(loss if scale is None else loss * scale)
        with torch.no_grad():
            share = scale * self.decay if scale is not None and self.decay else None
            return torch.stack(log), self._finish(gradients, share)

    def _finish(self, gradients: list[Tensor], share: Tensor | None) -> list[Tensor]:
        """The objective's gradient, given the loss's, scaled, and the scaled decay."""
        if self.whole and not (self.decay and self._gradient_p.device.type == "cpu"):
            torch._foreach_copy_(self._parts, gradients)
            if share is not None:
                self._gradient_p.addcmul_(self.net.point, share)
            elif self.decay:
                self._gradient_p.add_(self.net.point, alpha=self.decay)
            return [self._gradient_p]
        if self.decay:
            # On a CPU what is bound by memory is quickest where the gradient lies, or on its way to the whole vector.
            for part, gradient, w in zip(self._parts or gradients, gradients, self.net.parameters, strict=True):
                if share is None:
                    torch.add(gradient, w, alpha=self.decay, out=part)
                else:
                    torch.addcmul(gradient, w, share, out=part)
        return [self._gradient_p] if self.whole else gradients
