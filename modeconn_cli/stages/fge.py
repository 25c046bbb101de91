"""fge: networks kept where a cyclic rate is lowest, and their predictions averaged."""

from __future__ import annotations

from typing import Any

from modeconn_cli.networks import read_state, write_state
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.kept import Gathered, Kept, judged_members, member_file, members_table, starts
from modeconn_cli.tasks.base import Column
from modeconn_cli.training.loop import Trainer
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context


@command(
    "fge",
    panel="train",
    help="Fast geometric ensembling: go on training with a cyclic rate, keep a network each cycle, average.",
    more="It starts after fge.start of the training of each of endpoints.seeds (by default the first of a replicate), "
    "or from any network. Its networks are RUN#1, RUN#2, ...; all of them RUN#*.",
    examples=["fge.cycle=4", "train-endpoints/digits-mlp-s0 fge.epochs=12"],
    networks=True,
)
def request(context: Context) -> Request:
    return Request(own=[FGE(context, start) for start in starts(context, FGE.name)])


class KeptMembers(Kept):
    """A training whose kept networks are members of an ensemble."""

    def keep(self, run: Run, trainer: Trainer, gathered: Gathered) -> None:
        if trainer.step in self.cycles.kept:
            number = self.cycles.kept.index(trainer.step) + 1
            write_state(run, member_file(number), trainer.net.state())

    def finish(self, run: Run, net: FlatModule, gathered: Gathered) -> Result:
        kept = self.cycles.kept
        states = (read_state(run.folder / member_file(k)) for k in range(1, len(kept) + 1))
        labels: list[dict[str, Any]] = [{"epoch": self.cycles.before + step / self.steps} for step in kept]
        together, rows = judged_members(run, net, gathered.evaluator, states, labels)
        whole = {k: v for k, v in together.of_first(len(kept)).items() if v is not None}
        return Result(
            self.title,
            whole,
            [c for c in together.columns if c.name in whole],
            [members_table(together, rows, [Column("epoch", "epoch", digits=2)])],
            pictures=self.traced(run, gathered),
            networks=[member_file(k) for k in range(1, len(kept) + 1)],
            more=self.said(net),
        )


class FGE(KeptMembers):
    """Garipov et al. 2018 (arXiv:1802.10026), section 4."""

    name, title = "fge", "FGE"
    groups = ("dataset", "architecture", "task", "endpoints", "fge")
