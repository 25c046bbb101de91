"""What a task is: data, an objective, and the columns in which a network is scored on an example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split


@dataclass(frozen=True)
class Column:
    """One number of an example, whose mean over a split is reported.

    name: as in ``test_<name>``; title: for axes and tables; unit: "" for none, "%" where the mean is given in percent
    (``scale`` is then 100); digits: after the point; better: "lower" or "higher".
    """

    name: str
    title: str
    unit: str = ""
    digits: int = 4
    scale: float = 1.0
    better: str = "lower"
    counts: bool = False

    @property
    def heading(self) -> str:
        """As "error (%)"."""
        return (self.title or self.name.replace("_", " ")) + (f" ({self.unit})" if self.unit else "")

    def text(self, value: float | str | None) -> str:
        """A value as people read it; words stay."""
        if value is None:
            return "–"
        if isinstance(value, str):
            return value
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "–"

    @property
    def difference(self) -> str:
        """The unit of a difference: points, of percentages."""
        return "points" if self.unit == "%" else self.unit


@dataclass(frozen=True)
class Criterion:
    """When a path is called connected: the barrier of a column of the test split, by a convention, under a threshold.

    below: in the column's own unit (points of error, nats, the data's unit).
    """

    column: str
    convention: str
    below: float


@dataclass(frozen=True)
class Batch:
    """Examples as the network and the objective take them: x (B, *shape), y (B, ...)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Draw:
    """What is random about an epoch's examples: their order (n,), and the augmentation of each place in it."""

    order: Tensor
    augmentation: Any


def draw_examples(data: Data, seed: int, epoch: int) -> Draw:
    """Every training example once, in an order and with an augmentation of chance, on the data's device.

    It is drawn on the CPU from (seed, epoch) alone, so that every device sees the same one and no epoch needs a memory.
    """
    n, device = len(data.train), data.train.x.device
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    generator = torch.Generator().manual_seed(int(entropy[0] >> 1))
    order = torch.randperm(n, generator=generator)
    return Draw(order.to(device), data.augment.draw(n, generator).to(device))


class Task(Protocol):
    """Data and objective. Training, evaluation, matching and reports ask it; none of them knows what a class is.

    columns: the first is the objective's own, without smoothing and weight decay: the evaluated loss is its mean plus
    the weight-decay term. outputs: how many numbers a network gives an example. answers: the shapes that its answer for
    one example may have, the usual one first; none: any.
    """

    @property
    def data(self) -> Data: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def verdict(self) -> Criterion: ...

    @property
    def outputs(self) -> int: ...

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def note(self) -> dict[str, Any]:
        """What a summary says of the targets, as plain values: class names, or mean and deviation of numbers."""

    def to(self, device: Any) -> Task:
        """The same task with its data on a device."""

    def smoothed(self, label_smoothing: float) -> Task:
        """The task as it is trained with so much smoothing of its labels; UserError where it has none to smooth."""

    def draw(self, seed: int, epoch: int) -> Draw:
        """The order of an epoch's training examples and their augmentation; the same for the same numbers."""

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        """The examples at ``index``, ready for the network, augmented by ``draw``."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The training objective, a scalar mean over the batch; ``output`` is whatever the network returned."""

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Every column for every example, each (B,), by column name; unscaled (an error is 0 or 1).

        A task may also have ``scores_beside_loss``, which leaves out the first: a training step asks for no more. And
        ``constant``: by column, the mean over the test split of the best answer that is the same for every example.
        """
