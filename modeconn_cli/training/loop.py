"""The one training loop: ordinary training and every kind of path fitting are the same steps.

A step takes coefficients c, forms the point w = c @ W, has an engine find the loss's gradient g there once, and hands
the optimizer dW = c outer g for the trained rows of W (Garipov et al. 2018, arXiv:1802.10026, section 3.2).

A step is made of device tensors alone. What an epoch draws is on the device before it begins, and so is the number of
the step in it; nothing is read back within a step. So a step that was captured once can be replayed for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import RunFailed
from modeconn_cli.evaluation.spectral import has_spectral_norms, settle
from modeconn_cli.families.base import Array, Family, overrides
from modeconn_cli.families.options import Sampling
from modeconn_cli.tasks.base import Batch, Task
from modeconn_cli.training.engine import Eager, Engine, log_dtype
from modeconn_cli.training.optimizers import make_update, takes_pieces
from modeconn_cli.training.precision import arithmetic
from modeconn_cli.training.recipe import Optimizer, Training
from modeconn_cli.training.schedules import learning_rate
from modeconn_cli.weights import FlatModule

CHECK_EVERY = 50  # steps on an accelerator, where reading a loss waits for the device


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


def draw_epoch(task: Task, family: Family, seed: int, epoch: int, steps: int, sampling: Sampling) -> Epoch:
    """Draw an epoch: its examples as the task does, coefficients as the family does."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)[1])
    coefficients = family.draw(rng, steps) if sampling is Sampling.stratified else family.draw(rng, steps, False)
    drawn = task.draw(seed, epoch)
    return Epoch(drawn.order, coefficients, drawn.augmentation)


@dataclass
class OnDevice:
    """An epoch as its steps read it: order (n,), coefficients (steps, K), rates (steps,), and the augmentation."""

    order: Tensor
    coefficients: Tensor
    rates: Tensor
    augmentation: Any


class Trainer:
    """Trains rows of W (K, P) on a task's training split.

    Args:
        net: the network; its point is moved over the family.
        family: what draws coefficients.
        control_points: (K, P) W, on the network's device; its trained rows are changed in place.
        trained: which rows are trained: a slice, or their numbers.
        task: the data, and the objective to lower.
        recipe: optimizer, schedule, epochs.
        seed: of order, augmentation, coefficients and dropout.
        engine: what finds gradients, of an objective with the recipe's decay unless that is decoupled; None: the
            network, eagerly, in the recipe's precision.
        schedule: the learning rate of a step, counted from 0; None: the recipe's.

    The object's whole state goes through :meth:`state` and :meth:`load`; resumed training is bit-identical.
    """

    def __init__(
        self,
        net: FlatModule,
        family: Family,
        control_points: Tensor,
        trained: slice | Sequence[int],
        task: Task,
        recipe: Training,
        seed: int,
        sampling: Sampling = Sampling.stratified,
        engine: Engine | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.net, self.family, self.W_kp, self.task = net, family, control_points, task
        self.recipe, self.seed, self.sampling = recipe, seed, sampling
        self.trained = [*range(family.vertices)[trained]] if isinstance(trained, slice) else [*trained]
        self.device = device = control_points.device
        self.steps_per_epoch = steps_per_epoch(len(task.data.train), recipe.batch_size)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.rate = schedule or (lambda step: learning_rate(recipe, step, self.steps_per_epoch))
        self.step = 0
        self.rows: list[dict[str, float]] = []
        # A network that is its only control point moves with it; otherwise the point is formed every step.
        self.moves_with_row = family.vertices == 1
        net.bind(self.W_kp[0] if self.moves_with_row else self.W_kp[0].clone())
        self._point = net.point
        # One that jumps along a path leaves its singular vectors behind.
        self._has_spectral_norms = not self.moves_with_row and has_spectral_norms(net.module)
        # Weight decay acts at the sampled point w, so it reaches a row by the same coefficient as the loss.
        self._decoupled = recipe.weight_decay if recipe.optimizer is Optimizer.adamw else 0.0
        self._rows = [self.W_kp[k] for k in self.trained]
        self._chosen = torch.tensor(self.trained, device=device)
        # Several rows need a gradient each. A path's only one has the point's, scaled where it is, in pieces if it may.
        self._own_force = overrides(family, "force") or overrides(family, "penalty")
        self._scales_loss = len(self.trained) == 1 and not self._own_force and not self.moves_with_row
        rows_of_gradient = len(self.trained) if len(self.trained) > 1 and not self._own_force else 0
        self._force_tp = torch.empty(rows_of_gradient, len(net.point), dtype=net.point.dtype, device=device)
        pieces = self._scales_loss and engine is None and device.type == "cpu" and takes_pieces(recipe)
        pieces = pieces and not any(p.is_complex() for p in net.parameters)  # which the fused kernels do not take
        self._update = make_update(recipe, self._rows, net.views if pieces else None)
        self.engine = engine or Eager(net, task, recipe.precision, recipe.weight_decay - self._decoupled, not pieces)
        # With few rows and no negative share, interpolating row by row is quicker on a CPU than a matrix product.
        self._interpolates = False
        self._drawn: OnDevice | None = None
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # the step's number in its epoch
        self._steps = torch.arange(self.steps_per_epoch, device=device)
        self._within = torch.arange(recipe.batch_size, device=device)
        # Of each step of the epoch: the loss, and the batch's sums of the columns that are not the objective's own.
        self._log = torch.zeros(len(task.columns), self.steps_per_epoch, dtype=log_dtype(net.point), device=device)
        self._losses = self._log[0]
        self._seen = torch.zeros_like(self._losses, device="cpu")  # the losses that have been looked at
        self._check_every = 1 if device.type == "cpu" else CHECK_EVERY
        self._checked = 0

    @property
    def lr(self) -> float:
        """The learning rate of the last step taken; before the first, of the first."""
        return self.rate(max(self.step - 1, 0))

    def run(self, watch: Callable[[Trainer], None] = lambda _: None) -> None:
        """Train to the end. ``watch`` is called after every step; it may save, report, or raise to stop.

        Raises:
            RunFailed: the loss became NaN or infinite; ``watch`` has seen no state after that step.
        """
        self.net.module.train()
        if self.step == 0:
            torch.manual_seed(self.seed)  # dropout draws from the global generators
        begun = -1
        with arithmetic(self.recipe.precision):
            while self.step < self.total_steps:
                epoch, place = divmod(self.step, self.steps_per_epoch)
                if epoch != begun:
                    self.begin_epoch(epoch, place)
                    begun = epoch
                self.take_step(self.batch_size(place))
                self.step += 1
                last = place + 1 == self.steps_per_epoch
                if self.step % self._check_every == 0 or last:
                    self.require_finite()
                if last:
                    self._end_epoch(epoch)
                watch(self)
        if not torch.isfinite(self.W_kp[self.trained]).all():  # no loss has been taken at the last step's weights
            raise RunFailed(f"the weights overflowed at the last step, learning rate {self.lr:g}. Try a lower lr.")

    def batch_size(self, place: int) -> int:
        """Examples of a step of an epoch; the last may have fewer than the others."""
        return min(self.recipe.batch_size, len(self.task.data.train) - place * self.recipe.batch_size)

    def begin_epoch(self, epoch: int, place: int = 0) -> None:
        """Draw an epoch and bring it to the device, into the tensors where the last one was, at one of its steps."""
        steps = self.steps_per_epoch
        drawn = draw_epoch(self.task, self.family, self.seed, epoch, steps, self.sampling)
        rates = [self.rate(epoch * steps + i) for i in range(steps)]
        on_device = OnDevice(
            drawn.order,
            torch.as_tensor(drawn.coefficients, dtype=self.W_kp.dtype, device=self.device),
            # What the fused kernels take: on a CPU, as if it were a number of Python's.
            torch.tensor(
                rates, dtype=torch.float64 if self.device.type == "cpu" else torch.float32, device=self.device
            ),
            drawn.augmentation,
        )
        self._interpolates = 1 < self.family.vertices < 4 and bool((drawn.coefficients >= 0).all())
        if self._drawn is None:
            self._drawn = on_device
            self.task.batch(self.task.data.train, slice(0, 1))  # what the data work out once, they work out now
        else:
            _refill(self._drawn, on_device)
        self._at.fill_(place)

    @torch.no_grad()
    def take_step(self, size: int) -> None:
        """The step that is next in the drawn epoch, on a batch of ``size`` examples."""
        drawn, at = self._drawn, self._at
        assert drawn is not None
        places = at * self.recipe.batch_size + self._within[:size]
        batch = self.task.batch(self.task.data.train, drawn.order[places], drawn.augmentation[places])
        c = drawn.coefficients.index_select(0, at)[0]
        found = self.descend(batch, c, drawn.rates.index_select(0, at)[0])
        torch.where(self._steps == at, found[:, None], self._log, out=self._log)
        at.add_(1)

    @torch.no_grad()
    def descend(self, batch: Batch, c: Tensor, lr: Tensor) -> Tensor:
        """One gradient step on a batch at the point with coefficients c (K,), at a learning rate ().

        Returns the loss before it and the batch's sums of the task's other columns, (1 + C,).
        """
        shares = c.index_select(0, self._chosen)
        self._form_point(c)
        if self._has_spectral_norms:
            settle(self.net.module)
        with torch.enable_grad():
            log, gradient = self.engine.gradient(self._point, batch, shares[0] if self._scales_loss else None)
        if self._decoupled:
            shrink = (lr * -self._decoupled).to(c.dtype) * shares
            for row, share in zip(self._rows, shrink.split(1), strict=True):
                row.addcmul_(self._point, share)
        self._update.step(self._forces(gradient, c, shares), lr)
        return log

    def _form_point(self, c: Tensor) -> None:
        """w = c @ W, where the network is not itself a row of W."""
        if self.moves_with_row:
            return
        if not self._interpolates:
            torch.mv(self.W_kp.t(), c, out=self._point)
            return
        so_far = c.cumsum(0)
        weights = torch.where(so_far > 0, c / so_far, 1.0).split(1)  # a row before any share is replaced by the next
        before = self.W_kp[0]
        for row, weight in zip(self.W_kp[1:], weights[1:], strict=True):
            before = torch.lerp(before, row, weight, out=self._point)

    def _forces(self, gradient: list[Tensor], c: Tensor, shares: Tensor) -> list[Tensor]:
        """dW (P,) of each trained row, or the pieces of the only one's."""
        if self._scales_loss or (self.moves_with_row and not self._own_force):
            return gradient
        (g_p,) = gradient
        if self._own_force:
            force = self.family.force(g_p, self.W_kp, c)
            if overrides(self.family, "penalty"):
                force = force + self._penalty_gradient()
            return [*force.index_select(0, self._chosen)]
        return [*torch.mul(shares[:, None], g_p, out=self._force_tp)]

    def _penalty_gradient(self) -> Tensor:
        """dW (K, P) of the family's penalty p: with G = W W^T, (dp/dG + its transpose) W."""
        rows = self.W_kp.double()
        with torch.enable_grad():
            gram = (rows @ rows.T).requires_grad_()
            (slope,) = torch.autograd.grad(self.family.penalty(gram), gram)
        return ((slope + slope.T) @ rows).to(self.W_kp.dtype)

    def require_finite(self) -> None:
        """Raise RunFailed when a loss since the last look was NaN or infinite."""
        if self.step == self._checked:
            return
        first = self._checked % self.steps_per_epoch
        last = first + self.step - self._checked
        self._seen[first:last] = self._losses[first:last].cpu()
        fresh = self._seen[first:last]
        bad = (~torch.isfinite(fresh)).nonzero()
        if len(bad):
            step = self._checked + int(bad[0]) + 1
            raise RunFailed(
                f"the loss became {float(fresh[int(bad[0])]):g} at step {step} of {self.total_steps} with "
                f"learning rate {self.rate(step - 1):g}; the last good state is kept. Try a lower lr or a warm-up."
            )
        self._checked = self.step

    def _end_epoch(self, index: int) -> None:
        sizes = torch.tensor([self.batch_size(i) for i in range(self.steps_per_epoch)], dtype=torch.float64)
        seen = float(sizes.sum())
        log = self._log.cpu().double()
        row = {"epoch": index + 1, "step": self.step, "lr": self.lr, "train_loss": float(log[0] @ sizes) / seen}
        for column, sums in zip(self.task.columns[1:], log[1:], strict=True):
            row[f"train_{column.name}"] = column.scale * float(sums.sum()) / seen
        self.rows.append(row)

    @property
    def recent_loss(self) -> float:
        """Mean loss of this epoch's last 50 checked batches, for a progress bar."""
        end = (self._checked - 1) % self.steps_per_epoch + 1 if self._checked else 0
        return float(self._seen[max(end - 50, 0) : end].mean()) if end else float("nan")

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, as live tensors and plain values: to be saved at once."""
        self.require_finite()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "rows": self.rows,
            "trained": self._rows,
            "optimizer": self._update.memory,
            "rest": self.net.rest(),
            "rng": rng,
            "log": self._log,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step = self._checked = state["step"]
        self.rows = state["rows"]
        with torch.no_grad():
            self.net.load_rest(state["rest"])
            self._log.copy_(state["log"])
            self._seen.copy_(self._losses)
            saved = [state["trained"], *(state["optimizer"][name] for name in self._update.memory)]
            for tensors, values in zip([self._rows, *self._update.memory.values()], saved, strict=True):
                for own, value in zip(tensors, values, strict=True):
                    own.copy_(value)
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if "cuda" in state["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.device)


def _refill(old: Any, new: Any) -> None:
    """Copy every tensor of a record into its place in another."""
    if isinstance(old, Tensor):
        old.copy_(new)
    elif dataclasses.is_dataclass(old):
        for field in dataclasses.fields(old):
            _refill(getattr(old, field.name), getattr(new, field.name))
    elif old is not None:
        raise TypeError(
            f"a draw of {type(old).__name__} cannot be brought to a device: make it tensors or a dataclass."
        )
