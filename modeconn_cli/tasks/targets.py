"""Targets that are numbers, brought to mean 0 and deviation 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split


@dataclass(frozen=True, eq=False)
class Scale:
    """y = mean + std * z, for each of T targets: mean and std (T,), float64 on the CPU.

    >>> scale = Scale.measured(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> scale.mean.tolist(), scale.std.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def measured(y: Tensor) -> Scale:
        """Of the training targets (N,) or (N, T); a target that does not vary has deviation 1."""
        rows = y.double().reshape(len(y), -1)
        mean, std = rows.mean(0), rows.std(0, unbiased=False)
        return Scale(mean, torch.where(std <= 1e-12 * mean.abs(), torch.ones_like(std), std))

    @staticmethod
    def none(targets: int) -> Scale:
        """Of targets that stay as they are."""
        return Scale(torch.zeros(targets, dtype=torch.float64), torch.ones(targets, dtype=torch.float64))

    def note(self, unit: str = "", log_variances: bool = False) -> dict[str, Any]:
        """What turns a network's answers z into the data's unit, mean + std * z, as plain values.

        log_variances: whether T log-variances of z follow the T means of z, in the data's unit s + 2 log std.
        """
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "unit": unit, "log_variances": log_variances}

    def normalised(self, data: Data) -> Data:
        """The data with z (N, T) float32 in place of y, in every split; computed in float64."""

        def of(split: Split) -> Split:
            z = (split.y.double().reshape(len(split), -1) - self.mean) / self.std
            return replace(split, y=z.float())

        test = of(data.test)
        validation = data.validation
        if validation is not None:
            validation = test if validation is data.test else of(validation)
        return replace(data, train=of(data.train), validation=validation, test=test)
