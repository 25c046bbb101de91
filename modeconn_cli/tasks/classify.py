"""Classification: cross-entropy, and the share of wrong answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split
from modeconn_cli.tasks.base import Batch, Column, Criterion

COLUMNS = (
    Column("nll", "cross-entropy"),
    Column("error", "error", unit="%", digits=2, scale=100.0, counts=True),
)


@dataclass(frozen=True, eq=False)
class Classify:
    """One of ``data.classes`` classes an example, by logits (B, classes)."""

    data: Data
    label_smoothing: float = 0.0
    columns: tuple[Column, ...] = COLUMNS
    verdict: Criterion = Criterion("error", "above_mean", 2.0)

    @property
    def outputs(self) -> int:
        return self.data.classes

    def to(self, device: Any) -> Classify:
        return replace(self, data=self.data.to(device))

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def loss(self, output: Any, batch: Batch) -> Tensor:
        logits = output.float() if output.dtype is torch.bfloat16 else output
        return F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {
            "nll": F.cross_entropy(output, batch.y, reduction="none"),
            "error": output.argmax(1) != batch.y,
        }
