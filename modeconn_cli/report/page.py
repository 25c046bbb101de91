"""One HTML file about what was measured, which loads nothing: verdicts, charts, barriers, training, provenance."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.report.cells import VERDICTS, badge, figure, group_head, interval
from modeconn_cli.report.charts import swatch
from modeconn_cli.report.choose import Reported
from modeconn_cli.report.found import found_section
from modeconn_cli.report.gather import NO_SETTING, as_override, count, gather, varied
from modeconn_cli.report.markup import Markup, embedded, join, row, table, tag
from modeconn_cli.report.means import mean_section, task_of
from modeconn_cli.report.pairs import Pair, find_pairs
from modeconn_cli.report.plots import STYLES
from modeconn_cli.report.section import section
from modeconn_cli.results import Metrics
from modeconn_cli.runs.directory import Run, writable
from modeconn_cli.runs.find import Found

GATHERED = ("path", *NO_SETTING)  # of a row of gather, what is no setting
DEFINITIONS = {
    "above_line": "max of L(t) − [(1−t) L(0) + t L(1)]",
    "above_mean": "max of L(t) − [L(0) + L(1)]/2",
    "above_max": "max of L(t) − max(L(0), L(1))",
    "midpoint": "L(1/2) − [L(0) + L(1)]/2",
}


def write_page(reported: Reported, file: Path) -> None:
    """Make the page and write it as a whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    page = make_page(reported)
    with writable(file, "--output FILE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        Run(file.parent, "run", "").write_text(file.name, page)


def make_page(reported: Reported) -> str:
    """The page as text, the same for the same files."""
    pairs, means = find_pairs(reported.paths), reported.means
    charts: list[dict[str, Any]] = []
    body = [
        tag("header", tag("h1", "Mode connectivity"), tag("p", _abstract(pairs, reported))),
        *([_overview(pairs)] if len(pairs) > 1 else []),
        *_replicates(pairs),
        *(section(pair, f"pair{i}", charts) for i, pair in enumerate(pairs, 1)),
        *(mean_section(run, f"mean{i}") for i, run in enumerate(means, 1)),
        *(found_section(run, f"result{i}") for i, run in enumerate(reported.others, 1)),
        *_conventions(pairs, means),
    ]
    here = Path(__file__).parent
    colours = "".join(f".style{i}{{--ink:{colour}}}" for i, (colour, _) in enumerate(STYLES))
    sheet = (here / "page.css").read_text(encoding="utf-8") + colours
    script = (here / "page.js").read_text(encoding="utf-8")
    pictures = "; img-src data:" if any(part.find('src="data:') >= 0 for part in body) else ""
    policy = f"default-src 'none'; style-src {_hash(sheet)}; script-src {_hash(script)}{pictures}"
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head",
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            tag("title", f"Mode connectivity: {_about(pairs, reported)}"),
            tag("style", Markup(sheet)),
        ),
        tag("body", tag("main", *body), embedded(charts, "charts"), tag("script", Markup(script))),
        lang="en",
    )


def _hash(text: str) -> str:
    """What a Content-Security-Policy lets run: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _about(pairs: Sequence[Pair], reported: Reported) -> str:
    """The tasks of the page, each once."""
    tasks = [path.summary["task"] for pair in pairs for path in pair.paths]
    of_paths = [f"{task['architecture']} on {task['dataset']}" for task in tasks]
    return "; ".join(dict.fromkeys([*of_paths, *map(task_of, [*reported.means, *reported.others])]))


def _abstract(pairs: Sequence[Pair], reported: Reported) -> str:
    numbers = ((len(reported.means), "mean"), (len(reported.others), "other result"))
    parts = [*([_counted(pairs)] if pairs else []), *(count(n, what) for n, what in numbers if n)]
    return f"{_about(pairs, reported)}: {'; '.join(parts)}."


def _counted(pairs: Sequence[Pair]) -> str:
    counts = [p.summary["verdict"]["connected"] for pair in pairs for p in pair.paths]
    said = ", ".join(f"{counts.count(k)} {v}" for k, v in VERDICTS.items() if k in counts)
    several = f"{len(pairs)} pairs of endpoints, " if len(pairs) > 1 else ""
    return f"{several}{count(len(counts), 'measured path')}, {said}"


# ------------------------------------------------------------------------------------------------ across pairs


def _overview(pairs: Sequence[Pair]) -> Markup:
    groups = []
    for i, pair in enumerate(pairs, 1):
        link, metrics = tag("a", pair.name, href=f"#pair{i}"), pair.metrics
        rows = [group_head(link, 4)]
        for line, path in zip(pair.lines, pair.paths, strict=True):
            found = [interval(path.summary["barriers"][m][metrics.convention], m, metrics) for m in metrics.main]
            rows.append(row(join([swatch(line), " ", path.title]), *found, badge(path.summary["verdict"]["connected"])))
        groups.append(tag("tbody", *rows))
    of = [dict.fromkeys(_barrier_name(p.metrics.main[k]) for p in pairs) for k in (0, 1)]
    heads = ("Path", *(" or ".join(names) for names in of), "Verdict")
    conventions = " or ".join(dict.fromkeys(p.metrics.convention for p in pairs))
    title = f"Barriers {conventions}, with intervals"
    return tag("section", tag("h2", "Overview"), table(title, heads, groups, "figures"))


def _barrier_name(metric: str) -> str:
    return f"{metric.replace('_', '-').capitalize()} barrier"


def _replicates(pairs: Sequence[Pair]) -> list[Markup]:
    """Means over replicates, where there are any."""
    bodies, shared = [], False
    by_metrics: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        by_metrics.setdefault(tuple(pair.metrics.names), []).append(pair)
    for alike in by_metrics.values():
        try:
            every = _gathered(alike)
        except UserError:  # runs that no one mean would describe
            continue
        several = [group for group in every if group["n"] > 1]
        shared = shared or any(group["shared_endpoints"] for group in several)
        bodies += [_replicate(group, every, alike[0].metrics) for group in several]
    if not bodies:
        return []
    note = "Means ± standard deviations over n replicates, with 95% intervals for the mean (Student’s t)."
    if shared:
        note += " Some replicates share an endpoint, so they are not independent and these intervals are too narrow."
    title = tag("h2", "Barriers over replicates")
    full = table("Means over replicates, in every convention", ("Metric", *CONVENTIONS), bodies, "figures")
    return [tag("section", title, tag("p", note), full)]


def _gathered(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    names = [f"{m}.{c}" for m in pairs[0].metrics.names for c in CONVENTIONS]
    return gather([run for pair in pairs for run in pair.measured], [], [], names)


def _replicate(group: Mapping[str, Any], every: Sequence[Mapping[str, Any]], metrics: Metrics) -> Markup:
    """A group of replicates: its means of every metric in every convention."""
    alike = [{k: v for k, v in g.items() if k not in GATHERED} for g in every if g["path"] == group["path"]]
    settings = tag("small", ", ".join(f"{k}={as_override(group[k])}" for k in varied(alike)))
    rows = [group_head(join([f"{group['path']}, n = {group['n']}", settings]), len(CONVENTIONS) + 1)]
    for metric in metrics.names:
        means = [_mean(group["metrics"][f"{metric}.{c}"], metric, metrics) for c in CONVENTIONS]
        rows.append(row(metrics.heading(metric), *means))
    return tag("tbody", *rows)


def _mean(a: Mapping[str, float], metric: str, metrics: Metrics) -> Markup:
    value, std, low, high = (figure(a[k], metric, metrics) for k in ("mean", "std", "low", "high"))
    return tag("span", value, " ± ", std, tag("small", "[", low, ", ", high, "]"))


def _conventions(pairs: Sequence[Pair], means: Sequence[Found]) -> list[Markup]:
    every = [*(pair.metrics for pair in pairs), *(Metrics.of(run.read("summary.json")) for run in means)]
    if not every:
        return []
    rows = [tag("div", tag("dt", name), tag("dd", DEFINITIONS[name])) for name in CONVENTIONS]
    verdicts = dict.fromkeys(f"{m.convention} on the {m.judged.replace('_', ' ')}" for m in every)
    about = f"Barriers of a metric L along a path. The verdict is that of {' or '.join(verdicts)}."
    return [tag("footer", tag("h2", "Conventions"), tag("p", about), tag("dl", *rows))]
