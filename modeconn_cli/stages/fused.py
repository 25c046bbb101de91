"""fuse: an endpoint whose norms are folded into the layers before them, so that it computes the same without them."""

from __future__ import annotations

import torch
from torch import nn

from modeconn_cli.evaluation.evaluator import require_same
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.forward import evaluating
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.endpoints import Endpoint
from modeconn_cli.states import named_state, set_state
from modeconn_cli.symmetry.fusing import certify_fusion, fused
from modeconn_cli.work.context import Context

CERTIFIED_ON = 64  # examples


class FusedEndpoint(Endpoint):
    """Another endpoint without its norms, at which nothing is to be estimated; summary.json holds the certificate.

    Its tensors have the names of the original's: a layer has a bias more, and a norm has none left.
    """

    name = "fuse"

    def __init__(self, context: Context, whole: Endpoint) -> None:
        super().__init__(context, [whole])
        self.whole, self.short_name = whole, whole.short_name

    @property
    def original(self) -> Endpoint:
        return self.whole.original

    def check(self) -> None:
        """Say which norms stay; UserError now, before anything is written, where none can be folded."""
        remark = self.context.fusion.remark
        if remark:
            self.context.reporter.say(f"endpoints.fuse leaves these norms: {remark}")

    def fields(self) -> dict[str, object]:
        return self.context.task_fields()

    def compute(self, run: Run) -> Result:
        torch.manual_seed(0)
        module: nn.Module = evaluating(self.whole.context.module())
        set_state(module, self.whole.state())
        fusion, data = self.context.fusion, self.context.data_on_host
        certificate = certify_fusion(module, fusion, data.inputs(data.test, slice(0, CERTIFIED_ON)))
        net = self.context.net(0)
        with torch.no_grad():
            net.load(named_state(fused(module, fusion)))
        evaluator = self.context.evaluator(net, Interpolation())
        note = {"folded": [list(pair) for pair in fusion.pairs], "left": fusion.left, "certificate": certificate}
        result = self.measured(run, evaluator, net, note)
        require_same(self.whole.metrics(), dict(result.metrics), self.short_name, self.context.task.columns)
        return result


def fused_endpoints(context: Context, found: list[Endpoint]) -> list[Endpoint]:
    """The endpoints as the configuration wants them: without norms where endpoints.fuse says so."""
    if not context.config.endpoints.fuse:
        return found
    without = [FusedEndpoint(context, whole) for whole in found]
    without[0].check()
    return [*without]
