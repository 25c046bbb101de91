"""What a run found, as its directory holds it: figures with names and units, tables, barriers, a verdict, files.

A stage returns a :class:`Result` from ``compute``; it is written as summary.json, beside the tables' own CSV files.
Terminal, browser of runs, report and gather read it from there and know no stage.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from modeconn_cli.evaluation.measured import METHOD, Measured, Question, judged, metric_names, unpack
from modeconn_cli.networks import read_state
from modeconn_cli.runs.directory import Run
from modeconn_cli.tasks.base import Column, Task

SUMMARY, SCORES = "summary.json", "scores.safetensors"


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
    by name, four digits where nothing is said; barriers: by metric and convention, each value, corrected, se,
    low, high; verdict: as
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
        return next((c for c in self.columns if c.name == name), Column(name, ""))

    def write(self, run: Run) -> None:
        """Into a run directory: the tables, then summary.json."""
        for table in self.tables:
            run.write_rows(table.file, table.rows)
        named = {
            "metrics": dict(self.metrics),
            "metric_columns": [vars(c) for c in self.columns],
            "barriers": dict(self.barriers),
            "verdict": self.verdict,
            "tables": [
                {"file": t.file, "title": t.title, "columns": [vars(c) for c in t.columns]} for t in self.tables
            ],
            "pictures": list(self.pictures),
            "network_files": list(self.networks),
        }
        run.write_json(SUMMARY, {"title": self.title, **self.more, **{k: v for k, v in named.items() if v}})

    def plain(self, name: str) -> dict[str, Any]:
        """Its figures, and its tables' columns and rows, as plain values; ``name``: of the run."""
        return {
            "name": name,
            "title": self.title,
            "metrics": dict(self.metrics),
            "columns": [vars(c) for c in self.columns],
            "tables": [
                {"title": t.title, "columns": [vars(c) for c in t.columns], "rows": [dict(r) for r in t.rows]}
                for t in self.tables
            ],
        }

    @classmethod
    def read(cls, folder: Path, question: Question | None = None) -> Result:
        """From a run directory; empty where it holds none. ``question``: see :func:`read_summary`."""
        if not (folder / SUMMARY).exists():
            return cls()
        content = read_summary(folder, question)
        return cls(
            title=str(content.get("title", content.get("path", ""))),
            metrics=content.get("metrics", {}),
            columns=[_column(c) for c in content.get("metric_columns", [])],
            tables=[_read_table(folder, t) for t in content.get("tables", [])],
            barriers=content.get("barriers", {}),
            verdict=content.get("verdict"),
            pictures=content.get("pictures", []),
            networks=content.get("network_files", []),
            more=content,
        )


@dataclass(frozen=True)
class Metrics:
    """How a task's metrics ``<split>_<column>`` read, and which of them a verdict is about.

    columns: the task's, the first being the objective's own; verdict, convention: the column and the barrier that say
    whether a path connects its ends; others: columns of figures that are not the task's; decay:
    whether losses have a weight-decay term.
    """

    columns: Sequence[Column]
    verdict: str
    convention: str
    others: Sequence[Column] = ()
    decay: bool = False

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Metrics:
        """As a summary.json says; of one from before it did, those of classification."""
        note = summary.get("task", {})
        others = [_column(c) for c in summary.get("metric_columns", [])]
        decay = bool(summary.get("weight_decay"))
        if "columns" not in note:
            from modeconn_cli.tasks.classify import Classify

            return cls(Classify.columns, Classify.verdict.column, Classify.verdict.convention, others, decay)
        criterion = note["verdict"]
        return cls([_column(c) for c in note["columns"]], criterion["column"], criterion["convention"], others, decay)

    @property
    def names(self) -> list[str]:
        """Every metric, the loss first, split by split."""
        return metric_names([c.name for c in self.columns])

    @property
    def objective(self) -> str:
        """The objective itself on the training split, without weight decay."""
        return f"train_{self.columns[0].name}"

    @property
    def judged(self) -> str:
        """The metric of the verdict."""
        return f"test_{self.verdict}"

    @property
    def main(self) -> tuple[str, str]:
        """What is shown where there is room for two: the training loss, and the verdict's metric."""
        return "train_loss", self.judged

    def column(self, metric: str) -> Column:
        """How a metric reads; a statistic of it (``test_error.max``) reads alike."""
        name = metric.partition(".")[0]
        by_name = {c.name: c for c in (*self.columns, *self.others)}
        first = self.columns[0]
        by_name.setdefault(
            "loss", replace(first, name="loss", title="loss, with weight decay" if self.decay else "loss")
        )
        of_split = name.partition("_")[2]
        return by_name.get(name) or by_name.get(of_split) or Column(name, "")

    def text(self, value: float, metric: str) -> str:
        """A value as people read it."""
        return self.column(metric).text(value)

    def heading(self, metric: str) -> str:
        """As "Test error (%)"."""
        split = metric.partition("_")[0]
        return f"{split.capitalize()} {self.column(metric).heading}"

    def sentence(self, metric: str, value: float) -> str:
        """As "test error 3.33%"."""
        unit = self.column(metric).unit
        text = f"{metric.replace('_', ' ')} {self.text(value, metric)}"
        return f"{text}{unit}" if unit == "%" else f"{text} {unit}".rstrip()

    def words(self, metric: str) -> str:
        """As "test-unexplained-variance", before another word."""
        split, _, name = metric.partition("_")
        title = name if name == "loss" else self.column(metric).title or name
        return "-".join([split, *title.replace("_", " ").split()])

    def label(self, metric: str) -> str:
        """As "test error (%)"."""
        unit = self.column(metric).unit
        return metric.replace("_", " ") + (f" ({unit})" if unit else "")


MOST_CLASSES = 20  # that are named


def targets_line(summary: Mapping[str, Any]) -> str:
    """What a summary says of its task's targets, in a line; empty where there is nothing to say."""
    note = summary.get("task", {})
    if classes := note.get("classes"):
        more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
        return f"classes: {', '.join(classes[:MOST_CLASSES])}{more}"
    targets = note.get("targets", {})
    if not targets or (set(targets["mean"]), set(targets["std"])) == ({0.0}, {1.0}):
        return ""
    mean, std = (", ".join(f"{v:.6g}" for v in targets[k]) for k in ("mean", "std"))
    unit = f" {targets['unit']}" if targets["unit"] else ""
    return f"answers z are normalised: the target is mean + std z, mean {mean}{unit}, std {std}{unit}"


def task_note(task: Task) -> dict[str, Any]:
    """What a summary says of its task for :meth:`Metrics.of`."""
    verdict = {"column": task.verdict.column, "convention": task.verdict.convention}
    return {"columns": [vars(c) for c in task.columns], "verdict": verdict, **getattr(task, "note", {})}


def _column(content: Mapping[str, Any]) -> Column:
    """From JSON, which may hold more."""
    known = {f.name for f in fields(Column)}
    return Column(**{k: v for k, v in content.items() if k in known})


def _read_table(folder: Path, content: Mapping[str, Any]) -> Table:
    with open(folder / content["file"], newline="", encoding="utf-8") as f:
        rows = [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(f)]
    return Table(content["file"], content["title"], [_column(c) for c in content["columns"]], rows)


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
    intervals = summary["intervals"]
    same = question.same_intervals(intervals) and intervals["method"] == METHOD
    if not same and (folder / SCORES).exists():
        summary["barriers"] = _barriers(folder, summary, question)
        intervals |= {"method": METHOD, "resamples": question.resamples, "confidence": question.confidence}
    summary["verdict"] = judged(summary["barriers"], question, summary["splits"]["test"]["examples"])
    return summary


def _barriers(folder: Path, summary: dict[str, Any], question: Question) -> dict[str, Any]:
    kept = read_state(folder / SCORES)
    columns = [_column(c) for c in summary["task"]["columns"]]
    with open(folder / "path.csv", newline="", encoding="utf-8") as f:
        l2 = np.array([float(row["l2"]) for row in csv.DictReader(f)])
    surface = "coordinates" in summary
    measured = Measured(kept["t"].numpy(), l2, unpack(kept), columns, summary["weight_decay"], surface)
    return measured.barriers(question)
