"""swag: a Gaussian around the mean of weights that a training at a high rate passes by; networks drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.networks import CHECKPOINT, write_state
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.kept import Gathered, member_file, starts
from modeconn_cli.stages.members import judged_members, members_table
from modeconn_cli.stages.swa import AveragedWeights, become
from modeconn_cli.training.averages import Gaussian, gaussian_sample
from modeconn_cli.training.loop import Trainer
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context

GAUSSIAN = "gaussian.safetensors"


@command(
    "swag",
    panel="train",
    help="SWA-Gaussian: average weights as swa does, fit a Gaussian around the mean, draw networks, average.",
    more="It starts after swag.start of the training of each of endpoints.seeds (by default the first of a replicate), "
    "or from any network. The mean is RUN, or RUN#1; the networks that were drawn are RUN#2, RUN#3, ...",
    examples=["swag.rank=20 swag.samples=30", "train-endpoints/digits-mlp-s0 swag.epochs=20"],
    networks=True,
)
def request(context: Context) -> Request:
    return Request(own=[SWAG(context, start) for start in starts(context, SWAG.name)])


class SWAG(AveragedWeights):
    """Maddox et al. 2019 (arXiv:1902.02476).

    gaussian.safetensors holds ``mean.<parameter>``, ``variance.<parameter>`` and ``deviation.<k>.<parameter>``.
    """

    name, title = "swag", "SWAG"
    groups = ("dataset", "architecture", "task", "endpoints", "swag")

    @property
    def averaged(self) -> list[str]:
        return [member_file(k + 1) for k in range(self.options.samples)]

    @property
    def memory(self) -> int:  # type: ignore[override]
        """The network, its mean and squares, and the deviations."""
        return (self.options.rank + 8) * self.context.parameters * 4

    def average(self, net: FlatModule) -> Gaussian:
        return Gaussian(net.point, self.options.rank)

    def keep(self, run: Run, trainer: Trainer, gathered: Gathered) -> None:
        if trainer.step in self.cycles.kept:
            assert gathered.average is not None
            gathered.average.add(trainer.net.point)

    def finish(self, run: Run, net: FlatModule, gathered: Gathered) -> Result:
        of_mean, table, said = self.written(run, net, gathered)
        gaussian = gathered.average
        assert isinstance(gaussian, Gaussian)
        kind = torch.promote_types(net.point.dtype, torch.float32)
        mean, variance = (v.to("cpu", kind) for v in (gaussian.mean, gaussian.variance(self.options.floor)))
        parts = {"mean": mean, "variance": variance}
        parts |= {f"deviation.{k}": row for k, row in enumerate(gaussian.deviations)}
        named = {f"{part}.{name}": v for part, vector in parts.items() for name, v in net.named(vector).items()}
        write_state(run, GAUSSIAN, named)
        number = self.options.samples
        states = self._drawn(net, mean, variance, gaussian.deviations)
        together, rows = judged_members(run, net, gathered.evaluator, states, [{}] * number)
        whole = {k: v for k, v in together.of_first(number).items() if v is not None}
        mean_only = [replace(c, name=f"mean_{c.name}", title=f"of the mean: {c.title}") for c in self.columns("test")]
        return Result(
            self.title,
            whole | {c.name: of_mean[c.name.removeprefix("mean_")] for c in mean_only},
            [*(c for c in together.columns if c.name in whole), *mean_only],
            [table, members_table(together, rows, [])],
            pictures=self.traced(run, gathered),
            networks=[CHECKPOINT, GAUSSIAN, *self.averaged],
            more=said,
        )

    def _drawn(self, net: FlatModule, mean: Tensor, variance: Tensor, D_kp: Tensor) -> Iterator[dict[str, Tensor]]:
        """States of networks drawn one by one, each by a number of its own."""
        rest = net.rest()
        for k in range(self.options.samples):
            entropy = np.random.SeedSequence([self.start.seed, k]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(entropy[0] >> 1))
            z1, z2 = (torch.randn(n, generator=generator, dtype=mean.dtype) for n in (len(mean), len(D_kp)))
            net.load_rest(rest)
            become(net, gaussian_sample(mean, variance, D_kp, z1, z2))
            yield net.state()
