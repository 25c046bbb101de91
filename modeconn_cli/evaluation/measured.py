"""What is said of a path from the scores of every example at every point: means, errors of means, barriers, a verdict.

The forward passes are the evaluator's. What is here can be asked again of scores that were kept, without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.evaluation.barriers import barrier_intervals, resampled_means, verdict, verdict_bounds
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.rare import LEAST, is_counted, with_counts
from modeconn_cli.families.base import Array
from modeconn_cli.tasks.base import Column, Criterion

SPLITS = ("train", "test")
# Of intervals, as a summary says it.
METHOD = "bootstrap over examples, without the bias of choosing t; by counting where few change"
KEPT_BYTES = 64 << 20  # scores of one path that are kept, at most


@dataclass(frozen=True)
class Question:
    """What is asked of measured scores.

    resamples: of the bootstrap; confidence: coverage of its intervals; odds: at which a verdict is given, to one.
    """

    resamples: int
    confidence: float
    criterion: Criterion
    odds: float

    def same_intervals(self, intervals: Mapping[str, Any]) -> bool:
        """Whether intervals that a summary holds answer it."""
        return (self.resamples, self.confidence) == (intervals["resamples"], intervals["confidence"])


@dataclass(frozen=True)
class Measured:
    """Scores along a path.

    t: (T,) positions, rising from 0 to 1, or of a ``surface`` the points' shares of the second end, its ends first and
    last; l2: (T,) norms of the weights there; scores: by split and column, (T, n),
    unscaled; columns: the task's, the first being the objective's own; weight_decay: wd of the loss nll + wd/2 l2^2.
    """

    t: Array
    l2: Array
    scores: Mapping[str, Mapping[str, Tensor]]
    columns: Sequence[Column]
    weight_decay: float
    surface: bool = False

    @property
    def metrics(self) -> list[str]:
        """Every metric's name, as ``train_loss``, split by split."""
        return metric_names([c.name for c in self.columns])

    def means(self) -> dict[str, Array]:
        """Every metric at every point, (T,) each, over every example."""
        found: dict[str, Array] = {}
        for split, by_column in self.scores.items():
            own = {c.name: c.scale * by_column[c.name].double().numpy().mean(1) for c in self.columns}
            loss = own[self.columns[0].name] + self.weight_decay / 2 * self.l2**2
            found |= {f"{split}_{name}": values for name, values in {"loss": loss, **own}.items()}
        return found

    def standard_errors(self) -> dict[str, Array]:
        """Of every mean over examples, (T,) each."""
        found: dict[str, Array] = {}
        for split, by_column in self.scores.items():
            own = {}
            for c in self.columns:
                values = by_column[c.name].double().numpy()
                own[c.name] = c.scale * _deviation(values) / np.sqrt(values.shape[1])
            found |= {f"{split}_{k}": v for k, v in {"loss": own[self.columns[0].name], **own}.items()}
        return found

    def barriers(self, question: Question) -> dict[str, dict[str, dict[str, float]]]:
        """Every metric's barriers by every convention, with bootstrap intervals over the examples."""
        means = self.means()
        found = {}
        for split, by_column in self.scores.items():
            first = self.columns[0].name
            resampled = {
                c.name: resampled_means(c.scale * by_column[c.name].double(), question.resamples) for c in self.columns
            }
            # Weight decay is the same for every example.
            resampled["loss"] = resampled[first] + (means[f"{split}_loss"] - means[f"{split}_{first}"])
            for name in ("loss", *(c.name for c in self.columns)):
                key = f"{split}_{name}"
                found[key] = barrier_intervals(self.t, means[key], resampled[name], question.confidence, self.surface)
            for c in self.columns[1:]:  # the objective is no count, if all of it is 0
                key, values = f"{split}_{c.name}", by_column[c.name]
                if is_counted(values):
                    found[key] = with_counts(found[key], self.t, values, c.scale, question.confidence, self.surface)
        return found

    def pack(self) -> dict[str, Tensor]:
        """The scores as one flat dictionary: ``t`` (T,), and ``<split>.<column>`` (T, n)."""
        return {
            "t": torch.from_numpy(np.asarray(self.t, dtype=np.float64)),
            **{f"{split}.{name}": v for split, columns in self.scores.items() for name, v in columns.items()},
        }


def metric_names(columns: Sequence[str]) -> list[str]:
    """``<split>_<name>`` of the loss and of a task's columns, split by split."""
    return [f"{split}_{name}" for split in SPLITS for name in ("loss", *columns)]


def unpack(kept: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The scores by split and column from what :meth:`Measured.pack` made."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, values in kept.items():
        split, dot, name = key.partition(".")
        if dot:
            found.setdefault(split, {})[name] = values
    return found


def judged(
    barriers: Mapping[str, Mapping[str, Mapping[str, float]]], question: Question, examples: int
) -> dict[str, Any]:
    """Whether a path connects its ends, by the task's criterion on the test split, and the figures behind it.

    ``examples``: of the test split; of fewer than LEAST, which ``too_few`` then says, no verdict is given.
    """
    criterion = question.criterion
    found = dict(barriers[f"test_{criterion.column}"][criterion.convention])
    few = examples < LEAST
    return {
        "connected": "undecided" if few else verdict(verdict_bounds(found, question.odds), criterion.below),
        "metric": f"test_{criterion.column}",
        "convention": criterion.convention,
        "below": criterion.below,
        "odds": question.odds,
        **found,
        **({"too_few": examples} if few else {}),
    }


def _deviation(values: Array) -> Array:
    """Of the rows of (T, n); that of one example is not known."""
    return values.std(1, ddof=1) if values.shape[1] > 1 else np.full(len(values), np.nan)


def split_note(evaluator: Evaluator, key: str) -> dict[str, Any]:
    """What a split of the results is: its name, clean examples, how many, whole or a fixed draw."""
    split = evaluator.splits[key]
    whole = len(evaluator.task.data.train if key == "train" else evaluator.task.data.test)
    return {"split": split.name, "examples": len(split), "whole": len(split) == whole, "augmented": False}


def statistics(values: Array, on_grid: np.ndarray, length: Array | None) -> dict[str, float]:
    """Ends, extremes over every point, mean over the uniform grid, and integral over arc length, where there is one."""
    integral = {} if length is None else {"integral": float(np.trapezoid(values, length))}
    return {
        "start": float(values[0]),
        "end": float(values[-1]),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values[on_grid].mean()),
        **integral,
    }
