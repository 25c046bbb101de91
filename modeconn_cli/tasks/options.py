"""What a task can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modeconn_cli.settings import Name, choice, option


class Convention(Name):
    above_line = "above_line"
    above_mean = "above_mean"
    above_max = "above_max"
    midpoint = "midpoint"


class Likelihood(Name):
    squared = "squared"
    gaussian = "gaussian"
    huber = "huber"


@dataclass
class TaskBase:
    kind: str = option("auto", "What is learnt from the data's targets.", names="task")
    verdict_column: str | None = option(
        None, "Column whose barrier on the test split decides whether a path connects; null: the task's own.",
        identity=False,
    )  # fmt: skip
    verdict_convention: Convention | None = option(
        None, "Convention of that barrier; null: the task's own, above_mean.", identity=False
    )
    verdict_below: float | None = option(
        None, "Connected when that barrier is below this, in the column's unit; null: the task's own.", gt=0,
        identity=False,
    )  # fmt: skip


@choice("task", "auto", "classify")
@dataclass
class Classification(TaskBase):
    """Labels are classes; auto: where targets are numbers and not labels, what Regression does by default."""


@choice("task", "regress")
@dataclass
class Regression(TaskBase):
    likelihood: Likelihood = option(
        Likelihood.squared,
        "squared: mean squared error; gaussian: the network gives mean and log-variance, two outputs a target; huber.",
    )
    delta: float = option(1.0, "huber: residual at which the loss turns from square to linear, on its own scale.", gt=0)
    normalise: bool = option(
        True, "Learn targets of mean 0 and deviation 1, as measured on the training split; false: as they are."
    )
    unit: str = option("", "Unit of the targets, for tables and axes.", identity=False)


@choice("task", "custom")
@dataclass
class CustomTask(TaskBase):
    target: str = option(
        "",
        "my_package.my_module:name or path/to/file.py:name of a function of output and target, or of a class that "
        "makes one or has loss(output, batch), scores(output, batch) and columns.",
    )
    kwargs: dict[str, Any] = option({}, "Arguments that a class is made with.")
    outputs: int | None = option(None, "Numbers a network gives an example; null: one a target, or one a class.", ge=1)
    normalise: bool = option(False, "Targets of mean 0 and deviation 1, as measured on the training split.")
