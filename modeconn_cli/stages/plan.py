"""Which stages a command needs, in order; what each would do; and carrying them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modeconn_cli.errors import UserError
from modeconn_cli.report.tables import barrier_rows, read_path, verdict_sentence
from modeconn_cli.runs import Run
from modeconn_cli.schema import Config, PathOf, check
from modeconn_cli.stages import Stage, execute
from modeconn_cli.stages.context import Context, Reporter
from modeconn_cli.stages.curve import FitCurve
from modeconn_cli.stages.endpoints import Endpoint, ImportedEndpoint, TrainedEndpoint
from modeconn_cli.stages.measure import MeasuredCurve, MeasuredPath, Segment
from modeconn_cli.stages.plot import Plot

SAME = (
    "the same network, so there is no path between them: give two different endpoints.seeds or endpoints.checkpoints."
)


@dataclass
class Plan:
    """Stages in the order they run; ``own`` are the command's, which --force computes again."""

    context: Context
    stages: list[Stage]
    own: list[Stage]

    def rows(self) -> list[dict[str, Any]]:
        """What each stage would do now, and why; for --dry-run."""
        rows = []
        for stage in self.stages:
            run = stage.locate(self._forced(stage))
            steps = 0 if run.status == "cached" else stage.gradient_steps
            rows.append({**_row(stage, run), "gradient_steps": steps})
        return rows

    def execute(self, done: list[dict[str, Any]]) -> dict[str, Any]:
        """Carry it out, and say what there is now: barriers, verdicts, the picture.

        ``done`` is given a row for each stage as it ends.
        """
        with self.context.signals.caught():
            for stage in self.stages:
                done.append(_row(stage, execute(stage, self._forced(stage))))
        return self._findings()

    def _forced(self, stage: Stage) -> bool:
        return self.context.config.runtime.force and stage in self.own

    def _findings(self) -> dict[str, Any]:
        endpoints = [s for s in self.stages if isinstance(s, Endpoint)]
        measured = [read_path(s.result.folder) for s in self.stages if isinstance(s, MeasuredPath)]
        pictures = [s for s in self.stages if isinstance(s, Plot)]
        return {
            "endpoints": [{"name": s.label, "from": s.short_name, **s.metrics()} for s in endpoints],
            "barriers": barrier_rows(measured),
            "verdicts": [{"path": p.title, **p.summary["verdict"], "sentence": verdict_sentence(p)} for p in measured],
            "plot": str(pictures[0].result.folder / "plot.png") if pictures else None,
        }


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
    endpoints = _endpoints(context)
    if command == "train-endpoints":
        return Plan(context, [*endpoints], [*endpoints])
    if len(endpoints) != 2:
        if context.config.endpoints.checkpoints is not None:
            raise UserError(
                f"{command} joins two endpoints, and endpoints.checkpoints names {len(endpoints)}: give two files."
            )
        raise UserError(
            f"{command} joins two endpoints, and {len(endpoints)} are given: use endpoints.seeds=[0,1], or sweep "
            "pairs with --multirun 'endpoints.seeds=[0,1],[2,3]'."
        )
    start, end = endpoints
    if start.identity.digest == end.identity.digest:
        raise UserError(f"both endpoints are {SAME}")
    segment = Segment(context, start, end)
    if command == "interpolate" or (command == "evaluate" and config.interpolation.path is PathOf.segment):
        own: list[Stage] = [segment, Plot(context, [segment])]
        return Plan(context, [*endpoints, *own], own)
    curve = FitCurve(context, start, end)
    curve.check()
    measured = MeasuredCurve(context, curve)
    picture = Plot(context, [segment, measured])
    own = [measured, picture] if command == "evaluate" else [curve, measured, picture]
    plan = Plan(context, [start, end, segment, curve, measured, picture], own)
    _ = [stage.identity for stage in plan.stages]
    return plan


def _endpoints(context: Context) -> list[Endpoint]:
    options, seed = context.config.endpoints, context.config.seed
    if options.checkpoints is not None:
        if options.seeds is not None:
            raise UserError(
                "endpoints.checkpoints and endpoints.seeds are both given: endpoints come from files or from "
                "training; drop one."
            )
        if not options.checkpoints:
            raise UserError("endpoints.checkpoints=[] names no file; give two checkpoints, as [a.pt,b.safetensors].")
        imported = [ImportedEndpoint(context, file) for file in options.checkpoints]
        states = [endpoint.check() for endpoint in imported]
        if len(states) == 2 and all(torch.equal(v, states[1][k]) for k, v in states[0].items()):
            raise UserError(f"{imported[0].file} and {imported[1].file} hold {SAME}")
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
