"""runs list, show, compare: what is on disk, as tables or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError
from modeconn_cli.front.console import STATUS_STYLE, Sheet, joined, out, styled
from modeconn_cli.front.terminal import alignment_line, barrier_table, show_found, show_merged
from modeconn_cli.report.gather import REPLICATION, as_override, inputs_of, run_settings, settings_of, varied
from modeconn_cli.results import Metrics, Result, targets_line
from modeconn_cli.runs.find import Found, Removal, find, find_all, require_undamaged
from modeconn_cli.settings import Config, plain
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
            "result": shortly(r),
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
    table = Sheet(show_header=False)
    for column in range(6):
        table.add_column(justify="right" if column == 3 else "left")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        table.add_row(styled("bold", stage))
        for row in (r for r in rows if r["stage"] == stage):
            label, _, digest = row["name"].rpartition("-")
            apart = " ".join(f"{k}={as_override(v)}" for k, v in differing.get(row["directory"], {}).items())
            result = joined(row["result"])
            if row["status"] != "done":
                result = joined(styled(STATUS_STYLE.get(row["status"], "red"), row["status"]), " ", result)
            table.add_row(f"  {digest}", label, row["version"], _bytes(row["bytes"]), result, styled("dim", apart))
    out.print(table)
    out.print(f"{len(rows)} runs, {_bytes(sum(row['bytes'] for row in rows))}")


def show_run(root: Path, wanted: str, as_json: bool) -> None:
    """One run: what it found, where it came from, its files."""
    run = find(root, wanted)
    summary, provenance, status = run.read("summary.json"), run.read("provenance.json"), run.damage or "done"
    files = {p.name: p.stat().st_size for p in sorted(run.folder.iterdir()) if p.is_file()}
    if as_json:
        content = {
            "directory": str(run.folder),
            "status": status,
            "summary": summary,
            "provenance": provenance,
            "files": files,
        }
        print(json.dumps(content, indent=2))
        return
    shown = styled(STATUS_STYLE.get(status, "red"), status)
    out.print(joined(styled("bold", run.stage), f" {run.name}/{run.version} ", shown))
    for key, value in off_default(run).items():
        out.print(joined("  ", styled("yellow", key), f" {as_override(value)}"))
    try:
        _show_results(root, run, summary)
    except UNREADABLE:
        out.print("its results cannot be read.")
    for key in ("command", "upstream", "device", "torch", "git", "seconds"):
        if provenance.get(key) not in (None, []):
            value = provenance[key]
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            out.print(f"{key}: {text}", soft_wrap=True)
    out.print("files: " + ", ".join(f"{name} ({_bytes(size)})" for name, size in files.items()))


UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OSError,
)  # what a damaged file makes of reading


def off_default(run: Found) -> dict[str, Any]:
    """The settings of a run that are not what they are where nobody asks for anything else."""
    own = run_settings(run)
    usual = settings_of(plain(Config()), own)
    return {k: v for k, v in own.items() if k in usual and usual[k] != v}


def _show_results(root: Path, run: Found, summary: dict[str, Any]) -> None:
    """What it found, as far as its kind has words for it."""
    if "barriers" in summary:
        rows: list[dict[str, Any]] = [
            {
                "metric": m,
                "path": summary["path"],
                "weight_decay": summary["weight_decay"],
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
            if run.folder in measured.upstream:
                out.print(f"  measured by {measured.stage}/{measured.name}/{measured.version}: {shortly(measured)}")
    if line := targets_line(summary):
        out.print(line, soft_wrap=True)


def compare_runs(root: Path, first: str, second: str, as_json: bool) -> None:
    """Settings in which two runs differ, and their results side by side."""
    pair = [find(root, first), find(root, second)]
    settings = [{**run_settings(r), **inputs_of(r), **made_with(r)} for r in pair]
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
    table = Sheet("")
    for run in pair:
        table.add_column(f"{run.stage}\n{run.name}/{run.version}", justify="right")
    table.add_column("difference", justify="right")
    alone = only_one_uses(settings)
    for key, given in differ.items():
        if key in alone:
            continue
        table.add_row(styled("yellow", key), *map(as_override, given))
    same = [key for key, values in both.items() if values[0] == values[1]]
    for key, values in sorted(both.items(), key=lambda kv: kv[0] in same):
        table.add_row(key, *(f"{v:.4f}" for v in values), f"{values[1] - values[0]:+.4f}")
    out.print(table)
    for number, run in enumerate(pair):
        own = [k for k, whose in alone.items() if whose == number]
        if own:
            off, groups = off_default(run), dict.fromkeys(k.partition(".")[0] for k in own)
            told = [f"{k}={as_override(off[k])}" for k in own if k in off]
            out.print(
                f"only {run.stage}/{run.name} has settings of {', '.join(groups)}: {', '.join(told) or 'the defaults'}",
                soft_wrap=True,
            )


def only_one_uses(settings: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The keys in groups of which only one of two runs has settings, and which of the two that is."""
    groups = [_groups(own) for own in settings]
    return {k: i for i, own in enumerate(settings) for k in own if _groups([k]) & (groups[i] - groups[1 - i])}


def _groups(keys: Iterable[str]) -> set[str]:
    """The groups that settings' keys belong to."""
    return {k.partition(".")[0] for k in keys}


def show_removals(going: list[Removal], sizes: dict[Found, int], root: Path) -> None:
    """What `runs gc` would remove, and how much room that makes."""
    if not going:
        out.print(f"nothing under {root}/ can go.")
        return
    table = Sheet()
    for column in ("run", "size", "why"):
        table.add_column(column, justify="right" if column == "size" else "left")
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
        everyones = set.intersection(*(_groups(own) for own in settings))
        for run, own in zip(runs_alike, settings, strict=True):
            mine = [k for k in keys if k in own]
            if not _groups(mine) <= everyones:  # of a group that others do not use, what is not usual says enough
                off = off_default(run)
                mine = [k for k in mine if k in off or _groups([k]) <= everyones]
            apart[str(run.folder)] = {k: own[k] for k in mine}
    return apart


def _results(run: Found) -> dict[str, float]:
    summary = require_undamaged(run).read("summary.json")
    if "barriers" not in summary:
        metrics: dict[str, float] = summary.get("metrics", {})
        return metrics
    found = {}
    for metric, conventions in summary["barriers"].items():
        found[f"{metric} max"] = summary["columns"][metric]["max"]
        found |= {f"{metric} {name}": interval["value"] for name, interval in conventions.items()}
    return found


def made_with(run: Found) -> dict[str, Any]:
    """Versions and machine, which may be why results differ."""
    recorded = run.read("provenance.json")
    return {k: recorded[k] for k in ("modeconn", "torch", "device") if k in recorded}


def shortly(run: Found) -> str:
    """:func:`gist`; empty for a run whose files say something else than they should."""
    try:
        return gist(run)
    except UNREADABLE:
        return ""


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
        if "file" in summary:
            return f"{summary['name']}: {found}"
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
