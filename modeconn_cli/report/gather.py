"""Many runs as one table: what differs between them makes the rows, what is averaged over makes n."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from modeconn_cli.errors import UserError
from modeconn_cli.results import SUMMARY, Metrics
from modeconn_cli.runs.find import Found, endpoints_behind, endpoints_of, how_it_is_not_whole, is_version
from modeconn_cli.settings import NAMED_BY, SHARED, choices, not_identifying

REPLICATION = ("seed", "endpoints.seeds", "curve.seed")
NO_SETTING = ("n", "shared_endpoints", "metrics", "digits", "runs")  # of a row, beside its path
# Alignments and curves are measured along paths, and a mean of networks has a table of its own.
ASIDE = ("curve", "aligned", "merged", "picture")


@dataclass(frozen=True)
class Record:
    """A finished run: what it was asked for, flat (``curve.bends``), and what it found, flat (``test_error.max``).

    title: of the row it belongs to; usual: the results that are gathered where none is named; metrics: how they read.
    """

    run: Found
    title: str
    settings: dict[str, Any]
    results: dict[str, float]
    usual: tuple[str, ...]
    endpoints: tuple[str, ...]
    metrics: Metrics


def record(run: Found) -> Record:
    """Read a finished run."""
    settings = {**run_settings(run), **inputs_of(run)}
    summary = run.read(SUMMARY)
    metrics = Metrics.of(summary)
    if "barriers" not in summary:
        found = dict(summary.get("metrics", {}))
        if run.kind != "endpoint":
            return Record(
                run, str(summary.get("title", run.stage)), settings, found, (*found,), endpoints_of(run), metrics
            )
        name = str(summary.get("seed", summary.get("file")))
        return Record(run, "endpoint", settings, found, (metrics.objective, metrics.judged), (name,), metrics)
    results = {f"{m}.{k}": v for m, column in summary["columns"].items() for k, v in column.items()}
    for metric, conventions in summary["barriers"].items():
        results |= {f"{metric}.{name}": interval["value"] for name, interval in conventions.items()}
    usual = tuple(f"{m}.{metrics.convention}" for m in metrics.main)
    ends = tuple(summary["task"]["endpoints"].split(" and "))
    return Record(run, summary["path"], settings, results, usual, ends, metrics)


def inputs_of(run: Found) -> dict[str, Any]:
    """What a run's inputs hold, by checksum: the data, endpoints that come from files, code of one's own."""
    found: dict[str, Any] = {"dataset.sha256": run.read("provenance.json").get("dataset_sha256", "")[:10]}
    files = []
    for endpoint in endpoints_behind(run):
        identity = endpoint.read("provenance.json").get("identity", {}).get("fields", {})
        files += [identity["file"][:10]] if "file" in identity else []
        code = identity.get("architecture", {}).get("code")
        if code:
            found["architecture.code"] = str(code)[:10]
    if files:
        found["endpoints.files"] = ",".join(files)
    return found


def run_settings(run: Found) -> dict[str, Any]:
    """The settings, flat, that a run's result depends on."""
    groups, aside = run.groups, not_settings()
    try:
        flat = flatten(yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")))
        flat = {k: v for k, v in flat.items() if k.split(".")[0] in groups and k not in aside}
        if flat.get("task.kind") in ("auto", "classify"):  # for those the data say what is learnt
            flat = {k: v for k, v in flat.items() if not k.startswith("task.")}
        chosen = {g: choices(g).get(flat.get(f"{g}.{NAMED_BY[g]}", "")) for g in SHARED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return {}  # of a run that is damaged, which its status says
    # What is not installed here used all that it has.
    used = {g: {f.name for f in fields(cls)} for g, cls in chosen.items() if cls}
    return {k: v for k, v in flat.items() if (name := k.partition("."))[0] not in used or name[2] in used[name[0]]}


def settings_of(content: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a whole configuration, flat, that are also among others."""
    return {k: v for k, v in flatten(content).items() if k in like}


def not_settings() -> set[str]:
    """What identifies no result but names, and where endpoints lie: what those are, :func:`inputs_of` says."""
    return {*(k for k in not_identifying() if not k.endswith(".name")), "endpoints.checkpoints"}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose value is not the same everywhere.

    A setting of a shared group, as of re-basin, that some do not have is one that their choice does not use, and the
    choice says as much.
    """
    keys = dict.fromkeys(k for s in settings for k in s)
    among = {k: [s for s in settings if k in s or k.partition(".")[0] not in SHARED] for k in keys}
    return [k for k in keys if len({str(s.get(k)) for s in among[k]}) > 1]


def as_override(value: Any) -> str:
    """A setting's value as an override gives it."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def count(number: int, what: str) -> str:
    """So many things, in words: "1 path", "2 paths"."""
    return f"{number} {what}" + ("" if number == 1 else "s")


@dataclass(frozen=True)
class Aggregate:
    """Mean, standard deviation over n replicates (n - 1 below), and an interval for the mean; nan where n is 1."""

    mean: float
    std: float
    n: int
    low: float
    high: float


def aggregate(values: Sequence[float], interval: str, confidence: float) -> Aggregate:
    """Over replicates.

    Args:
        interval: "t" (Student's, for means of about normal values) or "bootstrap" (percentile, 10000 resamples).
    """
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Aggregate(mean, float("nan"), n, float("nan"), float("nan"))
    std = float(x.std(ddof=1))
    if interval == "t":
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / n**0.5
        return Aggregate(mean, std, n, mean - half, mean + half)
    means = np.random.default_rng(0).choice(x, (10_000, n)).mean(1)
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Aggregate(mean, std, n, float(low), float(high))


def choose(root: Path, patterns: Sequence[str], say: Callable[[str], None] = lambda _: None) -> list[Found]:
    """Finished runs under directories, pictures aside; of several versions of a result, the newest.

    ``say`` is told of those that are left out because they are damaged.

    Raises:
        UserError: a pattern that nothing fits.
    """
    newest: dict[Path, Found] = {}
    for pattern in patterns or [str(root)]:
        base = Path(pattern)
        places = [base] if base.exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        runs = [r for place in places for r in whole(_inside(place), say)]
        if not runs:
            raise UserError(
                f"{pattern!r} holds no finished run: give an output directory, or a pattern of run directories."
            )
        for run in runs:
            place = run.folder.parent.resolve()
            if place not in newest or run.number > newest[place].number:
                newest[place] = run
    return list(newest.values())


def _inside(place: Path) -> list[Found]:
    """The finished runs at or below a directory, damaged ones among them."""
    folders = [p.parent for p in sorted(place.rglob("DONE")) if is_version(p.parent)]
    return [f for f in map(Found, folders) if f.kind != "picture"]


def _try_summary(run: Found) -> None:
    """Look up what tables and pages take from a measured path's summary; of runs without sums it may be anything."""
    if run.kind != "path":
        return
    summary = run.read(SUMMARY)
    metrics = Metrics.of(summary)
    for name in metrics.names:
        float(summary["columns"][name]["max"]) + float(summary["barriers"][name][metrics.convention]["value"])
    str(summary["path"] + summary["task"]["endpoints"] + summary["verdict"]["connected"])


def whole(runs: Iterable[Found], say: Callable[[str], None] = lambda _: None) -> list[Found]:
    """The finished runs whose files are as they were finished and can be read; ``say`` is told of damaged ones."""
    found = []
    for run in runs:
        damage = run.damage
        if damage:
            if damage != "unfinished":
                say(f"left out: {how_it_is_not_whole(run)}")
            continue
        try:
            _try_summary(run)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            say(f"left out: {run.folder} is damaged: summary.json lacks {error}. Run its command again with --force.")
            continue
        found.append(run)
    return found


def gather(
    runs: Sequence[Found],
    by: Sequence[str],
    over: Sequence[str],
    metrics: Sequence[str],
    interval: str = "t",
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """One row a group of runs: its settings, and the aggregate of every metric over what is left to vary.

    Args:
        by: settings that make groups, as ``architecture`` (all of it) or ``curve.bends``; none: all that differ.
        over: settings averaged over; seeds always are.
        metrics: names as in Record.results; none: barriers of measured paths, or errors of endpoints.

    Raises:
        UserError: runs of one group differ in a setting that is in neither list, or a name is unknown.
    """
    records = [record(r) for r in runs if r.kind not in ASIDE]
    # Where there is more than endpoints: they are behind it.
    records = [r for r in records if r.run.kind != "endpoint"] or records
    records = _having(records, metrics)
    keys = dict.fromkeys(k for r in records for k in r.settings)
    for name in (*by, *over):
        if not any(_covers(name, k) for k in keys) and name != "seed":
            raise UserError(
                f"no setting {name!r} in these runs; name a group as architecture, or a key as curve.bends."
            )
    averaged = (*REPLICATION, *over)
    grouping = _grouping(records, [*keys], by, averaged)
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        groups.setdefault((r.title, *(str(r.settings.get(k, "")) for k in grouping)), []).append(r)
    rows = []
    for key, members in groups.items():
        _refuse_mixed(members, by, averaged)
        names = [name for m in members for name in m.endpoints]
        wanted = metrics or [m for m in members[0].usual if all(m in r.results for r in members)]
        found = {m: aggregate([r.results[m] for r in members], interval, confidence) for m in wanted}
        rows.append(
            {
                "path": key[0],
                **{k: members[0].settings.get(k, "") for k in grouping},
                "n": len(members),
                "shared_endpoints": len(set(names)) < len(names),
                "metrics": {m: a.__dict__ for m, a in found.items()},
                "digits": {m: members[0].metrics.column(m).digits for m in found},
                "runs": [str(m.run.folder) for m in members],
            }
        )
    return rows


def _having(records: Sequence[Record], metrics: Sequence[str]) -> list[Record]:
    """The records that have these metrics, or any at all where none is named.

    Raises:
        UserError: there are none.
    """
    if not any(r.results for r in records):
        raise UserError("nothing to gather: no measured path and no endpoint is finished there.")
    known = dict.fromkeys(k for r in records for k in r.results)
    for metric in metrics:
        if metric not in known:
            raise UserError(f"no metric {metric!r} in these runs; there are {', '.join(known)}.")
    found = [r for r in records if r.results and r.results.keys() >= {*metrics}]
    if not found:
        raise UserError(f"no run has all of {', '.join(metrics)}: they are results of different kinds.")
    return found


def _grouping(records: Sequence[Record], keys: Sequence[str], by: Sequence[str], averaged: Sequence[str]) -> list[str]:
    """The settings that make groups: those asked for, or else all that differ within a stage and are not averaged."""
    by_stage = [[r.settings for r in records if r.run.stage == stage] for stage in {r.run.stage for r in records}]
    everywhere = {k for settings in by_stage for k in varied(settings)}
    differing = [k for k in keys if k in everywhere and not any(_covers(o, k) for o in averaged)]
    grouping = [k for k in differing if not by or any(_covers(b, k) for b in by)]
    return _told_by_name(grouping, records)


def _refuse_mixed(members: Sequence[Record], by: Sequence[str], averaged: Sequence[str]) -> None:
    """Raise UserError for a group whose runs differ in a setting that nobody said to average over."""
    mixed = [k for k in varied([m.settings for m in members]) if not any(_covers(o, k) for o in averaged)]
    mixed = [k for k in mixed if not by or not any(_covers(b, k) for b in by)]
    if mixed:
        values = sorted({str(m.settings.get(mixed[0])) for m in members})
        raise UserError(
            f"these runs differ in {mixed[0]} ({', '.join(values)}), and a mean would mix them: add "
            f"--by {mixed[0]}, or --over {mixed[0]} to average over it."
        )


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.") or (name == "seed" and key in REPLICATION)


def _told_by_name(grouping: list[str], records: Sequence[Record]) -> list[str]:
    """Without the details of a data set or an architecture where its name alone tells the same groups apart."""
    for group in ("dataset", "architecture"):
        details = [k for k in grouping if k.startswith(f"{group}.") and k != f"{group}.name"]
        by_name: dict[str, set[str]] = {}
        for r in records:
            by_name.setdefault(str(r.settings.get(f"{group}.name")), set()).add(
                str([r.settings.get(k) for k in details])
            )
        if details and f"{group}.name" in grouping and all(len(v) == 1 for v in by_name.values()):
            grouping = [k for k in grouping if k not in details]
    return grouping
