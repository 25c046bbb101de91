"""The measured paths of a report, by the endpoints that they join."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from modeconn_cli.report.charts import DASHES, Line, Quantity
from modeconn_cli.report.gather import REPLICATION, run_settings, varied
from modeconn_cli.report.plots import PathResult, style
from modeconn_cli.report.tables import drawing_order, heading, read_paths
from modeconn_cli.results import Metrics
from modeconn_cli.runs.find import Found, endpoints_behind, endpoints_of, upstream_of


@dataclass(frozen=True)
class Pair:
    """The measured paths between the same two endpoints."""

    name: str
    measured: list[Found]
    paths: list[PathResult]

    @property
    def metrics(self) -> Metrics:
        return self.paths[0].metrics

    @cached_property
    def behind(self) -> list[Found]:
        """Every run that the paths stand on, before what stands on it; the paths themselves last."""
        before = [u for run in self.measured for u in upstream_of(run)]
        every = [u for run in before for u in [*upstream_of(run), run]]
        return list({run.folder: run for run in [*every, *self.measured]}.values())

    @cached_property
    def lines(self) -> list[Line]:
        """One a path, in the colours and strokes of `modeconn plot`; a surface has no points on it."""
        names = self.metrics.names
        return [
            Line(
                path.title,
                i,
                DASHES[style(i)[1]],
                [] if path.is_surface else path.table["t"].tolist(),
                {m: path.table[m].tolist() for m in names},
                {m: path.table[f"{m}_se"].tolist() for m in names},
            )
            for i, path in enumerate(self.paths)
        ]

    @cached_property
    def quantities(self) -> dict[str, Quantity]:
        """Every metric of the paths; losses may start on a log scale."""
        metrics = self.metrics
        objective = metrics.columns[0].name
        return {
            m: Quantity(metrics.heading(m), metrics.column(m).text, m.partition("_")[2] in ("loss", objective))
            for m in metrics.names
        }


def find_pairs(measured: Sequence[Found]) -> list[Pair]:
    """Measured paths by their endpoints, in the order of their names."""
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
    groups = {g for p in pairs for endpoint in endpoints_behind(p.measured[0]) for g in endpoint.groups}
    keys = [k for k in varied(settings) if k.split(".")[0] in groups and k not in REPLICATION]
    named = []
    for pair, own in zip(pairs, settings, strict=True):
        differ = [f"{k}={own.get(k)}" for k in keys]
        digests = "-".join(d[:6] for d in endpoints_of(pair.measured[0]))
        named.append(replace(pair, name=f"{pair.name} ({', '.join([*differ, digests])})"))
    return named
