"""Which stages a command needs, in order; what each would do; and carrying them out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.buffers import norm_layers
from modeconn_cli.report.plots import PathResult
from modeconn_cli.report.tables import barrier_rows, read_path, verdict_sentence
from modeconn_cli.results import SUMMARY, Result, read_summary
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import BatchNorm, Config, Match, Pairing, PathOf, Rebasin, Renormalise, check
from modeconn_cli.stages.curve import FitCurve
from modeconn_cli.stages.endpoints import Endpoint, TrainedEndpoint, recorded_metrics
from modeconn_cli.stages.evaluate import MeasuredCurve
from modeconn_cli.stages.imported import SAME, imported_endpoints
from modeconn_cli.stages.interpolate import Segment
from modeconn_cli.stages.merge import Merged
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import Aligned
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.reporting import Reporter
from modeconn_cli.work.stage import Stage, execute

TOGETHER = (Match.merge_many, Match.c2m3)

S = TypeVar("S", bound=Stage)


@dataclass
class Plan:
    """Stages in the order they run, each once however many need it.

    own: the command's, which --force computes again. keep_going: a stage that fails stops only those that need it.
    """

    context: Context
    stages: list[Stage]
    own: list[Stage]
    keep_going: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """What each stage would do now, and why; for --dry-run."""
        rows = []
        for stage in self.stages:
            run = stage.locate(self._forced(stage))
            steps = 0 if run.status == "cached" else stage.gradient_steps
            rows.append({**_row(stage, run), "gradient_steps": steps})
        return rows

    def execute(self, done: list[dict[str, Any]]) -> None:
        """Carry it out; ``done`` is given a row for each stage as it ends.

        Raises:
            RunFailed, UserError: a stage failed; not where the plan keeps going, which says so in the stage's row.
        """
        lost: dict[str, str] = {}
        with self.context.signals.caught(), closing(self.context.trackers):
            for stage in self.stages:
                missing = next((lost[u.identity.digest] for u in stage.upstream if u.identity.digest in lost), None)
                if missing is not None:
                    self._lose(stage, done, lost, "skipped", f"needs {missing}")
                    continue
                try:
                    done.append(_row(stage, execute(stage, self._forced(stage))))
                except (RunFailed, UserError) as failure:
                    if not self.keep_going:
                        raise
                    self._lose(stage, done, lost, "failed", str(failure))

    def _lose(self, stage: Stage, done: list[dict[str, Any]], lost: dict[str, str], status: str, why: str) -> None:
        lost[stage.identity.digest] = f"{stage.name} {stage.label}"
        done.append({**_row(stage, stage.locate(False)), "status": status, "why": why})
        self.context.reporter.say(f"{status}: {stage.name} {stage.label}: {why}")

    def measured(self) -> list[PathResult]:
        """The measured paths that are finished, with the intervals that each one's request asks for."""
        found = []
        for stage in self.stages:
            run = stage.locate(False)
            if not isinstance(stage, MeasuredPath) or run.status != "cached":
                continue
            path = read_path(run.folder, stage.question)
            if not stage.question.same_intervals(path.summary["intervals"]):
                own = path.summary["intervals"]
                self.context.reporter.say(
                    f"{stage.name} {stage.label} kept no scores, so its intervals are its own (confidence "
                    f"{own['confidence']:g}, {own['resamples']} resamples); --force measures it again"
                )
            found.append(path)
        return found

    def findings(self) -> dict[str, Any]:
        """What finished stages found, read from their directories: endpoints, barriers, verdicts, pictures."""
        finished = {s: run for s in self.stages if (run := s.locate(False)).status == "cached"}
        measured = self.measured()
        pictures = [str(run.folder / "plot.png") for s, run in finished.items() if s.makes == "picture"]
        summaries = (read_summary(run.folder) for run in finished.values() if (run.folder / SUMMARY).exists())
        return {
            "task": next((s["task"] for s in summaries if "columns" in s.get("task", {})), {}),
            "endpoints": [
                {"name": s.label, "from": s.short_name, **recorded_metrics(run.folder)}
                for s, run in finished.items()
                if isinstance(s, Endpoint)
            ],
            "barriers": barrier_rows(measured),
            "aligned": [s.found(run) for s, run in finished.items() if isinstance(s, Aligned)],
            "merged": [s.found(run) for s, run in finished.items() if isinstance(s, Merged)],
            "verdicts": [
                {
                    "path": p.title,
                    "endpoints": p.summary["task"]["endpoints"],
                    **p.summary["verdict"],
                    "confidence": p.summary["intervals"]["confidence"],
                    "sentence": verdict_sentence(p),
                }
                for p in measured
            ],
            "results": [_shown(s, run) for s, run in finished.items() if not s.makes],
            "plot": pictures[0] if pictures else None,
            "plots": pictures,
        }

    def _forced(self, stage: Stage) -> bool:
        return self.context.config.runtime.force and stage in self.own


def _shown(stage: Stage, run: Run) -> dict[str, Any]:
    """What a stage found that is no endpoint, path or picture: its figures, and its tables' columns and rows."""
    return {"stage": stage.name, "directory": str(run.folder), **Result.read(run.folder).plain(stage.label)}


def _row(stage: Stage, run: Run) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "name": stage.label,
        "status": run.status,
        "why": run.why,
        "directory": str(run.folder),
    }


def make_plan(command: str, config: Config, reporter: Reporter) -> Plan:
    """The stages behind a command. Nothing is written; what can be wrong with the request is found here.

    Raises:
        UserError: see the message.
    """
    check(config)
    context = Context(config, reporter)
    _ = context.device, context.parameters  # the device is there, and the network fits the data
    context.settle_threads()
    if command == "run":
        return _pipeline(context)
    endpoints = _endpoints(context)
    if command == "train-endpoints":
        return Plan(context, [*endpoints], [*endpoints])
    if command == "rebasin" and config.rebasin.method is Match.none:
        raise UserError(
            "rebasin=none aligns nothing: choose rebasin=weight, activation, straight_through, sinkhorn, merge_many or "
            "c2m3, or measure the line as it is with modeconn interpolate."
        )
    if command == "rebasin" and config.rebasin.method in TOGETHER:
        return _merge(context, endpoints)
    if command == "rebasin" and len(endpoints) > 2:
        raise UserError(
            f"modeconn rebasin joins two endpoints by rebasin={config.rebasin.method}, and {len(endpoints)} are given: "
            f"use rebasin={' or rebasin='.join(map(str, TOGETHER))} for more."
        )
    start, end = _two(endpoints, context, command)
    if command == "rebasin":
        return _rebasin(context, start, end)
    if command.startswith("connect"):
        return _connection(context, start, end, command.split("+")[1:])
    aligned = _aligned(context, start, end)
    if aligned is not None:
        end = aligned
    segment = Segment(context, start, end)
    if command == "interpolate" or (command == "evaluate" and config.interpolation.path is PathOf.segment):
        own: list[Stage] = [segment, Plot(context, [segment])]
        return _identified(Plan(context, [*endpoints, *([aligned] if aligned else []), *own], own))
    curve = _curve(context, start, end)
    measured = MeasuredCurve(context, curve)
    picture = Plot(context, [segment, measured])
    own = [measured, picture] if command == "evaluate" else [curve, measured, picture]
    before = [*endpoints, *([aligned] if aligned else [])]
    return _identified(Plan(context, [*before, segment, curve, measured, picture], own))


def _pipeline(context: Context) -> Plan:
    """Everything ``run`` asks for, over its replicates and pairs."""
    config, options = context.config, context.config.pipeline
    stages: dict[str, Stage] = {}

    def once(stage: S) -> S:
        return stages.setdefault(stage.identity.digest, stage)  # type: ignore[return-value]

    for seed in [config.seed] if options.replicates is None else options.replicates:
        here = context if seed == config.seed else context.with_(replace(config, seed=seed))
        endpoints = [once(endpoint) for endpoint in _endpoints(here)]
        for pair in _pairs(endpoints, here):
            start, end = _two(pair, here, "run")
            aligned = _aligned(here, start, end)
            if aligned is not None:
                end = once(aligned)
            measured: list[MeasuredPath] = []
            if PathOf.segment in options.paths:
                measured.append(once(Segment(here, start, end)))
            if PathOf.curve in options.paths:
                measured.append(once(MeasuredCurve(here, once(_curve(here, start, end)))))
            once(Plot(here, measured))
    everything = list(stages.values())
    own = [s for s in everything if not isinstance(s, Endpoint)]
    return _identified(Plan(context, everything, own, keep_going=True))


def _pairs(endpoints: Sequence[Endpoint], context: Context) -> list[Sequence[Endpoint]]:
    if context.config.pipeline.pairs is Pairing.all:
        return list(itertools.combinations(endpoints, 2))
    if len(endpoints) % 2:
        raise UserError(
            f"run joins endpoints two by two, and {len(endpoints)} are given: give an even number, or "
            "pipeline.pairs=all for every pair."
        )
    return [endpoints[i : i + 2] for i in range(0, len(endpoints), 2)]


def _aligned(context: Context, start: Endpoint, end: Endpoint) -> Aligned | None:
    """The second endpoint permuted, where the configuration asks for it."""
    if context.config.rebasin.method is Match.none:
        return None
    if context.config.rebasin.method in TOGETHER:
        raise UserError(
            f"rebasin={context.config.rebasin.method} brings any number of networks together, and a path has two ends: "
            "use it with modeconn rebasin, or another method here."
        )
    aligned = Aligned(context, start, end)
    aligned.check()
    return aligned


def _rebasin(context: Context, start: Endpoint, end: Endpoint) -> Plan:
    """The straight line before and after alignment, and after every renormalisation that the network admits."""
    config = context.config
    aligned = Aligned(context, start, end)
    aligned.check()
    if config.interpolation.renormalise is not Renormalise.none:
        context.reporter.say("interpolation.renormalise changes nothing with modeconn rebasin, which measures them all")

    def measured(to: Endpoint, batch_norm: BatchNorm, renormalise: Renormalise) -> Segment:
        options = replace(config.interpolation, batch_norm=batch_norm, renormalise=renormalise)
        rebasin = config.rebasin if to is aligned else Rebasin()
        own = replace(config, interpolation=options, rebasin=rebasin)
        return Segment(context.with_(own), start, to)

    has_norm = bool(norm_layers(context.module()))
    plain = BatchNorm.mean if has_norm else BatchNorm.reestimate
    paths = [measured(end, plain, Renormalise.none), measured(aligned, plain, Renormalise.none)]
    paths += [measured(aligned, BatchNorm.reestimate, Renormalise.none)] if has_norm else []
    paths += [measured(aligned, BatchNorm.reestimate, r) for r in (Renormalise.repair, Renormalise.rescale)]
    own: list[Stage] = [aligned, *paths, Plot(context, paths)]
    return _identified(Plan(context, [start, end, *own], own))


def _merge(context: Context, endpoints: Sequence[Endpoint]) -> Plan:
    """The mean of any number of networks, before and after they are matched."""
    if len(endpoints) < 2:
        raise UserError("there is nothing to merge in one endpoint: give two or more, as endpoints.seeds=[0,1,2].")
    merged = Merged(context, [*endpoints])
    merged.check()
    return _identified(Plan(context, [*endpoints, merged], [merged]))


def _connection(context: Context, start: Endpoint, end: Endpoint, more: Sequence[str]) -> Plan:
    """The straight line; with "aligned" also that to the aligned end, with "curve" a curve between the given ends."""
    stages: list[Stage] = [start, end]
    measured: list[MeasuredPath] = [Segment(context, start, end)]
    if "aligned" in more:
        config = replace(context.config, rebasin=replace(context.config.rebasin, method=Match.weight))
        there = context.with_(config)
        aligned = Aligned(there, start, end)
        aligned.check()
        stages.append(aligned)
        measured.append(Segment(there, start, aligned))
    if "curve" in more:
        curve = _curve(context, start, end)
        stages.append(curve)
        measured.append(MeasuredCurve(context, curve))
    own = [*stages[2:], *measured, Plot(context, measured)]
    return _identified(Plan(context, [start, end, *own], own))


def _curve(context: Context, start: Endpoint, end: Endpoint) -> FitCurve:
    curve = FitCurve(context, start, end)
    curve.check()
    return curve


def _identified(plan: Plan) -> Plan:
    """The plan, once every stage has found the files that identify it."""
    _ = [stage.identity for stage in plan.stages]
    return plan


def _two(endpoints: Sequence[Endpoint], context: Context, command: str) -> tuple[Endpoint, Endpoint]:
    """The two endpoints of a path, which must be two and differ."""
    if len(endpoints) != 2:
        options = context.config.endpoints
        if options.checkpoints is not None or options.references is not None:
            key = "checkpoints" if options.references is None else "from"
            raise UserError(f"{command} joins two endpoints, and endpoints.{key} names {len(endpoints)}: give two.")
        raise UserError(
            f"{command} joins two endpoints, and {len(endpoints)} are given: use endpoints.seeds=[0,1], or sweep "
            "pairs with --multirun 'endpoints.seeds=[0,1],[2,3]'."
        )
    start, end = endpoints
    if start.identity.digest == end.identity.digest:
        raise UserError(f"both endpoints are {SAME}")
    return start, end


def _endpoints(context: Context) -> list[Endpoint]:
    options, seed = context.config.endpoints, context.config.seed
    imported = imported_endpoints(context)
    if imported is not None:
        return [*imported]
    seeds = [2 * seed, 2 * seed + 1] if options.seeds is None else options.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"endpoints.seeds={seeds} names a seed twice, and equal seeds give identical endpoints: give different "
            "ones."
        )
    if not seeds:
        raise UserError("endpoints.seeds=[] names no endpoint; give seeds, as endpoints.seeds=[0,1].")
    trained = [TrainedEndpoint(context, s) for s in seeds]
    trained[0].check()
    return [*trained]
