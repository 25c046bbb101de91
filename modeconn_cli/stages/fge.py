"""fge: networks kept where a cyclic rate is lowest, and their predictions averaged."""

from __future__ import annotations

from modeconn_cli.stages.kept import starts
from modeconn_cli.stages.members import KeptMembers
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


class FGE(KeptMembers):
    """Garipov et al. 2018 (arXiv:1802.10026), section 4."""

    name, title = "fge", "FGE"
    groups = ("dataset", "architecture", "task", "endpoints", "fge")
