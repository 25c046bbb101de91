"""connect: whether two given networks are joined, by the line, after alignment, or by a curve."""

from __future__ import annotations

from dataclasses import replace

from modeconn_cli.settings import Match
from modeconn_cli.stages.curve import curve_between
from modeconn_cli.stages.endpoints import endpoints, two_of
from modeconn_cli.stages.evaluate import MeasuredCurve
from modeconn_cli.stages.interpolate import Segment
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import aligned_end
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.stage import Stage

NAME = "connect"


@command(
    NAME,
    panel="join",
    help="Are these two networks connected? By the straight line, or after alignment, or else by a curve.",
    listed=False,
)
def request(context: Context, aligned: bool = False, curve: bool = False) -> Request:
    """The straight line; ``aligned``: also that to the aligned end; ``curve``: also a curve between the given ends."""
    start, end = two_of(endpoints(context), context, NAME)
    made: list[Stage] = []
    measured: list[MeasuredPath] = [Segment(context, start, end)]
    if aligned:
        there = context.having(rebasin=replace(context.config.rebasin, method=Match.weight))
        permuted = aligned_end(there, start, end)
        assert permuted is not None
        made.append(permuted)
        measured.append(Segment(there, start, permuted))
    if curve:
        between = curve_between(context, start, end)
        made.append(between)
        measured.append(MeasuredCurve(context, between))
    return Request(own=[*made, *measured, Plot(context, measured)], beside=[start, end])
