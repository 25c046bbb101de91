"""A report's section about the paths between two endpoints: verdicts, charts, barriers, training, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.evaluation.measured import SPLITS
from modeconn_cli.matching.options import title_of
from modeconn_cli.report.cells import badge, figure, group_head, interval
from modeconn_cli.report.charts import DASHES, Chart, Line, Quantity, chart_data, draw, swatch
from modeconn_cli.report.made import commands, configurations, provenance
from modeconn_cli.report.markup import Markup, join, row, table, tag
from modeconn_cli.report.pairs import Pair
from modeconn_cli.report.plots import PathResult
from modeconn_cli.report.tables import verdict_sentence
from modeconn_cli.results import targets_line
from modeconn_cli.runs.find import upstream_of

AS_TRAINED = (
    "Over the examples of each epoch as training saw them: augmented and smoothed where the recipe says so, "
    "the weights moving, without weight decay."
)


def section(pair: Pair, name: str, charts: list[dict[str, Any]]) -> Markup:
    training = _training(pair)
    parts = [
        tag("h2", pair.name),
        _verdicts(pair),
        tag("h3", "Along the paths"),
        *_along(pair, charts),
        tag("h3", "Barriers"),
        _barriers(pair),
        tag("p", _how_measured(pair.paths), class_="note"),
        *_targets(pair),
        *_alignments(pair),
        *([tag("h3", "Training"), _charts(training, charts), tag("p", AS_TRAINED, class_="note")] if training else []),
        tag("h3", "How it was made"),
        *commands(pair.behind),
        *provenance(pair.behind, "Runs behind these paths"),
        *configurations((f"the {path.title}", run) for path, run in zip(pair.paths, pair.measured, strict=True)),
    ]
    return tag("section", *parts, id=name)


def _targets(pair: Pair) -> list[Markup]:
    """The classes by name, or the scale of the numbers that are learnt."""
    line = targets_line(pair.paths[0].summary)
    return [tag("p", f"{line[0].upper()}{line[1:]}.", class_="note")] if line else []


def _alignments(pair: Pair) -> list[Markup]:
    """By what the second endpoint was permuted, what that was worth, and that it computes the same."""
    found = [run for run in pair.behind if run.kind == "aligned"]
    if not found:
        return []
    rows = []
    for run in found:
        s = run.read("summary.json")
        moved, units = (sum(g[k] for g in s["groups"]) for k in ("moved", "size"))
        worth = [f"{s[f'objective_{when}']:.4g}" for when in ("before", "after")]
        proof = [f"{s['certificate'][k]:.0e}" for k in ("difference", "control")]
        rows.append(row(title_of(s["method"]), s["objective_is"], *worth, f"{moved} of {units}", *proof))
    heads = ("By", "Objective", "before", "after", "Units moved", "Outputs differ by", "by a broken permutation")
    note = "Outputs of the permuted network against those before, on test examples, in shares of the largest."
    title = tag("h3", "How the second endpoint was aligned")
    return [title, table("Permutations of the second endpoint", heads, rows, "figures"), tag("p", note, class_="note")]


def _charts(several: Sequence[Chart], charts: list[dict[str, Any]]) -> Markup:
    """Charts side by side; those that offer the same quantities share their data."""
    drawn = []
    for chart in several:
        data = chart_data(chart)
        if data not in charts:
            charts.append(data)
        drawn.append(draw(chart, data, charts.index(data)))
    return tag("div", *drawn, class_="charts")


def _along(pair: Pair, charts: list[dict[str, Any]]) -> list[Markup]:
    """Charts of the paths, and a word on what is none."""
    found = []
    if any(line.x for line in pair.lines):
        found += [
            _charts([_path_chart(pair, q) for q in pair.metrics.main], charts),
            tag("p", "Bands are 1.96 standard errors over examples, networks held fixed.", class_="note"),
        ]
    said = [
        f"The {p.title} is a surface over {', '.join(p.coordinates)}, which its picture draws."
        for p in pair.paths
        if p.is_surface
    ]
    return found + [tag("p", line, class_="note") for line in said]


def _path_chart(pair: Pair, quantity: str) -> Chart:
    lines = [line for line in pair.lines if line.x]
    choices = {"split": SPLITS, "metric": ("loss", *(c.name for c in pair.metrics.columns))}
    return Chart("t", "Position along the path, t", quantity, pair.quantities, choices, "highest", lines)


def _training(pair: Pair) -> list[Chart]:
    """Loss, the task's columns and the learning rate by epoch, of every run behind the paths that trained something."""
    columns, read = _training_columns(pair)
    lines: list[Line] = []
    for run in pair.behind:
        file = run.folder / "metrics.csv"
        if run.damage or not file.exists():
            continue
        found = pd.read_csv(file)
        y = {q: found[column].tolist() for q, column in columns.items()}
        curve = next((i for i, m in enumerate(pair.measured) if run in upstream_of(m)), None)
        if run.kind == "endpoint" or curve is None:
            stroke = list(DASHES.values())[len(lines) % len(DASHES)]
            name, style = f"seed {run.read('summary.json').get('seed', run.digest)}", None
        else:
            name, style, stroke = pair.paths[curve].title, pair.lines[curve].style, pair.lines[curve].dash
        lines.append(Line(name, style, stroke, found["epoch"].tolist(), y, {}))
    if not lines:
        return []
    return [Chart("epoch", "Epoch", q, read, {}, "last", lines) for q in columns]


def _training_columns(pair: Pair) -> tuple[dict[str, str], dict[str, Quantity]]:
    """What metrics.csv holds, by the quantity that a chart draws, and how each reads."""
    objective, *others = pair.metrics.columns
    columns = {"loss": "train_loss", **{c.name: f"train_{c.name}" for c in others}, "lr": "lr"}
    read = {"loss": Quantity("Loss in training", objective.text, log=True)}
    for c in others:
        unit = f" ({c.unit})" if c.unit else ""
        read[c.name] = Quantity(f"{(c.title or c.name).capitalize()} in training{unit}", c.text)
    return columns, {**read, "lr": Quantity("Learning rate", lambda value: f"{value:.4g}")}


def _verdicts(pair: Pair) -> Markup:
    items = [
        tag(
            "li",
            tag("p", swatch(line), " ", tag("b", path.title), " ", badge(path.summary["verdict"]["connected"])),
            tag("p", verdict_sentence(path)),
        )
        for line, path in zip(pair.lines, pair.paths, strict=True)
    ]
    return tag("ul", *items, class_="verdicts")


def _barriers(pair: Pair) -> Markup:
    bodies, metrics = [], pair.metrics
    for metric in metrics.names:
        rows = [group_head(metrics.heading(metric), len(CONVENTIONS) + 4)]
        for line, path in zip(pair.lines, pair.paths, strict=True):
            ends = [figure(path.summary["columns"][metric][k], metric, metrics) for k in ("start", "end", "max")]
            found = [interval(path.summary["barriers"][metric].get(c), metric, metrics) for c in CONVENTIONS]
            rows.append(row(join([swatch(line), " ", path.title]), *ends, *found))
        bodies.append(tag("tbody", *rows))
    heads = ("Path", "t = 0", "t = 1", "highest", *CONVENTIONS)
    return table("Ends, highest values and barriers in every convention", heads, bodies, "figures")


def _how_measured(paths: Sequence[PathResult]) -> str:
    """What the figures of these paths are means and intervals of, once where it is the same for all."""
    said: dict[str, list[str]] = {}
    for path in paths:
        s = path.summary
        splits = ", ".join(
            f"{v['examples']} {k} examples{'' if v['whole'] else ' (a draw)'}" for k, v in s["splits"].items()
        )
        searched = s["maximum"]["searched_between_grid_points"]
        search = " and a search between them for the highest train loss" if searched else ""
        plain = path.metrics.columns[0].title
        decay = f"Losses are the {plain} plus weight decay, {s['weight_decay']:g}/2 · ‖w‖²."
        losses = decay if s["weight_decay"] else f"Losses are the {plain}, without weight decay."
        text = (
            f"Over {splits}; {s['grid_points']} points{search}. Intervals: "
            f"{s['intervals']['method']}, {s['intervals']['resamples']} resamples, "
            f"{100 * s['intervals']['confidence']:g}%. {losses}"
        )
        said.setdefault(text, []).append(path.title)
    return " ".join(text if len(said) == 1 else f"{', '.join(titles)}: {text}" for text, titles in said.items())
