"""interpolate: loss and error along the straight line between two endpoints."""

from __future__ import annotations

from torch import Tensor

from modeconn_cli.families.base import Family
from modeconn_cli.families.bezier import segment
from modeconn_cli.stages.curve import end_points
from modeconn_cli.stages.endpoints import Endpoint, pair_label
from modeconn_cli.stages.plot import Plot
from modeconn_cli.stages.rebasin import ends_of_path
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath, done_to_networks, named_by_options


@command(
    "interpolate",
    panel="join",
    help="Measure loss and error along the straight line between two endpoints.",
    more="Endpoints that are missing are trained first. Writes path.csv, summary.json and a picture.",
    examples=["a.pt b.pt"],
    networks=True,
)
def request(context: Context) -> Request:
    start, end = ends_of_path(context, Segment.name)
    segment = Segment(context, start, end)
    return Request(own=[segment, Plot(context, [segment])], beside=[start, end])


class Segment(MeasuredPath):
    """The straight line between two endpoints."""

    name = "interpolate"

    def __init__(self, context: Context, start: Endpoint, end: Endpoint) -> None:
        super().__init__(context, start, end, pair_label(start, end), [start, end])
        self.ends = start, end

    @property
    def title(self) -> str:
        return named_by_options("aligned segment" if self.end.aligned_by else "segment", self.context)

    @property
    def label(self) -> str:
        words = [self.context.label, self.pair, "segment", done_to_networks(self.context)]
        return "-".join(filter(None, words))

    @property
    def path(self) -> Family:
        return segment()

    def control_points(self, net: FlatModule) -> Tensor:
        return end_points(net, *self.ends)
