"""What a run found, as its directory holds it: figures with names and units, tables, barriers, a verdict, files.

A stage returns a :class:`Result` from ``compute``; it is written as summary.json, beside the tables' own CSV files.
Terminal, browser of runs, report and gather read it from there and know no stage.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeconn_cli.runs.directory import Run

if TYPE_CHECKING:
    from modeconn_cli.evaluation.measured import Question

SUMMARY, SCORES = "summary.json", "scores.safetensors"


@dataclass(frozen=True)
class Column:
    """How a figure reads: its name, a title for headings, a unit ("" for none), digits, and which way is better."""

    name: str
    title: str = ""
    unit: str = ""
    digits: int = 4
    better: str = "lower"

    def text(self, value: Any) -> str:
        """A value as people read it."""
        if isinstance(value, str) or value is None:
            return value or ""
        return f"{value:.{self.digits}f}" if value == value else "–"

    @property
    def heading(self) -> str:
        return (self.title or self.name) + (f" ({self.unit})" if self.unit else "")

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Column:
        """From JSON, which may hold more."""
        return cls(**{k: content[k] for k in ("name", "title", "unit", "digits", "better") if k in content})


@dataclass(frozen=True)
class Table:
    """Rows under typed columns, kept as a CSV file of the run directory."""

    file: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


@dataclass
class Result:
    """What a stage found.

    title: what it is, in a heading; metrics: single figures by name, as gather takes them; columns: how figures read,
    by name, four digits where nothing is said; barriers: by metric and convention, each value, low, high; verdict: as
    evaluation.measured.judged gives it; pictures, networks: files of the run directory; more: what else summary.json
    holds.
    """

    title: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[Column] = ()
    tables: Sequence[Table] = ()
    barriers: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    pictures: Sequence[str] = ()
    networks: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> Column:
        """How a figure of this name reads."""
        return next((c for c in self.columns if c.name == name), Column(name))

    def write(self, run: Run) -> None:
        """Into a run directory: the tables, then summary.json."""
        for table in self.tables:
            run.write_rows(table.file, table.rows)
        named = {
            "metrics": dict(self.metrics),
            "metric_columns": [vars(c) for c in self.columns],
            "barriers": dict(self.barriers),
            "verdict": self.verdict,
            "tables": [{"file": t.file, "title": t.title, "columns": [vars(c) for c in t.columns]} for t in self.tables],
            "pictures": list(self.pictures),
            "network_files": list(self.networks),
        }
        run.write_json(SUMMARY, {"title": self.title, **self.more, **{k: v for k, v in named.items() if v}})

    @classmethod
    def read(cls, folder: Path, question: Question | None = None) -> Result:
        """From a run directory; empty where it holds none. ``question``: see :func:`read_summary`."""
        if not (folder / SUMMARY).exists():
            return cls()
        content = read_summary(folder, question)
        return cls(
            title=str(content.get("title", content.get("path", ""))),
            metrics=content.get("metrics", {}),
            columns=[Column.read(c) for c in content.get("metric_columns", [])],
            tables=[_read_table(folder, t) for t in content.get("tables", [])],
            barriers=content.get("barriers", {}),
            verdict=content.get("verdict"),
            pictures=content.get("pictures", []),
            networks=content.get("network_files", []),
            more=content,
        )


def _read_table(folder: Path, content: Mapping[str, Any]) -> Table:
    with open(folder / content["file"], newline="", encoding="utf-8") as f:
        rows = [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(f)]
    return Table(content["file"], content["title"], [Column.read(c) for c in content["columns"]], rows)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_summary(folder: Path, question: Question | None = None) -> dict[str, Any]:
    """A finished run's summary.json; of a measured path, with the intervals and the verdict that are asked for.

    Without a question they are those that the run itself was asked for. Where another is asked, they are made from the
    scores that were kept, without a forward pass: a network's scores do not depend on what is asked of them. Where none
    were kept the intervals stay, and ``intervals`` says which they are.
    """
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    if question is None or "barriers" not in summary:
        return summary
    from modeconn_cli.evaluation.measured import judged

    if not question.same_intervals(summary["intervals"]) and (folder / SCORES).exists():
        summary["barriers"] = _barriers(folder, summary, question)
        summary["intervals"] |= {"resamples": question.resamples, "confidence": question.confidence}
    summary["verdict"] = judged(summary["barriers"], question.criterion)
    return summary


def _barriers(folder: Path, summary: dict[str, Any], question: Question) -> dict[str, Any]:
    import numpy as np

    from modeconn_cli.evaluation import measured as m
    from modeconn_cli.networks import read_state
    from modeconn_cli.tasks import base

    kept = read_state(folder / SCORES)
    columns = [base.Column(**c) for c in summary["task"]["columns"]]
    with open(folder / "path.csv", newline="", encoding="utf-8") as f:
        l2 = np.array([float(row["l2"]) for row in csv.DictReader(f)])
    measured = m.Measured(kept["t"].numpy(), l2, m.unpack(kept), columns, summary["weight_decay"])
    return measured.barriers(question)
