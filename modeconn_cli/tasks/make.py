"""A configured task on a data set."""

from __future__ import annotations

from dataclasses import replace

from modeconn_cli.data.dataset import Data
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.tasks.base import Criterion, Task
from modeconn_cli.tasks.options import TaskBase


def make_task(settings: TaskBase, data: Data, connected_below: float) -> Task:
    """The task that settings describe, with the verdict that they ask for.

    Args:
        data: on the CPU.
        connected_below: points of error below which a classifier's path connects.

    Raises:
        UserError: the data's targets are not what the task learns, or it has no such column for its verdict.
    """
    return _judged(settings.make(data, connected_below), settings)


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
