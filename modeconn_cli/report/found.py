"""A report's section about what any stage found: its figures, tables and pictures."""

from __future__ import annotations

import base64

from modeconn_cli.report.cells import figure
from modeconn_cli.report.made import commands, configurations, provenance
from modeconn_cli.report.markup import Markup, row, table, tag
from modeconn_cli.report.means import task_of
from modeconn_cli.results import Column, Metrics, Result, Table
from modeconn_cli.runs.find import Found, endpoints_behind, upstream_of

MOST_ROWS = 200  # of a table; all of them are in its file


def found_section(run: Found, name: str) -> Markup:
    """A result as its directory holds it, whichever stage made it."""
    found, metrics = Result.read(run.folder), Metrics.of(run.read("summary.json"))
    rows = [row(metrics.column(m).heading, figure(value, m, metrics)) for m, value in found.metrics.items()]
    behind = list(dict.fromkeys([*endpoints_behind(run), *upstream_of(run), run]))
    title = found.title or run.stage
    parts = [
        tag("h2", f"{task_of(run)}, {title}"),
        *([table("Figures", ("", "value"), rows, "figures")] if rows else []),
        *(part for t in found.tables for part in _table(t)),
        *(_picture(run, file) for file in found.pictures),
        tag("h3", "How it was made"),
        *commands(behind),
        *provenance(behind, "Runs behind this result"),
        *configurations([(title, run)]),
    ]
    return tag("section", *parts, id=name)


def _table(found: Table) -> list[Markup]:
    rows = [row(*(_cell(c, line.get(c.name, "")) for c in found.columns)) for line in found.rows[:MOST_ROWS]]
    drawn = table(found.title, [c.heading for c in found.columns], rows, "figures")
    if len(found.rows) <= MOST_ROWS:
        return [drawn]
    return [drawn, tag("p", f"The first {MOST_ROWS} of {len(found.rows)} rows of {found.file}.", class_="note")]


def _cell(column: Column, value: float | str) -> str:
    return value if isinstance(value, str) else tag("data", column.text(value), value=repr(value))


def _picture(run: Found, file: str) -> Markup:
    """A PNG of the run, inside the page."""
    content = base64.b64encode((run.folder / file).read_bytes()).decode()
    return tag("img", src=f"data:image/png;base64,{content}", alt=file)
