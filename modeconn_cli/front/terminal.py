"""What a person reads when work is done: result tables on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from modeconn_cli.evaluation.barriers import CONVENTIONS
from modeconn_cli.front.console import STATUS_STYLE, Sheet, joined, out, styled
from modeconn_cli.report.formats import as_table, by_kind
from modeconn_cli.report.gather import count
from modeconn_cli.results import Metrics
from modeconn_cli.runs.find import Found


def show_plan(rows: Sequence[dict[str, Any]], doing: Sequence[str], parameters: int) -> None:
    """The stages of a --dry-run, and what each would be doing."""
    table = Sheet(title="Plan")
    for name in ("stage", "status", "why", "gradient steps"):
        table.add_column(name, justify="right" if name == "gradient steps" else "left")
    for what, row in zip(doing, rows, strict=True):
        table.add_row(
            what,
            styled(STATUS_STYLE[row["status"]], row["status"]),
            row["why"],
            f"{row['gradient_steps']:,}",
        )
    out.print(table)
    out.print()
    for row in rows:
        out.print(row["directory"], soft_wrap=True)
    steps = sum(r["gradient_steps"] for r in rows)
    out.print(f"\n{parameters:,} parameters; {steps:,} gradient steps at most; nothing was written.")


def show_result(result: dict[str, Any]) -> None:
    """Endpoints, barriers with their intervals, verdicts, and where everything is."""
    metrics = Metrics.of(result)
    if result["endpoints"]:
        out.print(endpoint_table(result["endpoints"], metrics))
    for merged in result.get("merged", []):
        show_merged(merged, metrics)
    for aligned in result.get("aligned", []):
        out.print(f"\n{alignment_line(aligned)}")
    if result["barriers"]:
        out.print()
        out.print(barrier_table(result["barriers"], metrics))
        out.print()
        for v in result["verdicts"]:
            colour = {"yes": "green", "no": "red", "undecided": "yellow"}[v["connected"]]
            out.print(styled(colour, v["sentence"]))
    whole = [found for found in result.get("results", []) if not found["part"]]
    for found in whole:
        show_found(found)
    out.print()
    alone = not (result["barriers"] or result.get("merged") or result.get("results"))
    shown = {found["directory"] for found in whole}
    for row in result["stages"]:
        kind = Found(Path(row["directory"])).kind
        if not kind and shown and row["directory"] not in shown:
            continue
        if kind == "path":
            out.print(f"{row['directory']}/path.csv", soft_wrap=True)
        elif kind in ("aligned", "merged", ""):
            out.print(f"{row['directory']}/", soft_wrap=True)
        elif kind == "endpoint" and alone:
            out.print(f"{row['directory']}/checkpoint.safetensors", soft_wrap=True)
    if result["plot"]:
        out.print(f"picture: {result['plot']}", soft_wrap=True)


def show_remark(remark: str) -> None:
    """What makes a result say less than it seems to."""
    out.print(styled("yellow", remark), soft_wrap=True)


def endpoint_table(endpoints: Sequence[Mapping[str, Any]], metrics: Metrics) -> Sheet:
    """A row an endpoint: every column of the task on both splits, as it was measured when the endpoint was made."""
    table = Sheet(title="Endpoints")
    names = [m for m in metrics.names if m in endpoints[0]]
    table.add_column("endpoint")
    for name in names:
        table.add_column(_headed(name, metrics), justify="right")
    for e in endpoints:
        name = e["name"] if e["from"].startswith("seed ") else e["from"]  # all else has a name that somebody gave it
        table.add_row(name, *(metrics.text(e[m], m) for m in names))
    return table


def _headed(metric: str, metrics: Metrics) -> str:
    """As "test error %"."""
    return f"{metric.replace('_', ' ')} {metrics.column(metric).unit}".rstrip()


def show_found(found: Mapping[str, Any]) -> None:
    """What a stage found that has no table of its own here: its figures and its tables, as they say they read."""
    metrics = Metrics.of({"metric_columns": found["columns"]})
    out.print()
    out.print(styled("bold", found["title"] or found["name"]))
    for name, value in found["metrics"].items():
        out.print(f"  {metrics.column(name).heading} {metrics.text(value, name)}")
    for content in found["tables"]:
        columns = Metrics.of({"metric_columns": content["columns"]})
        table = Sheet(title=content["title"])
        names = [c["name"] for c in content["columns"]]
        for name in names:
            table.add_column(columns.column(name).heading, justify="right")
        for line in content["rows"][:MOST_ROWS]:
            table.add_row(*(columns.text(line[n], n) for n in names))
        out.print(table)
        if len(content["rows"]) > MOST_ROWS:
            out.print(styled("dim", f"the first {MOST_ROWS} of {len(content['rows'])} rows"))


MOST_ROWS = 20


def show_merged(merged: Mapping[str, Any], metrics: Metrics) -> None:
    """The mean of several networks in every way, the certificate, and what goes wrong round three of them."""
    out.print()
    out.print(merge_table(merged, metrics))
    out.print(f"\n{certificate_line(merged)}")
    cycles = merged["cycle_error"]
    if len(merged["networks"]) > 2:
        out.print(
            f"\nRound three networks, {100 * cycles['this']:.1f}% of all units do not return to their place; "
            f"{100 * cycles['every pair by weight matching']:.1f}% where every pair is matched by itself."
        )


def alignment_line(aligned: dict[str, Any]) -> str:
    """How a network was permuted, what that was worth, and the certificate."""
    moved, units = (sum(g[k] for g in aligned["groups"]) for k in ("moved", "size"))
    return (
        f"{aligned['name']} permuted ({aligned['method']}): {moved} of {units} units moved, {aligned['objective_is']} "
        f"{aligned['objective_before']:.4f} before, {aligned['objective_after']:.4f} after. {certificate_line(aligned)}"
    )


def certificate_line(found: Mapping[str, Any]) -> str:
    """That permuted networks are the same functions."""
    proof = found["certificate"]
    return (
        f"The same function: on {proof['examples']} inputs outputs differ by {proof['difference']:.0e} of the largest "
        f"({proof['dtype']}; {proof['control']:.0e} for a broken permutation)."
    )


def merge_table(merged: Mapping[str, Any], metrics: Metrics) -> Sheet:
    """The objective and the verdict's metric of a mean of networks, and how far they are above the networks' own."""
    table = Sheet(
        title=f"The mean of {len(merged['networks'])} networks ({merged['method']}), with bootstrap intervals",
    )
    columns = (metrics.objective, metrics.judged)  # the others are in merge.csv
    table.add_column("network")
    for name in columns:
        table.add_column(_headed(name, metrics), justify="right")
        table.add_column("above_mean", justify="right")
    for row in merged["merged"]:
        cells: list[str | Text] = []
        for name in columns:
            cells += [metrics.text(row[name], name), _interval(row[f"{name}_above_mean"], name, metrics)]
        table.add_row(row["network"], *cells)
    return table


def barrier_table(rows: Sequence[dict[str, Any]], metrics: Metrics) -> Sheet:
    """A column a path; for each metric its ends, its highest value, and the barrier by every convention."""
    titles = list(dict.fromkeys(r["path"] for r in rows))
    by_place = {(r["metric"], r["path"]): r for r in rows}
    decay = " plus the weight-decay term" if any(r["weight_decay"] for r in rows) else ""
    table = Sheet(
        title=f"Barriers, with bootstrap intervals (loss is {metrics.columns[0].name}{decay})",
        collapse_padding=True,
        padding=(0, 2),
    )
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    for metric in dict.fromkeys(r["metric"] for r in rows):
        here = [by_place[metric, title] for title in titles]
        read = metrics.column(metric).text
        table.add_row(styled("bold", metrics.label(metric)))
        table.add_row("  ends", *(f"{read(r['start'])}, {read(r['end'])}" for r in here))
        table.add_row("  maximum", *(read(r["max"]) for r in here))
        for name in CONVENTIONS:
            table.add_row(f"  {name}", *(_interval(r.get(name), metric, metrics) for r in here))
    return table


def show_sweep(jobs: Sequence[dict[str, Any]], gathered: Sequence[dict[str, Any]]) -> None:
    """A few lines a job of a --multirun, and means over its seeds."""
    given = [job.get("overrides", []) for job in jobs]
    common = set.intersection(*map(set, given)) if len(given) > 1 else set()
    table = _paths_table("Sweep", "overrides", jobs)
    words = [" ".join(o for o in each if o not in common) for each in given]
    for job, what in zip(jobs, words, strict=True):
        if "error" in job:
            table.add_row(what, styled("red", "failed"))  # why is on stderr, too long for a cell
        for row in _path_rows(job):
            table.add_row(what, *row)
            what = ""
        if "barriers" in job and not job["barriers"] and not job["merged"]:
            for e in job["endpoints"]:
                metrics = Metrics.of(job)
                table.add_row(what, e["name"], "", "", metrics.sentence(metrics.judged, e[metrics.judged]))
                what = ""
    if table.row_count:
        out.print(table)
    for job, what in zip(jobs, words, strict=True):
        for merged in job.get("merged", []):
            out.print(f"\n{what}", style="bold")
            show_merged(merged, Metrics.of(job))
            runs = [s["directory"] for s in job["stages"]]
            out.print(next(f"{d}/" for d in runs if Found(Path(d)).kind == "merged"), soft_wrap=True)
    _show_means(gathered)
    for picture in [picture for job in jobs for picture in job.get("plots", [])]:
        out.print(f"picture: {picture}", soft_wrap=True)


def show_run(result: dict[str, Any], gathered: Sequence[dict[str, Any]]) -> None:
    """What `modeconn run` did: every pair's barriers, means over pairs where there are several, and what was lost."""
    table = _paths_table("Paths", "endpoints", [result])
    shown = ""
    for pair, row in zip(result["verdicts"], _path_rows(result), strict=True):
        table.add_row("" if pair["endpoints"] == shown else pair["endpoints"], *row)
        shown = pair["endpoints"]
    if result["verdicts"]:
        out.print(table)
    _show_means(gathered)
    for picture in result["plots"]:
        out.print(f"picture: {picture}", soft_wrap=True)
    lost = [row for row in result["stages"] if row["status"] in ("failed", "skipped")]
    if lost:
        table = Sheet(title="Not done")
        for name in ("stage", "status", "why", "see"):
            table.add_column(name, overflow="fold")
        for row in lost:
            see = f"{row['directory']}/log.txt" if row["status"] == "failed" else ""
            table.add_row(f"{row['stage']} {row['name']}", styled("red", row["status"]), row["why"], see)
        out.print()
        out.print(table)


def _show_means(gathered: Sequence[dict[str, Any]]) -> None:
    several = [row for row in gathered if row["n"] > 1]
    if several:
        out.print()
        show_gathered(several, "t", 0.95)
        if len(several) < len(gathered):
            said = f"not shown: {len(gathered) - len(several)} of one run each (modeconn gather has them)"
            out.print(styled("dim", said))


def show_gathered(rows: Sequence[dict[str, Any]], interval: str, confidence: float) -> None:
    """Groups of runs with means over them."""
    for number, kind in enumerate(by_kind(rows)):
        if number:
            out.print()
        heads, cells = as_table(kind)
        table = Sheet()
        for head in heads:
            table.add_column(head, justify="right" if head in ("n", "std", "interval") or "." in head else "left")
        for line in cells:
            table.add_row(*line)
        out.print(table)
    how = {"t": "Student's t", "bootstrap": "bootstrap over the runs"}[interval]
    out.print(styled("dim", f"mean, std and {100 * confidence:g}% interval ({how}) over n runs"))
    if any(row["shared_endpoints"] for row in rows):
        said = "some runs share an endpoint, so they are not independent and intervals are too narrow"
        out.print(styled("yellow", said))


def show_symmetries(found: dict[str, Any]) -> None:
    """The permutation groups of an architecture."""
    table = Sheet(title="Permutation groups")
    table.add_column("size", justify="right")
    table.add_column("how many", justify="right")
    table.add_column("runs along", overflow="fold")
    alike = Counter((g["size"], tuple(g["along"])) for g in found["groups"])
    for (size, along), times in alike.items():
        table.add_row(str(size), str(times), _first(along))
    out.print(table)
    out.print(
        f"\n{count(len(found['groups']), 'group')}, 10^{found['log10_symmetries']:.0f} networks of "
        f"{found['parameters']:,} parameters compute the same function. In place: "
        f"{', '.join(found['in_place']) or 'nothing'}."
    )
    for name, held in found["pinned_by"].items():
        out.print(styled("yellow", f"{name} needs an order or is not known, and holds in place {_first(held)}"))


def _first(places: Sequence[str], most: int = 6) -> str:
    more = len(places) - most
    return ", ".join(places[:most]) + (f" and {more} more" if more > 0 else "")


def show_tables(tables: Sequence[Any]) -> None:
    """The published tables that `modeconn reproduce` knows."""
    table = Sheet(title="Published tables")
    for name in ("table", "what", "scales", "runs now", "needs first"):
        table.add_column(name, overflow="fold")
    for t in tables:
        table.add_row(t.name, t.content["title"], ", ".join(t.scales), ", ".join(t.landed), ", ".join(t.missing))
    out.print(table)


def show_reproduction(
    content: dict[str, Any], scale: str, differs: dict[str, list[str]], cells: Sequence[dict[str, Any]]
) -> None:
    """Ours beside the published figures, under a heading that says how far this is a reproduction."""
    out.print(styled("bold", content["title"]))
    if differs:
        said = f"scale {scale}: not a reproduction. What differs from the paper's own recipe:"
        out.print(styled("yellow", said))
        for row, changes in differs.items():
            out.print(f"  {row}: {', '.join(changes)}", soft_wrap=True)
    else:
        out.print(f"scale {scale}: the paper's own data and recipe")
    for note in content.get("notes", []):
        out.print(styled("dim", f"note: {note}"))
    if not cells:
        return
    out.print()
    table = Sheet()
    for name in ("published row", "method", "metric", "", "ours", "n", "published", "difference", "source"):
        table.add_column(name, justify="right" if name in ("ours", "n", "published", "difference") else "left")
    shown = ""
    for c in cells:
        row = f"{c['dataset']} {c['architecture']}"
        std = f" ± {c['std']:.2g}" if c["std"] is not None else ""
        figure = "" if c["ours"] is None else f"{c['ours']:.4g}{std}"
        ours = styled("dim", f"needs {c['needs']}") if c["needs"] else figure
        spread = f" ± {c['spread']:g}" if c["spread"] is not None else ""
        difference = "" if c["difference"] is None else f"{c['difference']:+.3g}"
        source = joined(c["source"], *([] if c["verified"] else [styled("yellow", " (unverified)")]))
        table.add_row(
            row if row != shown else "",
            c["method"],
            c["metric"],
            c["statistic"],
            ours,
            str(c["n"] or ""),
            "" if c["published"] is None else f"{c['published']:g}{spread}",
            difference,
            source,
        )
        shown = row
    out.print(table)


def _paths_table(title: str, first: str, jobs: Sequence[Mapping[str, Any]]) -> Sheet:
    """An empty table of the barriers of jobs' paths, in their tasks' words."""
    table = Sheet(title=title)
    main = [Metrics.of(job).main for job in jobs if job.get("verdicts")] or [Metrics.of({}).main]
    barriers = [" or ".join(dict.fromkeys(f"{m[k].replace('_', '-')} barrier" for m in main)) for k in (0, 1)]
    for name in (first, "path", *barriers, "connected"):
        table.add_column(name, justify="right" if name in barriers else "left", overflow="fold")
    return table


def _path_rows(job: dict[str, Any]) -> list[tuple[str, Text, Text, str]]:
    """Path, both barriers by the verdict's convention, and verdict, in the order of the job's verdicts."""
    by_place = {(r["endpoints"], r["path"], r["metric"]): r for r in job.get("barriers", [])}
    metrics = Metrics.of(job)
    rows = []
    for v in job.get("verdicts", []):
        found = (by_place[v["endpoints"], v["path"], m][v["convention"]] for m in metrics.main)
        first, second = (_interval(f, m, metrics) for f, m in zip(found, metrics.main, strict=True))
        rows.append((v["path"], first, second, v["connected"]))
    return rows


def _interval(value: dict[str, float] | None, metric: str, metrics: Metrics) -> Text:
    if value is None:
        return Text("–")
    middle, low, high = (metrics.text(value[k], metric) for k in ("value", "low", "high"))
    return joined(f"{middle} ", styled("dim", f"[{low}, {high}]"))
