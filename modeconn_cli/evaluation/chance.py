"""Networks that have learnt nothing, or have collapsed: between them no path says anything."""

from __future__ import annotations

from collections.abc import Mapping

from modeconn_cli.errors import listed
from modeconn_cli.tasks.base import Task

NEAR = 0.9  # of what one answer for every example scores
THEM = {"it": "it", "they": "them"}


def at_chance(ends: Mapping[str, Mapping[str, float]], task: Task) -> str:
    """A line about those of some networks, ``<split>_<column>`` by name, that do little better on the test split than
    the best answer that is the same for every example; empty where there are none, or the task knows of no such answer.
    """
    column = next(c for c in task.columns if c.name == task.verdict.column)
    constant = getattr(task, "constant", {}).get(column.name)
    metric = f"test_{column.name}"
    lost = [name for name, found in ends.items() if constant and found.get(metric, 0.0) > NEAR * constant]
    if not lost:
        return ""
    do, they, were = ("does", "it", "was") if len(lost) == 1 else ("do", "they", "were")
    figure = f"test {column.title or column.name} {column.text(constant)}{column.unit}"
    return (
        f"{listed(lost)} {do} little better than one answer for every example ({figure}), so a path to {THEM[they]} "
        f"says little: {were} {they} trained, and on inputs scaled as these (dataset.mean, dataset.std)?"
    )
