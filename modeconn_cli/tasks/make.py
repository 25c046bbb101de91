"""A configured task on a data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.dataset import Data
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.targets import Target
from modeconn_cli.tasks.base import Criterion, Task
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.custom import Custom
from modeconn_cli.tasks.options import CustomTask, Regression, TaskBase
from modeconn_cli.tasks.regress import Regress

WANTED: dict[str, Targets] = {"auto": "auto", "classify": "classes", "regress": "numbers", "custom": "floats"}


def targets_of(settings: TaskBase) -> Targets:
    """What the targets of arrays are to be read as."""
    return WANTED.get(str(settings.kind), "auto")


def make_task(settings: TaskBase, data: Data, connected_below: float) -> Task:
    """The task that settings describe.

    Args:
        data: on the CPU.
        connected_below: points of error below which a classifier's path connects.

    Raises:
        UserError: the data's targets are not what the task learns, or it has no such column for its verdict.
    """
    kind = str(settings.kind)
    labels = data.classes is not None
    task: Task
    make: Any = getattr(settings, "make", None)  # a task from outside this package makes itself
    if make is not None:
        task = make(data)
    elif isinstance(settings, CustomTask):
        target = Target(settings.target, "task")
        task = Custom.of(data, target, settings.kwargs, settings.outputs, settings.normalise)
    elif kind == "regress" or (kind == "auto" and not labels):
        if labels:
            raise UserError("task=regress learns numbers, and this data set's targets are classes: use task=classify.")
        asked = settings if isinstance(settings, Regression) else Regression()
        task = Regress.of(data, asked.likelihood, asked.delta, asked.normalise, asked.unit)
    else:
        if not labels:
            raise UserError("task=classify learns classes, and this data set's targets are numbers: use task=regress.")
        task = Classify(data, verdict=Criterion("error", "above_mean", connected_below))
    return _judged(task, settings)


def _judged(task: Task, settings: TaskBase) -> Task:
    """With the verdict that the settings ask for."""
    column = settings.verdict_column or task.verdict.column
    names = [c.name for c in task.columns]
    if column not in (*names, "loss"):
        raise UserError(f"task.verdict_column={column}: no such column; there are loss, {', '.join(names)}.")
    if settings.verdict_column and column != task.verdict.column and settings.verdict_below is None:
        raise UserError(f"task.verdict_column={column} needs task.verdict_below, a threshold in its unit.")
    convention = str(settings.verdict_convention or task.verdict.convention)
    assert convention in CONVENTIONS
    verdict = Criterion(column, convention, settings.verdict_below or task.verdict.below)
    return task if verdict == task.verdict else replace(task, verdict=verdict)  # type: ignore[type-var]
