"""Cells and headings that the parts of a report share."""

from __future__ import annotations

from collections.abc import Mapping

from modeconn_cli.report.markup import Markup, tag
from modeconn_cli.results import Metrics

VERDICTS = {"yes": "joined", "no": "not joined", "undecided": "undecided"}


def group_head(title: str, columns: int) -> Markup:
    return tag("tr", tag("th", tag("span", title), colspan=columns, scope="rowgroup"), class_="group")


def figure(value: float, metric: str, metrics: Metrics) -> Markup:
    """A value as people read it, the figure in full behind it."""
    return tag("data", metrics.text(value, metric), value=repr(float(value)))


def interval(found: Mapping[str, float] | None, metric: str, metrics: Metrics) -> Markup:
    """A barrier with its interval, or a dash for none."""
    if found is None:
        return tag("span", "–")
    value, low, high = (figure(found[k], metric, metrics) for k in ("value", "low", "high"))
    return tag("span", value, tag("small", "[", low, ", ", high, "]"))


def badge(connected: str) -> Markup:
    return tag("span", VERDICTS[connected], class_=f"badge {connected}")
