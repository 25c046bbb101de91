"""snapshot: a training whose rate is restarted; the network at the end of each cycle; their predictions averaged."""

from __future__ import annotations

from modeconn_cli.errors import UserError
from modeconn_cli.stages.kept import Start
from modeconn_cli.stages.members import KeptMembers
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context


@command(
    "snapshot",
    panel="train",
    help="Snapshot ensembling: train with a cosine rate that is restarted, keep the network of each cycle, average.",
    more="Trained from initialisation over endpoints.epochs, once for each of endpoints.seeds (by default the first of "
    "a replicate). Its networks are RUN#1, RUN#2, ...; all of them RUN#*.",
    examples=["snapshot.members=6 endpoints.epochs=300", "snapshot.lr=0.2"],
)
def request(context: Context) -> Request:
    return Request(own=[Snapshot(context, start) for start in from_initialisation(context)])


def from_initialisation(context: Context) -> list[Start]:
    """One for each of endpoints.seeds, by default for the first of a replicate.

    Raises:
        UserError: networks are named to start from.
    """
    options, seed = context.config.endpoints, context.config.seed
    given = {"from": options.references, "checkpoints": options.checkpoints, "init_from": options.init_from}
    named = next((k for k, v in given.items() if v is not None), None)
    if named or options.fuse:
        raise UserError(
            f"endpoints.{named or 'fuse'} is of networks that are there, and a snapshot ensemble is trained from "
            "initialisation: drop it, or use modeconn fge, which goes on from any network."
        )
    found = []
    for own in [2 * seed] if options.seeds is None else options.seeds:
        init, data = (own if v is None else v for v in (options.init_seed, options.data_seed))
        found.append(Start(f"seed {own}", f"{context.label}-s{own}", data, init))
    if not found:
        raise UserError("endpoints.seeds=[] names no training; give seeds, as endpoints.seeds=[0].")
    return found


class Snapshot(KeptMembers):
    """Huang et al. 2017 (arXiv:1704.00109)."""

    name, title = "snapshot", "snapshot ensemble"
    groups = ("dataset", "architecture", "task", "endpoints", "snapshot")
