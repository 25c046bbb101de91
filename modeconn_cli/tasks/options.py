"""What a task can be told. What it is made with is imported when it is made, so that asking for options is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeconn_cli.errors import UserError
from modeconn_cli.settings import Name, choice, option

if TYPE_CHECKING:
    from modeconn_cli.data.arrays import Targets
    from modeconn_cli.data.dataset import Data
    from modeconn_cli.tasks.base import Task


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
    """What is learnt, and when a path connects. A class registered by ``@choice("task", name)`` derives from it."""

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

    @property
    def targets(self) -> Targets:
        """What the targets of arrays are to be read as."""
        return "auto"

    def make(self, data: Data, connected_below: float) -> Task:
        """The task on data as read, on the CPU, with a verdict of its own.

        connected_below: points of error below which a classifier's path connects.

        Raises:
            UserError: the data's targets are not what the task learns.
        """
        raise NotImplementedError


@choice("task", "auto", "classify")
@dataclass
class Classification(TaskBase):
    """Labels are classes; auto: where targets are numbers and not labels, what Regression does by default."""

    @property
    def targets(self) -> Targets:
        return "auto" if self.kind == "auto" else "classes"

    def make(self, data: Data, connected_below: float) -> Task:
        from modeconn_cli.tasks.base import Criterion
        from modeconn_cli.tasks.classify import Classify

        if data.classes is not None:
            return Classify(data, verdict=Criterion("error", "above_mean", connected_below))
        if self.kind == "auto":
            return Regression().make(data, connected_below)
        raise UserError("task=classify learns classes, and this data set's targets are numbers: use task=regress.")


@choice("task", "regress")
@dataclass
class Regression(TaskBase):
    """Numbers are learnt; :mod:`modeconn_cli.tasks.regress` has the formulas."""

    likelihood: Likelihood = option(
        Likelihood.squared,
        "squared: mean squared error; gaussian: the network gives mean and log-variance, two outputs a target; huber.",
    )
    delta: float = option(1.0, "huber: residual at which the loss turns from square to linear, on its own scale.", gt=0)
    normalise: bool = option(
        True, "Learn targets of mean 0 and deviation 1, as measured on the training split; false: as they are."
    )
    unit: str = option("", "Unit of the targets, for tables and axes.", identity=False)

    @property
    def targets(self) -> Targets:
        return "numbers"

    def make(self, data: Data, connected_below: float) -> Task:
        from modeconn_cli.tasks.regress import Regress

        if data.classes is not None:
            raise UserError("task=regress learns numbers, and this data set's targets are classes: use task=classify.")
        return Regress.of(data, self.likelihood, self.delta, self.normalise, self.unit)


@choice("task", "custom")
@dataclass
class CustomTask(TaskBase):
    """An objective of the user's own; :mod:`modeconn_cli.tasks.custom` says what it has."""

    target: str = option(
        "",
        "my_package.my_module:name or path/to/file.py:name of a function of output and target, or of a class that "
        "makes one or has loss(output, batch), scores(output, batch) and columns.",
    )
    kwargs: dict[str, Any] = option({}, "Arguments that a class is made with.")
    outputs: int | None = option(None, "Numbers a network gives an example; null: one a target, or one a class.", ge=1)
    normalise: bool = option(False, "Targets of mean 0 and deviation 1, as measured on the training split.")

    @property
    def targets(self) -> Targets:
        return "floats"

    def make(self, data: Data, connected_below: float) -> Task:
        from modeconn_cli.targets import Target
        from modeconn_cli.tasks.custom import Custom

        return Custom.of(data, Target(self.target, "task"), self.kwargs, self.outputs, self.normalise)
