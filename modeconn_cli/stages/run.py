"""run: a whole experiment over its replicates and pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import PathOf
from modeconn_cli.stages.curve import curve_between
from modeconn_cli.stages.endpoints import Endpoint, endpoints, two_of
from modeconn_cli.stages.evaluate import MeasuredCurve
from modeconn_cli.stages.interpolate import Segment
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import aligned_end
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.options import Pairing
from modeconn_cli.work.stage import Stage

NAME = "run"


@command(
    NAME,
    panel="join",
    help="Run a whole experiment: every stage of one configuration, over its seeds and pairs.",
    more="experiment=NAME takes a preset. pipeline.replicates=\\[0,1,2] are pairs of endpoints of their own; "
    "endpoints.seeds=\\[0,1,2] pipeline.pairs=all joins every pair. What fails does not stop the rest; killed and "
    "started again it goes on.",
    networks=True,
)
def request(context: Context) -> Request:
    config, options = context.config, context.config.pipeline
    own: list[Stage] = []
    for seed in [config.seed] if options.replicates is None else options.replicates:
        here = context.having(seed=seed)
        given = endpoints(here)
        for pair in pairs(given, here):
            start, end = two_of(pair, here, NAME)
            aligned = aligned_end(here, start, end)
            end = aligned or end
            own += [aligned] if aligned else []
            measured: list[MeasuredPath] = []
            if PathOf.segment in options.paths:
                measured.append(Segment(here, start, end))
            if PathOf.curve in options.paths:
                measured.append(MeasuredCurve(here, curve_between(here, start, end)))
            own += [stage for path in measured for stage in (*computed_for(path), path)] + [Plot(here, measured)]
    return Request(own=own, keep_going=True)


def computed_for(path: MeasuredPath) -> list[Stage]:
    """What a path stands on besides endpoints, which --force computes again with it."""
    return [stage for stage in path.upstream() if stage.makes != "endpoint"]


def pairs(given: Sequence[Endpoint], context: Context) -> list[Sequence[Endpoint]]:
    if context.config.pipeline.pairs is Pairing.all:
        return list(itertools.combinations(given, 2))
    if len(given) % 2:
        raise UserError(
            f"run joins endpoints two by two, and {len(given)} are given: give an even number, or "
            "pipeline.pairs=all for every pair."
        )
    return [given[i : i + 2] for i in range(0, len(given), 2)]
