"""train-endpoints: one trained network a seed; stages/imported.py has those that come from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.evaluator import Evaluator, metrics
from modeconn_cli.evaluation.measured import split_note
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.families.point import Point
from modeconn_cli.networks import CHECKPOINT as CHECKPOINT
from modeconn_cli.networks import read_state, require_kept, write_state
from modeconn_cli.results import Result, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.referenced import Machine, Referenced, Stored, referenced
from modeconn_cli.states import MisfitError, matching_state
from modeconn_cli.training.loop import Trainer, steps_per_epoch
from modeconn_cli.training.recipe import recipe
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.fitting import fit
from modeconn_cli.work.stage import Stage


@command(
    "train-endpoints",
    panel="train",
    help="Train the endpoints: one network for each of endpoints.seeds.",
    more="seed=N is replicate N, endpoint seeds 2N and 2N+1; endpoints.seeds=\\[5] names them yourself.",
)
def request(context: Context) -> Request:
    return Request(own=endpoints(context))


class Endpoint(Stage):
    """A network whose directory holds checkpoint.safetensors and, in summary.json, its own metrics."""

    name = "train-endpoints"
    makes = "endpoint"
    groups: ClassVar[tuple[str, ...]] = ("dataset", "architecture", "task", "endpoints")
    short_name: str  # for headings
    suffix = ""  # of a pair's label that ends in this endpoint
    aligned_by: str | None = None  # the method that permuted it, if any

    @property
    def original(self) -> Endpoint:
        """The endpoint that this one was made from, or itself."""
        return self

    def state(self) -> dict[str, Tensor]:
        """Its weights and buffers, on the CPU."""
        return read_state(self.result.folder / CHECKPOINT)

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        entry = {"name": self.label, "from": self.short_name, **recorded_metrics(run.folder)}
        return {"endpoints": entry}

    def metrics(self) -> dict[str, float]:
        """Means by ``<split>_<column>``, as measured when it was made."""
        return recorded_metrics(self.result.folder)

    def measured(self, run: Run, evaluator: Evaluator, net: FlatModule, more: dict[str, Any]) -> Result:
        """The network, whose checkpoint is written, and its metrics, measured with its own buffers."""
        scores = evaluator.scores()
        found = metrics(scores)
        self.context.trackers.summary({"measured": found})
        write_state(run, CHECKPOINT, net.state())
        note = {
            "task": task_note(self.context.task),
            "splits": {k: split_note(evaluator, k) for k in scores},
            "parameters": net.size,
        }
        return Result(self.short_name, found, networks=[CHECKPOINT], more={**note, **more})


class TrainedEndpoint(Endpoint):
    """Trained from initialisation, or on from another network (endpoints.init_from).

    Its BatchNorm statistics are then re-estimated on clean training data.
    """

    def __init__(self, context: Context, seed: int) -> None:
        super().__init__(context)
        options = context.config.endpoints
        self.seed = seed
        self.short_name = f"seed {seed}"
        self.init_seed = seed if options.init_seed is None else options.init_seed
        self.data_seed = seed if options.data_seed is None else options.data_seed
        self.parent: Referenced | None = None
        if options.init_from is not None:
            if options.init_seed is not None:
                raise UserError(
                    "endpoints.init_from and endpoints.init_seed are both given: training starts from the one or from "
                    "the other; drop one."
                )
            self.parent = named_by("endpoints.init_from", options.init_from, context)

    @property
    def label(self) -> str:
        return f"{self.context.label}-s{self.seed}"

    def fields(self) -> dict[str, Any]:
        options = self.context.config.endpoints
        keep = {k: sorted(set(getattr(options, k))) for k in ("keep_epochs", "keep_steps") if getattr(options, k)}
        start = {"init_seed": self.init_seed} if self.parent is None else {"init_from": self.parent.content}
        return {
            **self.context.task_fields(),
            "recipe": recipe(options),
            **start,
            "data_seed": self.data_seed,
            **keep,
        }

    def made_from(self) -> Sequence[Path]:
        return () if self.parent is None else self.parent.upstream

    @property
    def gradient_steps(self) -> int:  # type: ignore[override]
        options = self.context.config.endpoints
        return options.epochs * steps_per_epoch(len(self.context.data_on_host.train), options.batch_size)

    def check(self) -> None:
        """Raise UserError now, before anything is written, for checkpoints that training will not reach."""
        late = [s for s in self.context.config.endpoints.keep_steps if s > self.gradient_steps]
        if late:
            raise UserError(f"endpoints.keep_steps={late} lies after the last step, {self.gradient_steps}.")
        if self.parent is not None:
            fitted(self.context.module(), self.parent, self.parent.outline(), self.context)

    def compute(self, run: Run) -> Result:
        options = self.context.config.endpoints
        net = self.context.net(self.init_seed)
        require_kept(net.module)
        start: dict[str, Any] = {"init_seed": self.init_seed}
        if self.parent is not None:
            load(net, self.parent, self.context)
            start = {"init_from": {"reference": self.parent.text, "sha256": self.parent.content}}
        task = self.context.training_task(options)
        trainer = Trainer(net, Point(), net.point[None], slice(0, 1), task, options, self.data_seed)
        kept = {e * trainer.steps_per_epoch: f"checkpoint-epoch{e}.safetensors" for e in options.keep_epochs}
        kept |= {s: f"checkpoint-step{s}.safetensors" for s in options.keep_steps if s not in kept}

        def keep(t: Trainer) -> None:
            if t.step in kept:
                t.require_finite()
                write_state(run, kept[t.step], net.state())

        fit(trainer, run, self.context, keep)
        evaluator = self.context.evaluator(net, Interpolation())
        evaluator.reestimate()
        made = {"seed": self.seed, **start, "data_seed": self.data_seed, "gradient_steps": trainer.total_steps}
        found = self.measured(run, evaluator, net, made)
        return replace(found, networks=[*found.networks, *kept.values()])


def named_by(key: str, reference: str, context: Context) -> Referenced:
    """The network that a setting refers to; what is wrong with it is said of the setting."""
    try:
        network = referenced(reference, context.root)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    strip = context.config.endpoints.strip
    if isinstance(network, Stored) and not network.own and strip is not None:
        network.strip = strip.rstrip(".") + "."
    return network


@torch.no_grad()
def load(net: FlatModule, network: Referenced, context: Context) -> None:
    """Make a network, weights and buffers, the one that is referred to.

    Raises:
        UserError: it is of another architecture.
    """
    state = network.state(Machine(context.config.runtime, context.reporter))
    net.load(fitted(net.module, network, state, context))


def fitted(module: nn.Module, network: Referenced, state: Mapping[str, Any], context: Context) -> dict[str, Tensor]:
    """:func:`modeconn_cli.states.matching_state` of what is referred to; of a head for other classes, what to do.

    Raises:
        UserError: it is of another architecture.
    """
    require_kept(module)
    try:
        return matching_state(module, state, network.text, network.own)
    except MisfitError as error:
        classes = context.task_on_host.data.classes
        if classes is not None and error.wanted[:1] == (classes,) and error.found[1:] == error.wanted[1:]:
            raise UserError(f"{error} {context.task_on_host.data.told_apart(error.found[0])}") from None
        raise


def pair_label(start: Endpoint, end: Endpoint) -> str:
    """s0-1 for seeds 0 and 1."""
    first, second = start.original, end.original
    if isinstance(first, TrainedEndpoint) and isinstance(second, TrainedEndpoint):
        return f"s{first.seed}-{second.seed}{end.suffix}"
    return f"files{end.suffix}"


def recorded_metrics(folder: Path) -> dict[str, float]:
    """The metrics in a finished endpoint's directory."""
    recorded: dict[str, float] = json.loads((folder / "summary.json").read_text())["metrics"]
    return recorded


def endpoints(context: Context) -> list[Endpoint]:
    """The endpoints that the configuration names: trained, or taken from files and runs, and fused if it says so."""
    from modeconn_cli.stages.fused import fused_endpoints

    whole = context.config.endpoints.having(fuse=False)
    return fused_endpoints(context, _whole_endpoints(context.having(endpoints=whole)))


def _whole_endpoints(context: Context) -> list[Endpoint]:
    from modeconn_cli.stages.imported import imported_endpoints

    options, seed = context.config.endpoints, context.config.seed
    imported = imported_endpoints(context)
    if imported is not None:
        return [*imported]
    seeds = [2 * seed, 2 * seed + 1] if options.seeds is None else options.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"endpoints.seeds={seeds} names a seed twice, and equal seeds give identical endpoints: give different "
            "ones."
        )
    if not seeds:
        raise UserError("endpoints.seeds=[] names no endpoint; give seeds, as endpoints.seeds=[0,1].")
    trained = [TrainedEndpoint(context, s) for s in seeds]
    trained[0].check()
    return [*trained]


def two_of(endpoints: Sequence[Endpoint], context: Context, command: str) -> tuple[Endpoint, Endpoint]:
    """The two endpoints of a path, which must be two and differ."""
    from modeconn_cli.stages.imported import SAME

    if len(endpoints) != 2:
        options = context.config.endpoints
        if options.checkpoints is not None or options.references is not None:
            key = "checkpoints" if options.references is None else "from"
            raise UserError(f"{command} joins two endpoints, and endpoints.{key} names {len(endpoints)}: give two.")
        raise UserError(
            f"{command} joins two endpoints, and {len(endpoints)} are given: use endpoints.seeds=[0,1], or sweep "
            "pairs with --multirun 'endpoints.seeds=[0,1],[2,3]'."
        )
    start, end = endpoints
    if start.identity.digest == end.identity.digest:
        raise UserError(f"both endpoints are {SAME}")
    return start, end
