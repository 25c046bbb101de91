"""evaluate: loss and error along a fitted curve."""

from __future__ import annotations

from torch import Tensor

from modeconn_cli.families.base import Family
from modeconn_cli.stages.curve import FitCurve
from modeconn_cli.stages.endpoints import pair_label
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath, named_by_options


class MeasuredCurve(MeasuredPath):
    """A fitted curve."""

    name = "evaluate"

    def __init__(self, context: Context, curve: FitCurve) -> None:
        super().__init__(context, curve.start, curve.end, pair_label(curve.start, curve.end), [curve])
        self.curve = curve

    @property
    def title(self) -> str:
        bends = self.context.config.curve.bends
        kind = {"bezier": "Bezier curve", "chain": "polygonal chain"}[self.curve.kind]
        aligned = ", to the aligned end" if self.end.aligned_by else ""
        return named_by_options(f"{kind}, {bends} bend{'s' if bends > 1 else ''}{aligned}", self.context)

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
