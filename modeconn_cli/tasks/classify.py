"""Classification: cross-entropy, and the share of wrong answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split
from modeconn_cli.tasks.base import Batch, Column, Criterion, Draw, draw_examples
from modeconn_cli.tasks.outputs import tensor_of

COLUMNS = (
    Column("nll", "cross-entropy"),
    Column("error", "error", unit="%", digits=2, scale=100.0, counts=True),
)


@dataclass(frozen=True, eq=False)
class Classify:
    """One of ``data.classes`` classes an example, by logits (B, classes), however the network wraps them.

    Of two classes a network may answer with one logit, (B, 1) or (B,): that of the second, the first's being 0. Its
    cross-entropy is binary cross-entropy with logits, its error that of the sign.
    """

    data: Data
    label_smoothing: float = 0.0
    columns: tuple[Column, ...] = COLUMNS
    verdict: Criterion = Criterion("error", "above_mean", 2.0)

    @property
    def outputs(self) -> int:
        assert self.data.classes is not None
        return self.data.classes

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        return ((2,), (1,), ()) if self.outputs == 2 else ((self.outputs,),)

    @property
    def note(self) -> dict[str, Any]:
        return {} if self.data.class_names is None else {"classes": [*self.data.class_names]}

    @property
    def constant(self) -> dict[str, float]:
        """The error of always answering the test split's commonest class, in percent."""
        labels = self.data.test.y
        return {"error": 100 * (1 - int(labels.bincount().max()) / len(labels))}

    def to(self, device: Any) -> Classify:
        return replace(self, data=self.data.to(device))

    def smoothed(self, label_smoothing: float) -> Classify:
        return replace(self, label_smoothing=label_smoothing)

    def draw(self, seed: int, epoch: int) -> Draw:
        return draw_examples(self.data, seed, epoch)

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def logits(self, output: Any) -> Tensor:
        """(B, classes) of whatever the network returned."""
        found = tensor_of(output)
        if self.outputs == 2 and (found.dim() == 1 or found.shape[1:] == (1,)):
            second = found.reshape(-1)
            return torch.stack([torch.zeros_like(second), second], dim=1)
        return found

    def predicted(self, output: Any) -> Tensor:
        """Probabilities (B, classes)."""
        return self.logits(output).softmax(1)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(output), batch.y, label_smoothing=self.label_smoothing)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        nll = F.cross_entropy(self.logits(output), batch.y, reduction="none")
        return {"nll": nll, **self.scores_beside_loss(output, batch)}

    def scores_beside_loss(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {"error": self.logits(output).argmax(1) != batch.y}
