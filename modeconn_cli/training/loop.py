"""The one training loop: ordinary training and every kind of path fitting are the same steps.

A step draws coefficients c, forms the point w = c @ W, takes the gradient g of the loss there once, and hands
the optimizer dW = c outer g for the trained rows of W (Garipov et al. 2018, arXiv:1802.10026, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.data.dataset import Data
from modeconn_cli.errors import RunFailed
from modeconn_cli.families.base import Array, Family
from modeconn_cli.settings import Optimizer, Precision, Sampling, Training
from modeconn_cli.tasks.base import Batch, Task
from modeconn_cli.training.optimizers import make_update
from modeconn_cli.training.schedules import learning_rate
from modeconn_cli.weights import FlatModule, combine


@dataclass(frozen=True)
class Epoch:
    """Everything random about one epoch, drawn ahead from (seed, epoch) alone, so that no step needs a memory.

    order: (n,) examples; coefficients: (steps, K); augmentation: the data set's draw for each place in order.
    """

    order: Tensor
    coefficients: Array
    augmentation: Any


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Gradient steps of an epoch. A last batch of one example is left out: it has no batch statistics."""
    whole, rest = divmod(examples, batch_size)
    return max(whole + (rest > 1), 1)


def draw_epoch(data: Data, family: Family, seed: int, epoch: int, steps: int, sampling: Sampling) -> Epoch:
    """Draw an epoch on the CPU, so that every device sees the same one."""
    n = len(data.train)
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0] >> 1))
    rng = np.random.default_rng(entropy[1])
    coefficients = family.draw(rng, steps) if sampling is Sampling.stratified else family.draw(rng, steps, False)
    order = torch.randperm(n, generator=generator)
    augmentation = data.augment.draw(n, generator).to(data.train.x.device)
    return Epoch(order.to(data.train.x.device), coefficients, augmentation)


class Trainer:
    """Trains rows of W (K, P) on a task's training split.

    Args:
        net: the network; its point is moved over the family.
        family: what draws coefficients.
        control_points: (K, P) W, on the network's device; its trained rows are changed in place.
        trained: which rows are trained, one contiguous slice.
        task: the data, and the objective to lower.
        recipe: optimizer, schedule, epochs.
        seed: of order, augmentation, t and dropout.

    The object's whole state goes through :meth:`state` and :meth:`load`; resumed training is bit-identical.
    """

    def __init__(
        self,
        net: FlatModule,
        family: Family,
        control_points: Tensor,
        trained: slice,
        task: Task,
        recipe: Training,
        seed: int,
        sampling: Sampling = Sampling.stratified,
    ) -> None:
        self.net, self.family, self.W_kp, self.trained = net, family, control_points, trained
        self.task, self.recipe, self.seed, self.sampling = task, recipe, seed, sampling
        self.device = control_points.device
        self.steps_per_epoch = steps_per_epoch(len(task.data.train), recipe.batch_size)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.lr = recipe.lr
        # A network that is its only control point moves with it; otherwise the point is formed every step.
        net.bind(self.W_kp[0] if family.vertices == 1 else self.W_kp[0].clone())
        self._point_views = net.views(net.point)
        self._rows = [v for row in self.W_kp[trained] for v in net.views(row)]
        self._update = make_update(recipe, self._rows)
        self._gradients: list[Tensor] = []
        self._losses = torch.zeros(self.steps_per_epoch, device=self.device)
        # Sums over each batch of the columns that are not the objective's own.
        self._sums = {c.name: torch.zeros(self.steps_per_epoch, device=self.device) for c in task.columns[1:]}
        # Reading a loss waits for the device, so an accelerator is asked seldom.
        self._check_every = 1 if self.device.type == "cpu" else 50
        self._checked = 0

    def run(self, watch: Callable[[Trainer], None] = lambda _: None) -> None:
        """Train to the end. ``watch`` is called after every step; it may save, report, or raise to stop.

        Raises:
            RunFailed: the loss became NaN or infinite; ``watch`` has seen no state after that step.
        """
        self.net.module.train()
        if self.step == 0:
            torch.manual_seed(self.seed)  # dropout draws from the global generators
        epoch: Epoch | None = None
        while self.step < self.total_steps:
            index, batch = divmod(self.step, self.steps_per_epoch)
            if epoch is None or batch == 0:
                epoch = draw_epoch(self.task.data, self.family, self.seed, index, self.steps_per_epoch, self.sampling)
            self._take_step(epoch, batch, epoch.coefficients[batch].tolist())
            self.step += 1
            if self.step % self._check_every == 0 or batch + 1 == self.steps_per_epoch:
                self.require_finite()
            if batch + 1 == self.steps_per_epoch:
                self._end_epoch(index)
            watch(self)
        if not torch.isfinite(self.W_kp[self.trained]).all():  # no loss has been taken at the last step's weights
            raise RunFailed(f"the weights overflowed at the last step, learning rate {self.lr:g}. Try a lower lr.")

    def _take_step(self, epoch: Epoch, batch: int, c: list[float]) -> None:
        part = slice(batch * self.recipe.batch_size, (batch + 1) * self.recipe.batch_size)
        data = self.task.data
        examples = self.task.batch(data.train, epoch.order[part], epoch.augmentation[part])
        self.lr = learning_rate(self.recipe, self.step, self.steps_per_epoch)
        loss, output = self.descend(examples, c)
        self._losses[batch] = loss
        with torch.no_grad():
            scores = self.task.scores(output, examples)
            for name, sums in self._sums.items():
                sums[batch] = scores[name].sum()

    def descend(self, batch: Batch, c: list[float]) -> tuple[Tensor, Any]:
        """One gradient step on a batch at the point with coefficients c (K,); the loss and output before it."""
        # The last step's gradients go only now: freed with its activations, they would let the allocator hand
        # that memory back to the system, and every step would pay to have it again.
        self._gradients.clear()
        if self.family.vertices > 1:
            combine(c, self.W_kp, self.net.point)
        with precision(self.recipe.precision, self.device):
            output = self.net(batch.x)
            loss = self.task.loss(output, batch)
        # A single trained row's coefficient scales the loss, which costs nothing; several scale copies of g.
        shares = c[self.trained]
        scale = shares[0] if len(shares) == 1 else 1.0
        self._apply(self.net.gradients(loss * scale), scale, shares)
        return loss.detach(), output

    @torch.no_grad()
    def _apply(self, gradients: list[Tensor], scale: float, shares: list[float]) -> None:
        """Hand the optimizer dW = c (g + decay * w) for each trained row's c in shares; ``gradients`` are scale * g.

        Weight decay acts at the sampled point w, so it reaches a row by the same coefficient as the loss.
        """
        decay = self.recipe.weight_decay
        decoupled = self.recipe.optimizer is Optimizer.adamw
        if decay and not decoupled:
            torch._foreach_add_(gradients, self._point_views, alpha=decay * scale)
        if decay and decoupled:
            for row, share in zip(self.W_kp[self.trained], shares, strict=True):
                row.add_(self.net.point, alpha=-self.lr * decay * share)
        if len(shares) == 1:
            self._gradients = gradients
        else:
            self._gradients = [g for share in shares for g in torch._foreach_mul(gradients, share)]
        self._update.step(self._gradients, self.lr)

    def require_finite(self) -> None:
        """Raise RunFailed when a loss since the last look was NaN or infinite."""
        first = self._checked % self.steps_per_epoch
        fresh = self._losses[first : first + self.step - self._checked]
        bad = (~torch.isfinite(fresh)).nonzero()
        if len(bad):
            step = self._checked + int(bad[0]) + 1
            lr = learning_rate(self.recipe, step - 1, self.steps_per_epoch)
            raise RunFailed(
                f"the loss became {float(fresh[int(bad[0])]):g} at step {step} of {self.total_steps} with "
                f"learning rate {lr:g}; the last good state is kept. Try a lower lr or a warm-up."
            )
        self._checked = self.step

    def _end_epoch(self, index: int) -> None:
        batches = torch.full((self.steps_per_epoch,), self.recipe.batch_size, dtype=torch.float64)
        batches[-1] = min(
            len(self.task.data.train) - (self.steps_per_epoch - 1) * self.recipe.batch_size, self.recipe.batch_size
        )
        seen = float(batches.sum())
        self.rows.append(
            {
                "epoch": index + 1,
                "step": self.step,
                "lr": self.lr,
                "train_loss": float(self._losses.cpu().double() @ batches) / seen,
                **{
                    f"train_{column.name}": column.scale * float(self._sums[column.name].cpu().double().sum()) / seen
                    for column in self.task.columns[1:]
                },
            }
        )

    @property
    def recent_loss(self) -> float:
        """Mean loss of this epoch's last 50 checked batches, for a progress bar."""
        end = (self._checked - 1) % self.steps_per_epoch + 1 if self._checked else 0
        return float(self._losses[max(end - 50, 0) : end].mean()) if end else float("nan")

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, as live tensors and plain values: to be saved at once."""
        self.require_finite()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "rows": self.rows,
            "trained": self.W_kp[self.trained],
            "optimizer": self._update.memory,
            "rest": self.net.rest(),
            "rng": rng,
            "losses": self._losses,
            "sums": self._sums,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step = self._checked = state["step"]
        self.rows = state["rows"]
        with torch.no_grad():
            self.W_kp[self.trained].copy_(state["trained"])
            self.net.load_rest(state["rest"])
            self._losses.copy_(state["losses"])
            for name, sums in self._sums.items():
                sums.copy_(state["sums"][name])
            for name, tensors in self._update.memory.items():
                for own, saved in zip(tensors, state["optimizer"][name], strict=True):
                    own.copy_(saved)
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if "cuda" in state["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.device)


def precision(kind: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context a forward pass runs in."""
    if kind is Precision.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
