"""Published tables: the runs that make each one again, and ours beside the published figures.

A table is a file under conf/paper/: which settings each of its rows stands for, at full scale (the paper's own data
and recipe) and scaled down, and where a published cell's counterpart is found in a run's results. The published figures
are report/paper_numbers.csv. A cell that was not run, or cannot be yet, is empty.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import PathOf
from modeconn_cli.front.compose import Job, compose
from modeconn_cli.front.overrides import conf_dir
from modeconn_cli.report.gather import flatten, not_settings, varied
from modeconn_cli.runs.find import Found, stands_on_curve
from modeconn_cli.settings import plain

SCALES = ("full", "small", "smoke")
NUMBERS = Path(__file__).parents[1] / "report" / "paper_numbers.csv"


@dataclass(frozen=True)
class Table:
    """A published table as its file describes it."""

    name: str
    content: dict[str, Any]

    @property
    def scales(self) -> list[str]:
        return [s for s in SCALES if s in self.content["scales"]]

    @property
    def command(self) -> str | None:
        """What runs its rows; None: a whole experiment, path by path."""
        return self.content.get("command")

    def statistics(self, row: dict[str, Any], method: str) -> list[str]:
        """Of the published cells that a method, or the one it stands beside, has in a row."""
        of = self.content["methods"][method].get("beside", method)
        return [
            *dict.fromkeys(
                c["statistic"] for c in self.published if (_row_name(c), c["method"]) == (_row_name(row), of)
            )
        ]

    @property
    def landed(self) -> list[str]:
        """The methods that can be run."""
        return [m for m, entry in self.content["methods"].items() if "needs" not in entry]

    @property
    def missing(self) -> list[str]:
        """What the other methods need first."""
        return sorted({entry["needs"] for entry in self.content["methods"].values() if "needs" in entry})

    @cached_property
    def published(self) -> list[dict[str, str]]:
        """The published figures: one dictionary a cell, with source and whether it was verified."""
        with open(NUMBERS, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        return [r for r in rows if (r["paper"], r["table"]) == (self.content["paper"], self.content["table"])]


def tables() -> dict[str, Table]:
    """Every table by its name."""
    files = sorted((conf_dir() / "paper").glob("*.yaml"))
    return {f.stem: Table(f.stem, yaml.safe_load(f.read_text(encoding="utf-8"))) for f in files}


@dataclass
class Part:
    """One configuration of a table's scale: the row it stands for, and the methods and statistics that it fills.

    directories: of finished paths, by "segment" and "curve"; and of all that is finished, by "all".
    """

    row: dict[str, Any]
    fills: list[tuple[str, str]]
    job: Job
    directories: dict[str, list[str]] = field(default_factory=dict)


def chosen(table: Table, scale: str, names: Sequence[str]) -> Table:
    """The table with only those rows of a scale whose name has one of ``names`` in it; all for none.

    Raises:
        UserError: there is no such scale, or a name is in no row.
    """
    if scale not in table.scales:
        raise UserError(f"{table.name} has no scale {scale!r}: choose from {', '.join(table.scales)}.")
    level = table.content["scales"][scale]
    rows = [r for r in level["rows"] if not names or any(_is_named(r, n, level["rows"]) for n in names)]
    for name in names:
        if not any(name in _row_name(r) for r in level["rows"]):
            raise UserError(
                f"--row {name}: {table.name} at scale {scale} has the rows {', '.join(map(_row_name, level['rows']))}."
            )
    scales = {**table.content["scales"], scale: {**level, "rows": rows}}
    return Table(table.name, {**table.content, "scales": scales})


def _is_named(row: dict[str, Any], name: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a row is called so, or where none is, has the name in its own."""
    exact = any(_row_name(r) == name for r in rows)
    return _row_name(row) == name if exact else name in _row_name(row)


def parts(table: Table, scale: str, more: Sequence[str]) -> list[Part]:
    """What has to be run for a table at a scale, composed and checked against the schema.

    Raises:
        UserError: none of the table's methods can be run yet.
    """
    if not table.landed:
        raise UserError(f"nothing of {table.name} can be run yet: it needs {', '.join(table.missing)}.")
    found = []
    level = table.content["scales"][scale]
    for row in level["rows"]:
        together: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for method in table.landed:
            for statistic in table.statistics(row, method):
                own = [
                    *table.content["methods"][method].get("overrides", []),
                    *row.get("statistics", {}).get(statistic, []),
                ]
                together.setdefault(tuple(own), []).append((method, statistic))
        plain = together.get((), [])
        if len(together) > 1 and plain and all(table.content["methods"][m].get("of") == "ends" for m, _ in plain):
            together.pop(())  # the ends are measured by every other job too
            together[next(iter(together))] += plain
        for overrides, fills in together.items():
            (job,) = compose([*row["overrides"], *level["overrides"], *overrides, *more])
            found.append(Part(row, fills, job))
    return found


def differences(table: Table, scale: str, more: Sequence[str]) -> dict[str, list[str]]:
    """How a scaled run differs from the paper's own recipe: by row, `key=value (full: value)` for what matters."""
    full = table.content["scales"]["full"]
    if scale == "full" and not more:
        return {}
    own = {_row_name(r): r for r in full["rows"]}
    level = table.content["scales"][scale]
    apart = {}
    for row in level["rows"]:
        name = _row_name(row)
        pair = []
        for r, common, extra in ((own[name], full["overrides"], []), (row, level["overrides"], list(more))):
            (job,) = compose([*r["overrides"], *common, *extra])
            groups = (
                "dataset",
                "architecture",
                "endpoints",
                "curve",
                "interpolation",
                "pipeline",
                *table.content.get("groups", []),
            )
            tree = {k: v for k, v in plain(job.config).items() if k in groups}
            pair.append(flatten(tree))
        skipped = (
            "dataset.source",
            "architecture.family",
            "pipeline.replicates",
            *not_settings(),
        )
        keys = [k for k in varied(pair) if k not in skipped and all(k in p for p in pair)]
        keys = [k for k in keys if not (k.startswith("architecture.") and k != "architecture.name")] + [
            k for k in keys if k.startswith("architecture.") and k != "architecture.name"
        ]
        if keys:
            apart[name] = [f"{k}={_short(pair[1][k])} (full: {_short(pair[0][k])})" for k in keys]
    return apart


def cells(table: Table, scale: str, done: Sequence[Part], faithful: bool) -> list[dict[str, Any]]:
    """One dictionary a published cell of the scale's rows: ours (mean, std, n; None where not run) and the published.

    Their difference is given where the run is ``faithful`` alone: no other run is a reproduction. A method that stands
    ``beside`` a published one has the same cells after its, with ours alone.
    """
    rows = {_row_name(r) for r in table.content["scales"][scale]["rows"]}
    methods = table.content["methods"]
    beside = {m: [b for b, entry in methods.items() if entry.get("beside") == m] for m in methods}
    wanted: list[dict[str, str]] = []
    for (_, method), group in itertools.groupby(table.published, lambda c: (_row_name(c), c["method"])):
        own = list(group)
        wanted += own + [{**c, "method": b, "value": ""} for b in beside.get(method, []) for c in own]
    found = []
    for cell in wanted:
        name = _row_name(cell)
        if name not in rows:
            continue
        ours = _ours(
            table,
            cell,
            [p for p in done if _row_name(p.row) == name and (cell["method"], cell["statistic"]) in p.fills],
        )
        published = float(cell["value"]) if cell["value"] else None
        entry = methods.get(cell["method"], {})
        found.append(
            {
                **{k: cell[k] for k in ("dataset", "architecture", "method", "metric", "statistic")},
                "ours": None if ours is None else float(np.mean(ours)),
                "values": ours,
                "std": float(np.std(ours, ddof=1)) if ours is not None and len(ours) > 1 else None,
                "n": 0 if ours is None else len(ours),
                "published": published,
                "spread": float(cell["spread"]) if cell["spread"] and published is not None else None,
                "difference": float(np.mean(ours)) - published
                if ours is not None and published is not None and faithful
                else None,
                "source": cell["source"] if published is not None else "",
                "verified": cell["verified"] == "yes",
                "needs": entry.get("needs"),
            }
        )
    return found


def _ours(table: Table, cell: dict[str, str], done: Sequence[Part]) -> list[float] | None:
    """This cell's value in every replicate, None where none is finished."""
    from modeconn_cli.report.tables import read_path

    entry = table.content["methods"].get(cell["method"], {})
    metric = table.content["metrics"].get(cell["metric"])
    if "needs" in entry or metric is None:
        return None
    if "table" in entry:
        return _of_rows(entry, metric, cell["statistic"], done)
    values = []
    for part in done:
        for folder in part.directories.get(entry["path"], []):
            path = read_path(Path(folder))
            if "barrier" in metric:
                values.append(path.summary["barriers"][metric["column"]][metric["barrier"]]["value"])
                continue
            statistic = cell["statistic"]
            x = path.table[metric["column"]].to_numpy()
            ends = np.array([x[0], x[-1]])
            over = 100 - x if metric.get("accuracy") else x
            of_ends = 100 - ends if metric.get("accuracy") else ends
            if entry["of"] == "endpoint_mean":
                values.append(float(of_ends.mean()))
            elif statistic in ("first", "second"):
                values.append(float(of_ends[("first", "second").index(statistic)]))
            elif statistic == "midpoint":
                values.append(float(np.interp(0.5, path.table["t"], over)))
            else:
                chosen = of_ends if entry["of"] == "ends" else over
                values.append(float({"min": chosen.min, "max": chosen.max}[statistic]()))
    return values or None


def _of_rows(entry: dict[str, Any], metric: dict[str, Any], statistic: str, done: Sequence[Part]) -> list[float] | None:
    """A column of those rows of a run's table whose cells are as ``where`` says, and ``by`` as the statistic counts."""
    where = {**entry["where"], **({entry["by"]: statistic.partition("_")[0]} if "by" in entry else {})}
    values = []
    for file in (Path(f) / entry["table"] for part in done for f in part.directories.get("all", [])):
        if not file.is_file():
            continue
        with open(file, newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                if all(row[k] == str(v) for k, v in where.items()) and row[metric["column"]]:
                    x = float(row[metric["column"]])
                    values.append(100 - x if metric.get("accuracy") else x)
    return values or None


def note_directories(part: Part, stages: Sequence[dict[str, Any]]) -> None:
    """Keep where a part's finished runs are, from the rows of its plan."""
    finished = [Found(Path(r["directory"])) for r in stages if r["status"] not in ("failed", "skipped")]
    part.directories["all"] = [str(run.folder) for run in finished]
    paths = [run for run in finished if run.kind == "path"]
    part.directories[str(PathOf.segment)] = [str(run.folder) for run in paths if not stands_on_curve(run)]
    part.directories[str(PathOf.curve)] = [str(run.folder) for run in paths if stands_on_curve(run)]


def _row_name(row: dict[str, Any]) -> str:
    return f"{row['dataset']} {row['architecture']}"


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text.replace(" ", "")
