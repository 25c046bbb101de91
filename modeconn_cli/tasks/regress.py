"""Regression: squared error, a Gaussian of unknown variance, or Huber's loss, on normalised targets.

With z = (y - mean) / std of an example's T targets, mean and std those of the training split, r = z - prediction,
and f the network's outputs:

    squared    1/T sum r^2                                                 f: (T,)
    huber      1/T sum of r^2/2 where |r| <= d, d (|r| - d/2) elsewhere    f: (T,)
    gaussian   1/2 sum [log 2 pi + s + r^2 exp(-s)]                        f: (2T,), T means, then T log-variances s

(Huber 1964; Nix and Weigend 1994 for the Gaussian.) Columns in the data's own unit are means over the targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split
from modeconn_cli.errors import UserError
from modeconn_cli.tasks.base import Batch, Column, Criterion, Draw, draw_examples
from modeconn_cli.tasks.options import Likelihood
from modeconn_cli.tasks.outputs import tensor_of
from modeconn_cli.tasks.targets import Scale

OBJECTIVES = {
    Likelihood.squared: Column("mse", "mean squared error"),
    Likelihood.gaussian: Column("nll", "negative log-likelihood"),
    Likelihood.huber: Column("huber", "Huber loss"),
}


@dataclass(frozen=True, eq=False)
class Regress:
    """T numbers an example; :meth:`of` makes it.

    data: its targets are normalised by ``scale``. std, variance: (T,) of the targets in the data's unit, and of the
    normalised ones, on the data's device.
    """

    data: Data
    scale: Scale
    std: Tensor
    variance: Tensor
    likelihood: Likelihood
    delta: float
    columns: tuple[Column, ...]
    verdict: Criterion

    @staticmethod
    def of(
        data: Data,
        likelihood: Likelihood = Likelihood.squared,
        delta: float = 1.0,
        normalise: bool = True,
        unit: str = "",
    ) -> Regress:
        """The task on data as read. The verdict is about unexplained variance, below 2 points."""
        scale = Scale.measured(data.train.y) if normalise else Scale.none(data.targets)
        columns = (
            OBJECTIVES[likelihood],
            Column("squared_error", "squared error", f"{unit}^2" if unit else ""),
            Column("absolute_error", "absolute error", unit),
            Column("unexplained", "unexplained variance", unit="%", digits=2, scale=100.0),
        )
        below = Criterion("unexplained", "above_mean", 2.0)
        normal = scale.normalised(data)
        variance = Scale.measured(normal.train.y).std.square().float()
        return Regress(normal, scale, scale.std.float(), variance, likelihood, delta, columns, below)

    @property
    def targets(self) -> int:
        return self.data.targets

    @property
    def outputs(self) -> int:
        return 2 * self.targets if self.likelihood is Likelihood.gaussian else self.targets

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        return ((1,), ()) if self.outputs == 1 else ((self.outputs,),)

    @property
    def note(self) -> dict[str, Any]:
        unit = next(c.unit for c in self.columns if c.name == "absolute_error")
        return {"targets": self.scale.note(unit, self.likelihood is Likelihood.gaussian)}

    @property
    def constant(self) -> dict[str, float]:
        """The unexplained variance of always answering the test split's mean, in percent."""
        z = self.data.test.y.double()
        share = (z - z.mean(0)).square().mean(0) / self.variance.to(z)
        return {"unexplained": 100 * float(share.mean())}

    def to(self, device: Any) -> Regress:
        return replace(self, data=self.data.to(device), std=self.std.to(device), variance=self.variance.to(device))

    def smoothed(self, label_smoothing: float) -> Regress:
        if label_smoothing:
            raise UserError(f"label_smoothing={label_smoothing:g} is for classes; numbers have no labels to smooth.")
        return self

    def draw(self, seed: int, epoch: int) -> Draw:
        return draw_examples(self.data, seed, epoch)

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return self._objective(*self._read(output, batch)).mean()

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """(B,) each; squared_error and absolute_error in the data's unit, unexplained as a share of the variance."""
        residual, log_variance = self._read(output, batch)
        inside = self.std.to(residual.dtype) * residual
        return {
            self.columns[0].name: self._objective(residual, log_variance),
            "squared_error": inside.square().mean(1),
            "absolute_error": inside.abs().mean(1),
            "unexplained": (residual.square() / self.variance.to(residual.dtype)).mean(1),
        }

    def predicted(self, output: Any) -> Tensor:
        """Normalised targets (B, T), without the log-variances."""
        return self._parted(output)[0]

    def moments(self, output: Any) -> Tensor:
        """Mean and variance (B, T, 2) of each target, in the data's own unit; no variance where none is learnt."""
        mean, log_variance = (None if v is None else v.double() for v in self._parted(output))
        assert mean is not None
        std, centre = self.std.to(mean), self.scale.mean.to(mean)
        variance = torch.zeros_like(mean) if log_variance is None else log_variance.exp()
        return torch.stack([centre + std * mean, std.square() * variance], dim=2).float()

    def averaged(self, answers_mno: Tensor) -> Tensor:
        """The answer (n, outputs) of M networks together: the mean; of Gaussians, that with the mixture's mean and
        variance (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4)."""
        if self.likelihood is not Likelihood.gaussian:
            return answers_mno.mean(0)
        mean, log_variance = answers_mno.split(self.targets, dim=2)
        variance = log_variance.exp().mean(0) + mean.var(0, correction=0)
        return torch.cat([mean.mean(0), variance.log()], dim=1)

    def _read(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Residuals (B, T) of the normalised targets, and log-variances (B, T) where there are some."""
        mean, log_variance = self._parted(output, len(batch.y))
        return batch.y.to(mean.dtype) - mean, log_variance

    def _parted(self, output: Any, examples: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Means (B, T) of the normalised targets, and log-variances (B, T) where there are some."""
        answer = tensor_of(output)
        if self.outputs == 1:
            answer = answer.reshape(-1, 1)
        examples = len(answer) if examples is None else examples
        if answer.shape != (examples, self.outputs):
            raise UserError(
                f"the network answers {examples} examples with {tuple(answer.shape)}, and this task wants "
                f"({examples}, {self.outputs})"
            )
        mean, *log_variance = answer.split(self.targets, dim=1)
        return mean, log_variance[0] if log_variance else None

    def _objective(self, residual: Tensor, log_variance: Tensor | None) -> Tensor:
        """(B,) of every example."""
        if log_variance is not None:
            return 0.5 * (math.log(2 * math.pi) + log_variance + residual.square() * torch.exp(-log_variance)).sum(1)
        if self.likelihood is Likelihood.huber:
            zeros = torch.zeros_like(residual)
            return F.huber_loss(residual, zeros, reduction="none", delta=self.delta).mean(1)
        return residual.square().mean(1)
