"""connect: whether two given networks are joined, by the line, after alignment, or by a curve."""

from __future__ import annotations

from modeconn_cli.settings import rechosen
from modeconn_cli.stages.curve import curve_between
from modeconn_cli.stages.endpoints import Endpoint, endpoints, two_of
from modeconn_cli.stages.evaluate import MeasuredCurve
from modeconn_cli.stages.interpolate import Segment
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import aligned_end
from modeconn_cli.training.loop import steps_per_epoch
from modeconn_cli.training.recipe import Training
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.stage import Stage

NAME = "connect"
STEPS = 2000  # gradient steps of a curve; more are an option away


@command(
    NAME,
    panel="join",
    help="Are these two networks connected? By the straight line, or after alignment, or else by a curve.",
    listed=False,
)
def request(context: Context, aligned: bool = False, curve: bool = False) -> Request:
    """The paths that :func:`paths_between` measures, and their picture; its own are those of what is asked for last."""
    start, end = two_of(endpoints(context), context, NAME)
    made, measured = paths_between(context, start, end, "weight" if aligned else None, curve)
    before: set[str] = set()
    if aligned or curve:  # what an earlier request has made, which is not made again for this one
        stages, paths = paths_between(context, start, end, "weight" if aligned and curve else None, False)
        before = {s.identity.digest for s in [*stages, *paths]}
    every = [*made, *measured]
    own = [s for s in every if s.identity.digest not in before]
    beside = [start, end, *(s for s in every if s.identity.digest in before)]
    return Request(own=[*own, Plot(context, measured)], beside=beside)


def paths_between(
    context: Context, start: Endpoint, end: Endpoint, aligned: str | None, curve: bool
) -> tuple[list[Stage], list[MeasuredPath]]:
    """What has to be made, and the paths: the straight line; ``aligned``: also that to the end aligned by this method;
    ``curve``: also a curve between the given ends.
    """
    made: list[Stage] = []
    measured: list[MeasuredPath] = [Segment(context, start, end)]
    if aligned is not None:
        there = context.having(rebasin=rechosen(context.config.rebasin, "rebasin", aligned))
        permuted = aligned_end(there, start, end)
        assert permuted is not None
        made.append(permuted)
        measured.append(Segment(there, start, permuted))
    if curve:
        between = curve_between(context, start, end)
        made.append(between)
        measured.append(MeasuredCurve(context, between))
    return made, measured


def epochs_of_a_first_answer(training: Training, examples: int) -> int:
    """Epochs of a curve that take STEPS gradient steps, or a few more."""
    return -(-STEPS // steps_per_epoch(examples, training.batch_size))
