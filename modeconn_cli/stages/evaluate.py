"""evaluate: loss and error along a fitted curve."""

from __future__ import annotations

from torch import Tensor

from modeconn_cli.evaluation.options import PathOf
from modeconn_cli.families.base import Family
from modeconn_cli.stages.curve import FitCurve, curve_between
from modeconn_cli.stages.endpoints import pair_label
from modeconn_cli.stages.interpolate import Segment
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import ends_of_path
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath, named_by_options


@command(
    "evaluate",
    panel="look",
    help="Measure a fitted curve (or interpolation.path=segment) again, with other evaluation settings.",
    more="Change here interpolation.points, .search_max, .batch_norm, .train_examples or .bootstrap.",
)
def request(context: Context) -> Request:
    measured = measured_path(context, MeasuredCurve.name)
    if isinstance(measured, Segment):
        return Request(own=[measured, Plot(context, [measured])])
    segment = Segment(context, *ends_of_path(context, MeasuredCurve.name))
    return Request(own=[measured, Plot(context, [segment, measured])], beside=[segment])


def measured_path(context: Context, command: str) -> MeasuredPath:
    """The path that interpolation.path asks for, between the endpoints that the configuration names."""
    start, end = ends_of_path(context, command)
    if context.config.interpolation.path is PathOf.segment:
        return Segment(context, start, end)
    return MeasuredCurve(context, curve_between(context, start, end))


class MeasuredCurve(MeasuredPath):
    """A fitted curve."""

    name = "evaluate"

    def __init__(self, context: Context, curve: FitCurve) -> None:
        super().__init__(context, curve.start, curve.end, pair_label(curve.start, curve.end), [curve])
        self.curve = curve

    @property
    def title(self) -> str:
        aligned = ", to the aligned end" if self.end.aligned_by else ""
        return named_by_options(f"{self.context.config.curve.title}{aligned}", self.context)

    @property
    def label(self) -> str:
        return self.curve.label

    @property
    def path(self) -> Family:
        return self.curve.path

    @property
    def ends_fixed(self) -> tuple[bool, bool]:
        options = self.context.config.curve
        return options.fix_start, options.fix_end

    def control_points(self, net: FlatModule) -> Tensor:
        return self.curve.control_points(net)
