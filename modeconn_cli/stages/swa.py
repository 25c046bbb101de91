"""swa: the mean of the weights that a training at a high rate passes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.evaluation.evaluator import metrics
from modeconn_cli.evaluation.measured import split_note
from modeconn_cli.evaluation.spectral import settle
from modeconn_cli.networks import CHECKPOINT, read_state, write_state
from modeconn_cli.results import Result, Table
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.kept import Gathered, Kept, member_file, starts
from modeconn_cli.tasks.base import Column
from modeconn_cli.training.averages import Average
from modeconn_cli.training.loop import Trainer
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context


@command(
    "swa",
    panel="train",
    help="Stochastic weight averaging: go on training at a constant or cyclic rate, and average the weights.",
    more="It starts after swa.start of the training of each of endpoints.seeds (by default the first of a replicate), "
    "or from any network. The average is RUN, or RUN#1.",
    examples=["swa.lr=0.05 swa.lr_min=0.01 swa.cycle=2", "train-endpoints/digits-mlp-s0 swa.epochs=10"],
    networks=True,
)
def request(context: Context) -> Request:
    return Request(own=[SWA(context, start) for start in starts(context, SWA.name)])


class AveragedWeights(Kept):
    """A training that ends in an average of the weights it passed by, in checkpoint.safetensors.

    Its statistics are re-estimated on clean training data; of other buffers it has the last network's.
    """

    def columns(self, *splits: str) -> list[Column]:
        """The task's, of these splits."""
        columns = self.context.task.columns
        return [replace(c, name=f"{s}_{c.name}", title=f"{s} {c.title or c.name}") for s in splits for c in columns]

    def written(self, run: Run, net: FlatModule, gathered: Gathered) -> tuple[dict[str, float], Table, dict[str, Any]]:
        """Write the average, where the network is left: its figures, beside others', and what summary.json says."""
        evaluator, average = gathered.evaluator, gathered.average
        assert average is not None
        evaluator.reestimate()
        last = evaluator.score(evaluator.splits["test"]).means
        become(net, average.mean)
        evaluator.reestimate()
        scores = evaluator.scores()
        write_state(run, CHECKPOINT, net.state())
        rows = [_row("average", scores["test"].means), _row("last network", last)]
        if self.start.endpoint is not None:
            found = self.start.endpoint.metrics()
            own = {k.removeprefix("test_"): v for k, v in found.items() if k.startswith("test_")}
            rows.append(_row(f"{self.start.name}, whole training" if self.cycles.before else self.start.name, own))
        table = Table("compared.csv", "Test split", [Column("network", "network"), *self.context.task.columns], rows)
        splits = {k: split_note(evaluator, k) for k in scores}
        return metrics(scores), table, {**self.said(net), "averaged": average.count, "splits": splits}


def become(net: FlatModule, point: Tensor) -> None:
    """Move a network to a point (P,) in any precision; its buffers stay, but for what follows from the weights."""
    with torch.no_grad():
        net.load({**net.rest(), **net.named(point.to(net.point.dtype))})
    settle(net.module)


def _row(network: str, figures: Mapping[str, float]) -> dict[str, Any]:
    return {"network": network, **figures}


class SWA(AveragedWeights):
    """Izmailov et al. 2018 (arXiv:1803.05407)."""

    name, title = "swa", "SWA"
    groups = ("dataset", "architecture", "task", "endpoints", "swa")

    def average(self, net: FlatModule) -> Average:
        return Average(net.point, self.options.decay)

    def keep(self, run: Run, trainer: Trainer, gathered: Gathered) -> None:
        assert gathered.average is not None
        ends = trainer.step in self.cycles.kept
        if ends or (self.options.every_step and trainer.step):
            trainer.require_finite()
            gathered.average.add(trainer.net.point)
        if ends and self.options.keep:
            write_state(run, member_file(self.cycles.kept.index(trainer.step) + 1), trainer.net.state())

    def finish(self, run: Run, net: FlatModule, gathered: Gathered) -> Result:
        found, table, said = self.written(run, net, gathered)
        kept = [member_file(k + 1) for k in range(len(self.cycles.kept))] if self.options.keep else []
        for file in kept:
            with torch.no_grad():
                net.load(read_state(run.folder / file))
            gathered.evaluator.reestimate()
            write_state(run, file, net.state())
        return Result(
            self.title,
            found,
            self.columns("train", "test"),
            [table],
            pictures=self.traced(run, gathered),
            networks=[CHECKPOINT, *kept],
            more=said,
        )
