"""Rows for tables and JSON, read from the files of finished runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.evaluation.measured import Question
from modeconn_cli.evaluation.rare import LEAST
from modeconn_cli.matching.options import title_of
from modeconn_cli.report.gather import REPLICATION, as_override, count, run_settings, varied
from modeconn_cli.report.plots import PathResult
from modeconn_cli.results import Metrics, read_summary
from modeconn_cli.runs.find import Found, stands_on_curve

MOST_KEYS = 2  # in a title


def read_path(folder: Path, question: Question | None = None) -> PathResult:
    """A measured path from its run directory, with the intervals asked for or else with its own."""
    summary = read_summary(folder, question)
    return PathResult(summary["path"], pd.read_csv(folder / "path.csv"), summary)


def read_paths(folders: Sequence[Path]) -> list[PathResult]:
    """Measured paths that are shown together, each with a title of its own."""
    paths = [read_path(folder) for folder in folders]
    if len({endpoints_of(p) for p in paths}) > 1:
        paths = [replace(p, title=f"{p.title}, {endpoints_of(p)}") for p in paths]
    if len(methods_of(paths)) > 1:
        paths = [replace(p, title=f"{p.title} ({m.replace('_', '-')})") if (m := aligned_by(p)) else p for p in paths]
    times, named = Counter(p.title for p in paths), [*zip(paths, folders, strict=True)]
    apart = _what_differs([f for p, f in named if times[p.title] > 1])
    return [replace(p, title=f"{p.title} ({apart[f]})") if f in apart else p for p, f in named]


def _what_differs(folders: Sequence[Path]) -> dict[Path, str]:
    """By directory, the settings that tell runs from each other; where that are none or many, digests."""
    settings = {folder: run_settings(Found(folder)) for folder in folders}
    keys = [k for k in varied([*settings.values()]) if k not in REPLICATION]
    named = {f: ", ".join(f"{k}={as_override(own.get(k))}" for k in keys) for f, own in settings.items()}
    if 0 < len(keys) <= MOST_KEYS and len({*named.values()}) == len(named):
        return named
    return {folder: Found(folder).digest[:6] for folder in folders}


def drawing_order(run: Found) -> tuple[bool, str, str]:
    """Sorts measured paths: segments before curves, as the endpoints are before as they are aligned."""
    return stands_on_curve(run), run.read("summary.json").get("aligned_by") or "", run.name


def endpoints_of(path: PathResult) -> str:
    """The endpoints by name, whether the second is aligned or not."""
    return str(path.summary["task"]["endpoints"]).removesuffix(" aligned")


def aligned_by(path: PathResult) -> str | None:
    """The method by which the second endpoint was aligned, if any."""
    found: str | None = path.summary.get("aligned_by")
    return found


def methods_of(paths: Sequence[PathResult]) -> list[str]:
    return sorted({method for method in map(aligned_by, paths) if method})


def barrier_rows(paths: list[PathResult]) -> list[dict[str, Any]]:
    """One row a path and main metric: the ends, the highest value, and every convention with its interval."""
    rows = []
    for metric in paths[0].metrics.main if paths else ():
        for path in paths:
            column = path.summary["columns"][metric]
            rows.append(
                {
                    "metric": metric,
                    "path": path.title,
                    "endpoints": path.summary["task"]["endpoints"],
                    "start": column["start"],
                    "end": column["end"],
                    "max": column["max"],
                    "weight_decay": path.summary["weight_decay"],
                    **{c: path.summary["barriers"][metric].get(c) for c in CONVENTIONS},  # a surface has no midpoint
                }
            )
    return rows


def kind_of(title: str) -> str:
    """The kind of a path from its title, without a curve's details: "Bezier curve + REPAIR"."""
    return re.sub(r", [^+(]*?(?= [+(]|$)", "", title)


def verdict_sentence(path: PathResult) -> str:
    """The verdict on one path in a sentence, with its interval and its convention."""
    v, metrics = path.summary["verdict"], path.metrics
    how = {"yes": "joins", "no": "does not join", "undecided": "may or may not join"}[v["connected"]]
    sign = {"yes": "below", "no": "not below", "undecided": "against"}[v["connected"]]
    if sign != "against" and _holds_threshold(v):
        sign = f"likely {sign}"
    level = round(100 * path.summary["intervals"]["confidence"])
    loss = metrics.main[0]
    return (
        f"The {kind_of(path.title)} {how} {path.summary['task']['endpoints']}: {barrier_words(v, metrics)}, {sign} "
        f"{v['below']:g}; {interval_words(loss, path.summary['barriers'][loss][v['convention']], metrics)} "
        f"({v['convention']}, {level}% intervals)."
    )


def barrier_words(verdict: Mapping[str, Any], metrics: Metrics) -> str:
    """As "test-error barrier 7.50 points [4.30, 10.83] (corrected 7.03)"."""
    metric = verdict["metric"]
    unit = metrics.column(metric).difference
    words = interval_words(metric, verdict, metrics, f" {unit}" if unit else "")
    value, corrected = (metrics.text(verdict.get(k, verdict["value"]), metric) for k in ("value", "corrected"))
    words = words if value == corrected else f"{words} (corrected {corrected})"
    few = verdict.get("too_few")
    return f"{words}, of {count(few, 'test example')}, too few to tell (fewer than {LEAST})" if few else words


def _holds_threshold(verdict: Mapping[str, Any]) -> bool:
    return bool(verdict["low"] < verdict["below"] <= verdict["high"])


def interval_words(metric: str, found: Mapping[str, float], metrics: Metrics, unit: str = "") -> str:
    value, low, high = (metrics.text(found[k], metric) for k in ("value", "low", "high"))
    return f"{metrics.words(metric)} barrier {value}{unit} [{low}, {high}]"


def connection(verdicts: list[dict[str, Any]], first: str, second: str, metrics: Metrics) -> tuple[str, str]:
    """The answer to "are they connected?" in a word, and in a sentence with its figures and convention.

    Of the verdicts on the paths that were measured, the simplest path that joins decides.
    """
    first_yes = next((v for v in verdicts if v["connected"] == "yes"), None)
    undecided = [v for v in verdicts if v["connected"] == "undecided"]
    told = first_yes or (min(undecided, key=lambda v: v["value"]) if undecided else verdicts[-1])
    kind = kind_of(told["path"])
    figures = (
        f"{barrier_words(told, metrics)} along the {kind}, "
        f"{told['convention']}, {100 * told['confidence']:g}% interval, threshold {told['below']:g}"
        f"{' inside it' if _holds_threshold(told) else ''}"
    )
    both = f"{first} and {second}"
    line = {"yes": "are linearly connected", "no": "are not linearly connected"}.get(verdicts[0]["connected"])
    if told["connected"] == "no":
        return "not connected", f"Verdict: no path that was tried connects {both} ({figures})."
    if told is verdicts[0]:
        if line is None:
            return "undecided", f"Verdict: whether {both} are linearly connected is undecided ({figures})."
        return "linearly connected", f"Verdict: {both} {line} ({figures})."
    after = told["path"].startswith("aligned segment")
    before = f"{both} {line}" if line else f"whether {both} are linearly connected is undecided"
    if told["connected"] == "yes" and after:
        return "connected after alignment", f"Verdict: {before}, but after alignment they are ({figures})."
    if told["connected"] == "yes":
        return "connected by a curve", f"Verdict: {before}, but the {kind} joins them ({figures})."
    return "undecided", f"Verdict: {before}, and whether the {kind} joins them is undecided ({figures})."


def heading(paths: list[PathResult]) -> str:
    """What a figure of these paths shows, in a line."""
    tasks = dict.fromkeys(f"{p.summary['task']['architecture']} on {p.summary['task']['dataset']}" for p in paths)
    given = [p.summary["task"]["endpoints"] for p in paths]
    ends = dict.fromkeys(given if len({*given}) == 1 else map(endpoints_of, paths))
    methods = methods_of(paths)
    every = "" if all(map(aligned_by, paths)) else " where the path says so"
    aligned = f", aligned by {title_of(methods[0])}{every}" if len(methods) == 1 else ""
    return f"{'; '.join(tasks)}, endpoints {', '.join(ends)}{aligned}"
