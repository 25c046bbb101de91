"""One HTML file about what was measured, which loads nothing: verdicts, charts, barriers, training, provenance."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.report.charts import DASHES, QUANTITIES, Chart, Line, chart_data, draw, shown, swatch
from modeconn_cli.report.gather import REPLICATION, SHAPED_BY, as_override, count, gather, run_settings, varied
from modeconn_cli.report.markup import Markup, embedded, join, row, table, tag
from modeconn_cli.report.plots import STYLES, PathResult, style
from modeconn_cli.report.tables import ALIGNED_BY, drawing_order, heading, read_paths, verdict_sentence
from modeconn_cli.runs.directory import Run, writable
from modeconn_cli.runs.find import Found, endpoints_behind, endpoints_of, upstream_of

METRICS = [q for q in QUANTITIES if "_" in q]
TRAINING = {"loss": "train_loss", "error": "train_error", "lr": "lr"}  # columns of metrics.csv
AS_TRAINED = (
    "Over the examples of each epoch as training saw them: augmented and smoothed where the recipe says so, "
    "the weights moving, without weight decay."
)
VERDICTS = {"yes": "joined", "no": "not joined", "undecided": "undecided"}
GATHERED = ("path", "n", "shared_endpoints", "metrics", "runs")  # of a row of gather, what is no setting
DEFINITIONS = {
    "above_line": "max of L(t) − [(1−t) L(0) + t L(1)]",
    "above_mean": "max of L(t) − [L(0) + L(1)]/2",
    "above_max": "max of L(t) − max(L(0), L(1))",
    "midpoint": "L(1/2) − [L(0) + L(1)]/2",
}


@dataclass(frozen=True)
class Pair:
    """The measured paths between the same two endpoints."""

    name: str
    measured: list[Found]
    paths: list[PathResult]

    @cached_property
    def behind(self) -> list[Found]:
        """Every run that the paths stand on, before what stands on it; the paths themselves last."""
        before = [u for run in self.measured for u in upstream_of(run)]
        every = [u for run in before for u in [*upstream_of(run), run]]
        return list({run.folder: run for run in [*every, *self.measured]}.values())

    @cached_property
    def lines(self) -> list[Line]:
        """One a path, in the colours and strokes of `modeconn plot`."""
        return [
            Line(
                path.title,
                i,
                DASHES[style(i)[1]],
                path.table["t"].tolist(),
                {m: path.table[m].tolist() for m in METRICS},
                {m: path.table[f"{m}_se"].tolist() for m in METRICS},
            )
            for i, path in enumerate(self.paths)
        ]


def write_page(measured: Sequence[Found], means: Sequence[Found], file: Path) -> None:
    """Make the page about measured paths and means of several networks, and write it as a whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    page = make_page(measured, means)
    with writable(file, "--output FILE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        Run(file.parent, "run", "").write_text(file.name, page)


def make_page(measured: Sequence[Found], means: Sequence[Found] = ()) -> str:
    """The page as text, the same for the same files."""
    pairs = _pairs(measured)
    charts: list[dict[str, Any]] = []
    body = [
        tag("header", tag("h1", "Mode connectivity"), tag("p", _abstract(pairs, means))),
        *([_overview(pairs)] if len(pairs) > 1 else []),
        *_replicates(pairs),
        *(_section(pair, f"pair{i}", charts) for i, pair in enumerate(pairs, 1)),
        *(_mean_section(run, f"mean{i}") for i, run in enumerate(means, 1)),
        _conventions(),
    ]
    here = Path(__file__).parent
    colours = "".join(f".style{i}{{--ink:{colour}}}" for i, (colour, _) in enumerate(STYLES))
    sheet = (here / "page.css").read_text(encoding="utf-8") + colours
    script = (here / "page.js").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {_hash(sheet)}; script-src {_hash(script)}"
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head",
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            tag("title", f"Mode connectivity: {_about(pairs, means)}"),
            tag("style", Markup(sheet)),
        ),
        tag("body", tag("main", *body), embedded(charts, "charts"), tag("script", Markup(script))),
        lang="en",
    )


def _hash(text: str) -> str:
    """What a Content-Security-Policy lets run: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _pairs(measured: Sequence[Found]) -> list[Pair]:
    groups: dict[tuple[str, ...], list[Found]] = {}
    for run in measured:
        groups.setdefault(endpoints_of(run) or (run.name,), []).append(run)
    pairs = []
    for group in groups.values():
        ordered = sorted(group, key=drawing_order)
        paths = read_paths([r.folder for r in ordered])
        pairs.append(Pair(heading(paths), ordered, paths))
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_name.setdefault(pair.name, []).append(pair)
    named = [p for alike in by_name.values() for p in (_told_apart(alike) if len(alike) > 1 else alike)]
    return sorted(named, key=lambda p: [int(w) if w.isdecimal() else w for w in re.split(r"(\d+)", p.name)])


def _told_apart(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of one name, with the settings in which their endpoints differ and the endpoints' digests."""
    settings = [run_settings(p.measured[0]) for p in pairs]
    keys = [k for k in varied(settings) if k.split(".")[0] in SHAPED_BY["train-endpoints"] and k not in REPLICATION]
    named = []
    for pair, own in zip(pairs, settings, strict=True):
        differ = [f"{k}={own.get(k)}" for k in keys]
        digests = "-".join(d[:6] for d in endpoints_of(pair.measured[0]))
        named.append(replace(pair, name=f"{pair.name} ({', '.join([*differ, digests])})"))
    return named


def _about(pairs: Sequence[Pair], means: Sequence[Found]) -> str:
    """The tasks of the page, each once."""
    tasks = [path.summary["task"] for pair in pairs for path in pair.paths]
    of_paths = [f"{task['architecture']} on {task['dataset']}" for task in tasks]
    return "; ".join(dict.fromkeys([*of_paths, *map(_task, means)]))


def _task(run: Found) -> str:
    settings = run_settings(run)
    return f"{settings['architecture.name']} on {settings['dataset.name']}"


def _abstract(pairs: Sequence[Pair], means: Sequence[Found]) -> str:
    parts = [*([_counted(pairs)] if pairs else []), *([count(len(means), "mean")] if means else [])]
    return f"{_about(pairs, means)}: {'; '.join(parts)}."


def _counted(pairs: Sequence[Pair]) -> str:
    counts = [p.summary["verdict"]["connected"] for pair in pairs for p in pair.paths]
    said = ", ".join(f"{counts.count(k)} {v}" for k, v in VERDICTS.items() if k in counts)
    several = f"{len(pairs)} pairs of endpoints, " if len(pairs) > 1 else ""
    return f"{several}{count(len(counts), 'measured path')}, {said}"


# ------------------------------------------------------------------------------------------------ across pairs


def _overview(pairs: Sequence[Pair]) -> Markup:
    groups = []
    for i, pair in enumerate(pairs, 1):
        link = tag("a", pair.name, href=f"#pair{i}")
        rows = [_group_head(link, 4)]
        for line, path in zip(pair.lines, pair.paths, strict=True):
            found = [_interval(path.summary["barriers"][m]["above_mean"], m) for m in ("train_loss", "test_error")]
            rows.append(row(join([swatch(line), " ", path.title]), *found, _badge(path)))
        groups.append(tag("tbody", *rows))
    heads = ("Path", "Train-loss barrier", "Test-error barrier", "Verdict")
    return tag("section", tag("h2", "Overview"), table("Barriers above_mean, with intervals", heads, groups, "figures"))


def _replicates(pairs: Sequence[Pair]) -> list[Markup]:
    """Means over replicates, where there are any."""
    names = [f"{m}.{c}" for m in METRICS for c in CONVENTIONS]
    measured = [run for pair in pairs for run in pair.measured]
    try:
        every = gather(measured, [], [], names)
    except UserError:  # runs that no one mean would describe
        return []
    found = [group for group in every if group["n"] > 1]
    if not found:
        return []
    bodies = []
    for group in found:
        alike = [{k: v for k, v in g.items() if k not in GATHERED} for g in every if g["path"] == group["path"]]
        settings = tag("small", ", ".join(f"{k}={as_override(group[k])}" for k in varied(alike)))
        rows = [_group_head(join([f"{group['path']}, n = {group['n']}", settings]), len(CONVENTIONS) + 1)]
        for metric in METRICS:
            means = [_mean(group["metrics"][f"{metric}.{c}"], metric) for c in CONVENTIONS]
            rows.append(row(QUANTITIES[metric], *means))
        bodies.append(tag("tbody", *rows))
    note = "Means ± standard deviations over n replicates, with 95% intervals for the mean (Student’s t)."
    if any(group["shared_endpoints"] for group in found):
        note += " Some replicates share an endpoint, so they are not independent and these intervals are too narrow."
    title = tag("h2", "Barriers over replicates")
    full = table("Means over replicates, in every convention", ("Metric", *CONVENTIONS), bodies, "figures")
    return [tag("section", title, tag("p", note), full)]


def _mean(a: dict[str, float], metric: str) -> Markup:
    value, std, low, high = (_value(a[k], metric) for k in ("mean", "std", "low", "high"))
    return tag("span", value, " ± ", std, tag("small", "[", low, ", ", high, "]"))


def _conventions() -> Markup:
    rows = [tag("div", tag("dt", name), tag("dd", DEFINITIONS[name])) for name in CONVENTIONS]
    about = "Barriers of a metric L along a path. The verdict is that of above_mean on the test error."
    return tag("footer", tag("h2", "Conventions"), tag("p", about), tag("dl", *rows))


# --------------------------------------------------------------------------------------------------- one pair


def _section(pair: Pair, name: str, charts: list[dict[str, Any]]) -> Markup:
    training = _training(pair)
    parts = [
        tag("h2", pair.name),
        _verdicts(pair),
        tag("h3", "Along the paths"),
        _charts([_path_chart(pair, q) for q in ("train_loss", "test_error")], charts),
        tag("p", "Bands are 1.96 standard errors over examples, networks held fixed.", class_="note"),
        tag("h3", "Barriers"),
        _barriers(pair),
        tag("p", _how_measured(pair.paths), class_="note"),
        *_alignments(pair),
        *([tag("h3", "Training"), _charts(training, charts), tag("p", AS_TRAINED, class_="note")] if training else []),
        tag("h3", "How it was made"),
        *_commands(pair.behind),
        *_provenance(pair.behind, "Runs behind these paths"),
        *_configurations((f"the {path.title}", run) for path, run in zip(pair.paths, pair.measured, strict=True)),
    ]
    return tag("section", *parts, id=name)


def _alignments(pair: Pair) -> list[Markup]:
    """By what the second endpoint was permuted, what that was worth, and that it computes the same."""
    found = [run for run in pair.behind if run.stage == "rebasin"]
    if not found:
        return []
    rows = []
    for run in found:
        s = run.read("summary.json")
        moved, units = (sum(g[k] for g in s["groups"]) for k in ("moved", "size"))
        worth = [f"{s[f'objective_{when}']:.4g}" for when in ("before", "after")]
        proof = [f"{s['certificate'][k]:.0e}" for k in ("difference", "control")]
        rows.append(row(ALIGNED_BY[s["method"]], s["objective_is"], *worth, f"{moved} of {units}", *proof))
    heads = ("By", "Objective", "before", "after", "Units moved", "Outputs differ by", "by a broken permutation")
    note = "Outputs of the permuted network against those before: float64, on test examples, in shares of the largest."
    title = tag("h3", "How the second endpoint was aligned")
    return [title, table("Permutations of the second endpoint", heads, rows, "figures"), tag("p", note, class_="note")]


def _mean_section(run: Found, name: str) -> Markup:
    """The mean of several networks, in every way."""
    s = run.read("summary.json")
    metrics = [m for m in METRICS if m in s["metrics"]]
    rows = []
    for one in s["merged"]:
        cells = [c for m in metrics for c in (_value(one[m], m), _interval(one[f"{m}_above_mean"], m))]
        rows.append(row(one["network"], *cells))
    heads = ("Network", *(head for m in metrics for head in (QUANTITIES[m], "above_mean")))
    round_, apart = (100 * s["cycle_error"][k] for k in ("this", "every pair by weight matching"))
    cycles = (
        f" Round three networks {round_:.1f}% of all units do not return to their place; {apart:.1f}% where every pair "
        "is matched by itself."
    )
    note = (
        "above_mean: above the mean of the networks' own. The same functions: outputs of the permuted networks differ "
        f"by {s['certificate']['difference']:.0e} of the largest (float64; {s['certificate']['control']:.0e} for a "
        f"broken permutation).{cycles if len(s['networks']) > 2 else ''}"
    )
    behind = [*endpoints_behind(run), run]
    parts = [
        tag("h2", f"{_task(run)}, the mean of {', '.join(s['networks'])}, aligned by {ALIGNED_BY[s['method']]}"),
        table("Loss and error of the mean", heads, rows, "figures"),
        tag("p", note, class_="note"),
        tag("h3", "How it was made"),
        *_commands(behind),
        *_provenance(behind, "Runs behind this mean"),
        *_configurations([("the mean", run)]),
    ]
    return tag("section", *parts, id=name)


def _charts(several: Sequence[Chart], charts: list[dict[str, Any]]) -> Markup:
    """Charts side by side; those that offer the same quantities share their data."""
    drawn = []
    for chart in several:
        data = chart_data(chart)
        if data not in charts:
            charts.append(data)
        drawn.append(draw(chart, data, charts.index(data)))
    return tag("div", *drawn, class_="charts")


def _path_chart(pair: Pair, quantity: str) -> Chart:
    choices = {"split": ("train", "test"), "metric": ("loss", "nll", "error")}
    return Chart("t", "Position along the path, t", quantity, choices, "highest", pair.lines)


def _training(pair: Pair) -> list[Chart]:
    """Loss, error and learning rate by epoch of every run behind the paths that trained something."""
    lines: list[Line] = []
    for run in pair.behind:
        file = run.folder / "metrics.csv"
        if not file.exists():
            continue
        found = pd.read_csv(file)
        y = {q: found[column].tolist() for q, column in TRAINING.items()}
        curve = next((i for i, m in enumerate(pair.measured) if run in upstream_of(m)), None)
        if run.stage == "train-endpoints" or curve is None:
            stroke = list(DASHES.values())[len(lines) % len(DASHES)]
            name, style = f"seed {run.read('summary.json').get('seed', run.digest)}", None
        else:
            name, style, stroke = pair.paths[curve].title, pair.lines[curve].style, pair.lines[curve].dash
        lines.append(Line(name, style, stroke, found["epoch"].tolist(), y, {}))
    if not lines:
        return []
    return [Chart("epoch", "Epoch", q, {}, "last", lines) for q in TRAINING]


def _verdicts(pair: Pair) -> Markup:
    items = [
        tag(
            "li", tag("p", swatch(line), " ", tag("b", path.title), " ", _badge(path)), tag("p", verdict_sentence(path))
        )
        for line, path in zip(pair.lines, pair.paths, strict=True)
    ]
    return tag("ul", *items, class_="verdicts")


def _badge(path: PathResult) -> Markup:
    connected = path.summary["verdict"]["connected"]
    return tag("span", VERDICTS[connected], class_=f"badge {connected}")


def _barriers(pair: Pair) -> Markup:
    bodies = []
    for metric in METRICS:
        rows = [_group_head(QUANTITIES[metric], len(CONVENTIONS) + 4)]
        for line, path in zip(pair.lines, pair.paths, strict=True):
            ends = [_value(path.summary["columns"][metric][k], metric) for k in ("start", "end", "max")]
            found = [_interval(path.summary["barriers"][metric][c], metric) for c in CONVENTIONS]
            rows.append(row(join([swatch(line), " ", path.title]), *ends, *found))
        bodies.append(tag("tbody", *rows))
    heads = ("Path", "t = 0", "t = 1", "highest", *CONVENTIONS)
    return table("Ends, highest values and barriers in every convention", heads, bodies, "figures")


def _group_head(title: str, columns: int) -> Markup:
    return tag("tr", tag("th", tag("span", title), colspan=columns, scope="rowgroup"), class_="group")


def _value(value: float, metric: str) -> Markup:
    return tag("data", shown(value, metric), value=repr(float(value)))


def _interval(found: dict[str, float], metric: str) -> Markup:
    value, low, high = (_value(found[k], metric) for k in ("value", "low", "high"))
    return tag("span", value, tag("small", "[", low, ", ", high, "]"))


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
        decay = s["weight_decay"] / 2
        losses = f"Losses add {decay:g}·‖w‖² to the cross-entropy." if decay else "Losses are the cross-entropy."
        text = (
            f"Over {splits}; {s['grid_points']} points{search}. Intervals: "
            f"{s['intervals']['method']}, {s['intervals']['resamples']} resamples, "
            f"{100 * s['intervals']['confidence']:g}%. {losses}"
        )
        said.setdefault(text, []).append(path.title)
    return " ".join(text if len(said) == 1 else f"{', '.join(titles)}: {text}" for text, titles in said.items())


# ----------------------------------------------------------------------------------------------- how it was made


def _commands(behind: Sequence[Found]) -> list[Markup]:
    """Every command that made these runs, in the order they finished."""
    made: dict[str, list[str]] = {}
    for run in sorted(behind, key=lambda r: str(r.read("DONE").get("finished", ""))):
        command = run.read("provenance.json").get("command")
        if command:
            made.setdefault(str(command), []).append(run.stage)
    several = len(made) > 1
    return [
        tag(
            "div",
            *([tag("p", "Made ", ", ".join(dict.fromkeys(stages)), ":")] if several else []),
            tag("pre", tag("code", command)),
            class_="command",
        )
        for command, stages in made.items()
    ]


def _provenance(behind: Sequence[Found], caption: str) -> list[Markup]:
    """What is the same for every run said once, the rest as a table."""
    facts = []
    for run in behind:
        p = run.read("provenance.json")
        device = {"device": p.get("device_name", p.get("device"))}
        versions = {k: p.get(k) for k in ("modeconn", "git", "python", "torch", "numpy")}
        machine = {k: p.get(k) for k in ("host", "platform", "threads")}
        facts.append({**versions, **machine, **device, "data sha256": p.get("dataset_sha256")})
    differ = varied(facts)
    common = [tag("div", tag("dt", k), tag("dd", str(v))) for k, v in facts[0].items() if k not in differ and v]
    rows = []
    for run, fact in zip(behind, facts, strict=True):
        seconds = run.read("provenance.json").get("seconds")
        finished = str(run.read("DONE").get("finished", "")).replace("T", " ")
        own = [str(fact[k]) for k in differ]
        cells = [tag("code", f"{run.name}/{run.version}"), run.digest, "" if seconds is None else f"{seconds:g}"]
        rows.append(row(run.stage, *cells, finished, *own))
    heads = ("Stage", "Directory", "Digest", "Seconds", "Finished", *differ)
    return [tag("dl", *common, class_="facts"), table(caption, heads, rows, "runs")]


def _configurations(named: Iterable[tuple[str, Found]]) -> list[Markup]:
    found = []
    for name, run in named:
        file = run.folder / "config.yaml"
        if file.exists():
            title = tag("summary", f"Configuration of {name}")
            found.append(tag("details", title, tag("pre", file.read_text(encoding="utf-8"), tabindex=0)))
    return found
