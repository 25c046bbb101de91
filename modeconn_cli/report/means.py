"""A report's section about the mean of several networks."""

from __future__ import annotations

from modeconn_cli.matching.options import title_of
from modeconn_cli.report.cells import figure, interval
from modeconn_cli.report.gather import run_settings
from modeconn_cli.report.made import commands, configurations, provenance
from modeconn_cli.report.markup import Markup, row, table, tag
from modeconn_cli.results import Metrics
from modeconn_cli.runs.find import Found, endpoints_behind


def mean_section(run: Found, name: str) -> Markup:
    """The mean of several networks, in every way."""
    s = run.read("summary.json")
    read = Metrics.of(s)
    metrics = [m for m in read.names if m in s["metrics"]]
    rows = []
    for one in s["merged"]:
        cells = [c for m in metrics for c in (figure(one[m], m, read), interval(one[f"{m}_above_mean"], m, read))]
        rows.append(row(one["network"], *cells))
    heads = ("Network", *(head for m in metrics for head in (read.heading(m), "above_mean")))
    proof = s["certificate"]
    round_, apart = (100 * s["cycle_error"][k] for k in ("this", "every pair by weight matching"))
    cycles = (
        f" Round three networks {round_:.1f}% of all units do not return to their place; {apart:.1f}% where every pair "
        "is matched by itself."
    )
    note = (
        "above_mean: above the mean of the networks' own. The same functions: outputs of the permuted networks differ "
        f"by {proof['difference']:.0e} of the largest ({proof['dtype']}; {proof['control']:.0e} for a "
        f"broken permutation).{cycles if len(s['networks']) > 2 else ''}"
    )
    behind = [*endpoints_behind(run), run]
    parts = [
        tag("h2", f"{task_of(run)}, the mean of {', '.join(s['networks'])}, aligned by {title_of(s['method'])}"),
        table("Loss and error of the mean", heads, rows, "figures"),
        tag("p", note, class_="note"),
        tag("h3", "How it was made"),
        *commands(behind),
        *provenance(behind, "Runs behind this mean"),
        *configurations([("the mean", run)]),
    ]
    return tag("section", *parts, id=name)


def task_of(run: Found) -> str:
    """As "mlp on digits"."""
    settings = run_settings(run)
    return f"{settings['architecture.name']} on {settings['dataset.name']}"
