"""runs list, show, compare: what is on disk, as tables or JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from modeconn_cli.errors import UserError
from modeconn_cli.front.console import STATUS_STYLE, out
from modeconn_cli.front.terminal import alignment_line, barrier_table, show_found, show_merged
from modeconn_cli.report.gather import REPLICATION, as_override, run_settings, varied
from modeconn_cli.results import Metrics, Result, targets_line
from modeconn_cli.runs.find import Found, Removal, find, find_all
from modeconn_cli.work.command import first_command

CONNECTED = {"yes": "joined", "no": "not joined", "undecided": "undecided"}


def list_runs(root: Path, match: str, as_json: bool) -> None:
    """Every run whose stage, name or digest contains a text."""
    found = [r for r in find_all(root) if match in f"{r.stage}/{r.name}"]
    rows: list[dict[str, Any]] = [
        {
            "stage": r.stage,
            "name": r.name,
            "version": r.version,
            "status": r.status,
            "bytes": r.size(),
            "modified": time.strftime("%Y-%m-%d %H:%M", time.localtime(r.folder.stat().st_mtime)),
            "result": gist(r),
            "directory": str(r.folder),
        }
        for r in found
    ]
    if as_json:
        print(json.dumps({"runs": rows}, indent=2))
        return
    if not rows:
        out.print(
            f"no runs{f' with {match!r} in their name' if match else ''} under {root}/; "
            f"`modeconn {first_command().name}` makes some."
        )
        return
    differing = _differing(found)
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in range(6):
        table.add_column(justify="right" if column == 3 else "left", overflow="fold")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        table.add_row(f"[bold]{stage}[/]")
        for row in (r for r in rows if r["stage"] == stage):
            label, _, digest = row["name"].rpartition("-")
            apart = " ".join(f"{k}={as_override(v)}" for k, v in differing.get(row["directory"], {}).items())
            status = "" if row["status"] == "done" else f"[{STATUS_STYLE.get(row['status'], 'red')}]{row['status']}[/] "
            table.add_row(
                f"  {digest}", label, row["version"], _bytes(row["bytes"]), status + row["result"], f"[dim]{apart}[/]"
            )
    out.print(table)
    out.print(f"{len(rows)} runs, {_bytes(sum(row['bytes'] for row in rows))}")


def show_run(root: Path, wanted: str, as_json: bool) -> None:
    """One run: what it found, where it came from, its files."""
    run = find(root, wanted)
    summary, provenance = run.read("summary.json"), run.read("provenance.json")
    files = {p.name: p.stat().st_size for p in sorted(run.folder.iterdir()) if p.is_file()}
    if as_json:
        content = {
            "directory": str(run.folder),
            "status": run.status,
            "summary": summary,
            "provenance": provenance,
            "files": files,
        }
        print(json.dumps(content, indent=2))
        return
    out.print(f"[bold]{run.stage}[/] {run.name}/{run.version} [{STATUS_STYLE.get(run.status, 'red')}]{run.status}[/]")
    if "barriers" in summary:
        rows: list[dict[str, Any]] = [
            {
                "metric": m,
                "path": summary["path"],
                **{k: summary["columns"][m][k] for k in ("start", "end", "max")},
                **b,
            }
            for m, b in summary["barriers"].items()
        ]
        out.print(barrier_table(rows, Metrics.of(summary)))
    elif summary and not run.kind:
        show_found(Result.read(run.folder).plain(run.name))
    elif "metrics" in summary:
        whose = {"merged": "the mean of the networks:", "aligned": "the second endpoint, permuted:"}
        if run.kind in whose:
            out.print(whose[run.kind])
        for key, value in summary["metrics"].items():
            out.print(f"  {key} {value:.4f}")
        if "merged" in summary:
            show_merged(summary, Metrics.of(summary))
        elif "objective_before" in summary:
            out.print(alignment_line({"name": "the second endpoint", **summary}))
    elif run.kind == "curve":
        for measured in find_all(root):
            if str(run.folder) in measured.read("provenance.json").get("upstream", []):
                out.print(f"  measured by {measured.stage}/{measured.name}/{measured.version}: {gist(measured)}")
    if line := targets_line(summary):
        out.print(line, soft_wrap=True, markup=False)
    for key in ("command", "upstream", "device", "torch", "git", "seconds"):
        if provenance.get(key) not in (None, []):
            value = provenance[key]
            out.print(f"{key}: {' '.join(value) if isinstance(value, list) else value}", soft_wrap=True)
    out.print("files: " + ", ".join(f"{name} ({_bytes(size)})" for name, size in files.items()))


def compare_runs(root: Path, first: str, second: str, as_json: bool) -> None:
    """Settings in which two runs differ, and their results side by side."""
    pair = [find(root, first), find(root, second)]
    settings = [run_settings(r) for r in pair]
    results = [_results(r) for r in pair]
    differ = {k: [s.get(k) for s in settings] for k in varied(settings)}
    both: dict[str, list[float]] = {k: [r[k] for r in results] for k in results[0] if k in results[1]}
    if not both:
        raise UserError(
            f"{pair[0].folder} and {pair[1].folder} have no result in common: compare finished runs of one kind, "
            "two endpoints or two measured paths."
        )
    if as_json:
        print(json.dumps({"runs": [str(r.folder) for r in pair], "settings": differ, "results": both}, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for run in pair:
        table.add_column(f"{run.stage}\n{run.name}/{run.version}", justify="right", overflow="fold")
    table.add_column("difference", justify="right")
    for key, given in differ.items():
        table.add_row(f"[yellow]{key}[/]", *map(as_override, given))
    for key, values in both.items():
        table.add_row(key, *(f"{v:.4f}" for v in values), f"{values[1] - values[0]:+.4f}")
    out.print(table)


def show_removals(going: list[Removal], sizes: dict[Found, int], root: Path) -> None:
    """What `runs gc` would remove, and how much room that makes."""
    if not going:
        out.print(f"nothing under {root}/ can go.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "size", "why"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for removal in going:
        run = removal.run
        table.add_row(f"{run.stage}/{run.name}/{run.version}", _bytes(sizes[run]), removal.why)
    out.print(table)
    out.print(f"{len(going)} runs, {_bytes(sum(sizes.values()))}")


def _differing(found: list[Found]) -> dict[str, dict[str, Any]]:
    """By directory, the settings that tell a run from others of its stage and label."""
    alike: dict[tuple[str, str], list[Found]] = {}
    for run in found:
        alike.setdefault((run.stage, run.name.rpartition("-")[0]), []).append(run)
    apart = {}
    for runs_alike in alike.values():
        settings = [run_settings(r) for r in runs_alike]
        keys = [k for k in varied(settings) if k not in REPLICATION]
        for run, own in zip(runs_alike, settings, strict=True):
            apart[str(run.folder)] = {k: own[k] for k in keys if k in own}
    return apart


def _results(run: Found) -> dict[str, float]:
    summary = run.read("summary.json")
    if "barriers" not in summary:
        metrics: dict[str, float] = summary.get("metrics", {})
        return metrics
    found = {}
    for metric, conventions in summary["barriers"].items():
        found[f"{metric} max"] = summary["columns"][metric]["max"]
        found |= {f"{metric} {name}": interval["value"] for name, interval in conventions.items()}
    return found


def gist(run: Found) -> str:
    """A run's result in a few words."""
    summary = run.read("summary.json")
    metrics = Metrics.of(summary)
    if "verdict" in summary:
        verdict = summary["verdict"]
        barrier = metrics.text(verdict["value"], verdict["metric"])
        return f"{metrics.verdict} barrier {barrier}, {CONNECTED[verdict['connected']]}"
    if summary and not run.kind:
        return ", ".join(metrics.sentence(m, v) for m, v in [*summary.get("metrics", {}).items()][:3])
    if "metrics" in summary:
        found = metrics.sentence(metrics.judged, summary["metrics"][metrics.judged])
        if "merged" in summary:
            return f"mean of {len(summary['networks'])}, {found}"
        if "objective_after" in summary:
            before, after = (f"{summary[k]:.4g}" for k in ("objective_before", "objective_after"))
            return f"{found}, {summary['objective_is']} {before} to {after}"
        return found
    return ""


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
