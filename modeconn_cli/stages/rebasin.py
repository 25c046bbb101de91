"""rebasin: the second endpoint, permuted so that it computes the same and lies near the first."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.buffers import norm_layers
from modeconn_cli.evaluation.evaluator import metrics, require_same
from modeconn_cli.evaluation.options import BatchNorm, Interpolation, Renormalise
from modeconn_cli.matching.activation import activation_matching
from modeconn_cli.matching.midpoint import Check, Loss, Parameters
from modeconn_cli.matching.options import USED_BY, Between, Match, Rebasin, Similarity
from modeconn_cli.matching.search import Matching
from modeconn_cli.matching.sinkhorn import sinkhorn_matching
from modeconn_cli.matching.straight_through import straight_through
from modeconn_cli.matching.weight import default_restarts, weight_matching
from modeconn_cli.networks import write_state
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import fields_off_default
from modeconn_cli.stages.endpoints import Endpoint, endpoints, pair_label, two_of
from modeconn_cli.stages.symmetries import groups_text
from modeconn_cli.symmetry.certificate import certify_all, refuse_wrong
from modeconn_cli.symmetry.graph import CannotTrace, trace
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.written import read_groups
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver
from modeconn_cli.work.stage import Stage

CERTIFIED_ON = 64  # examples
TOLERANCE = 1e-10  # relative, in float64
ACTIVATION_BATCH = 100


TOGETHER = (Match.merge_many, Match.c2m3)


@command(
    "rebasin",
    panel="align",
    help="Align the second endpoint with the first, and measure the line between them before and after.",
    more="rebasin=weight (the default here), activation, straight_through or sinkhorn; merge_many or c2m3 for "
    "any number of endpoints. Writes the permutation, the aligned and the merged "
    "network, and a certificate that the function is the same. interpolate and fit-curve take rebasin=weight too.",
    chooses={"rebasin": "weight"},
)
def request(context: Context) -> Request:
    method, given = context.config.rebasin.method, endpoints(context)
    if method == Match.none:
        raise UserError(
            "rebasin=none aligns nothing: choose rebasin=weight, activation, straight_through, sinkhorn, merge_many or "
            "c2m3, or measure the line as it is with modeconn interpolate."
        )
    if method in TOGETHER:
        return merge(context, given)
    if len(given) > 2:
        raise UserError(
            f"modeconn rebasin joins two endpoints by rebasin={method}, and {len(given)} are given: "
            f"use rebasin={' or rebasin='.join(map(str, TOGETHER))} for more."
        )
    return before_and_after(context, *two_of(given, context, Aligned.name))


def before_and_after(context: Context, start: Endpoint, end: Endpoint) -> Request:
    """The straight line before and after alignment, and after every renormalisation that the network admits."""
    from modeconn_cli.stages.interpolate import Segment
    from modeconn_cli.stages.plot import Plot

    config = context.config
    aligned = Aligned(context, start, end)
    aligned.check()
    if config.interpolation.renormalise is not Renormalise.none:
        context.reporter.say("interpolation.renormalise changes nothing with modeconn rebasin, which measures them all")

    def measured(to: Endpoint, batch_norm: BatchNorm, renormalise: Renormalise) -> Segment:
        options = replace(config.interpolation, batch_norm=batch_norm, renormalise=renormalise)
        rebasin = config.rebasin if to is aligned else Rebasin()
        return Segment(context.having(interpolation=options, rebasin=rebasin), start, to)

    has_norm = bool(norm_layers(context.module()))
    plain = BatchNorm.mean if has_norm else BatchNorm.reestimate
    paths = [measured(end, plain, Renormalise.none), measured(aligned, plain, Renormalise.none)]
    paths += [measured(aligned, BatchNorm.reestimate, Renormalise.none)] if has_norm else []
    paths += [measured(aligned, BatchNorm.reestimate, r) for r in (Renormalise.repair, Renormalise.rescale)]
    own: list[Stage] = [aligned, *paths, Plot(context, paths)]
    return Request(own=own, beside=[start, end])


def merge(context: Context, networks: Sequence[Endpoint]) -> Request:
    """The mean of any number of networks, before and after they are matched."""
    from modeconn_cli.stages.merge import Merged

    if len(networks) < 2:
        raise UserError("there is nothing to merge in one endpoint: give two or more, as endpoints.seeds=[0,1,2].")
    merged = Merged(context, [*networks])
    merged.check()
    return Request(own=[merged], beside=networks)


def ends_of_path(context: Context, command: str) -> tuple[Endpoint, Endpoint]:
    """The two endpoints that a command joins, the second permuted where the configuration asks for it."""
    start, end = two_of(endpoints(context), context, command)
    return start, aligned_end(context, start, end) or end


def aligned_end(context: Context, start: Endpoint, end: Endpoint) -> Aligned | None:
    """The second endpoint permuted, where the configuration asks for it."""
    if context.config.rebasin.method == Match.none:
        return None
    if context.config.rebasin.method in TOGETHER:
        raise UserError(
            f"rebasin={context.config.rebasin.method} brings any number of networks together, and a path has two ends: "
            "use it with modeconn rebasin, or another method here."
        )
    aligned = Aligned(context, start, end)
    aligned.check()
    return aligned


class Permuting(Stage):
    """What permutes networks: it traces them, matches them, and certifies that they compute the same."""

    name = "rebasin"
    groups: ClassVar[tuple[str, ...]] = ("rebasin",)
    VERSION = 5

    def fields(self) -> dict[str, Any]:
        options = fields_off_default(self.context.config.rebasin)
        fields = {k: v for k, v in options.items() if k in USED_BY[self.context.config.rebasin.method]}
        if "groups" in fields:  # what is in the file, wherever it is
            fields["groups"] = hashlib.sha256(self._groups_text.encode()).hexdigest()
        return fields

    @cached_property
    def traced(self) -> tuple[nn.Module, Symmetry, int]:
        """The network on the CPU, its groups, and the batch that they were traced with."""
        options = self.context.config.rebasin
        data = self.context.data_on_host
        matched = options.method == Match.activation
        batch = min(ACTIVATION_BATCH, options.examples, len(data.train)) if matched else 2
        groups = None if options.groups is None else self._groups_text
        return self.context.recent(
            "traced", f"{self.context.task_fields()} {matched} {batch} {groups}", lambda: self._trace(batch)
        )

    def _trace(self, batch: int) -> tuple[nn.Module, Symmetry, int]:
        options, data = self.context.config.rebasin, self.context.data_on_host
        matched = options.method == Match.activation
        torch.manual_seed(0)
        module = self.context.module().eval()
        if options.groups is not None:
            if matched:
                raise UserError(
                    "rebasin=activation compares what units compute, which takes the graph and not only the groups: "
                    "drop rebasin.groups, or use rebasin=weight."
                )
            symmetry = read_groups(self._groups_text, module.state_dict(), options.groups)
            refuse_wrong(module, symmetry, self.examples(), options.groups)
            return module, symmetry, batch
        try:
            return module, trace(module, data.inputs(data.train, slice(0, batch))), batch
        except CannotTrace as error:
            raise UserError(
                f"{error}. Write its groups into a file (modeconn symmetries --output groups.yaml begins one) and give "
                "rebasin.groups=groups.yaml, or go without re-basin."
            ) from None

    @cached_property
    def _groups_text(self) -> str:
        return groups_text(str(self.context.config.rebasin.groups))

    def check(self) -> None:
        """Raise UserError now, before anything is written, for a network that cannot be traced or has no symmetry."""
        options = self.context.config.rebasin
        for idle in sorted({*fields_off_default(options)} - USED_BY[options.method]):
            self.context.reporter.say(f"rebasin.{idle} changes nothing with rebasin={options.method}")
        if self.locate(False).status == "cached":
            return
        _, symmetry, _ = self.traced
        if not symmetry.groups and options.groups is not None:
            raise UserError(
                f"{options.groups} names no dimension: where it has a number, write a name for what may move."
            )
        if not symmetry.groups:
            held = ", ".join(symmetry.pinned_by)
            because = f": {held} held every axis in its place" if held else ""
            raise UserError(f"this network has no permutation that leaves its function alone{because}.")

    def examples(self) -> Tensor:
        """Real inputs that functions are compared on."""
        data = self.context.data_on_host
        return data.inputs(data.test, slice(0, CERTIFIED_ON))


class Aligned(Permuting, Endpoint):
    """The second endpoint after re-basin: checkpoint.safetensors, and how it came about.

    permutation.safetensors needs nothing of this project: for every ``<tensor>:<dim>`` it holds the indices with which
    ``index_select`` along that dimension makes the aligned tensor from the second endpoint's, and for a ``<tensor>``
    alone the flat position of every element's source. merged.safetensors is the midpoint of the first endpoint and the
    aligned one.
    """

    makes = "aligned"

    def __init__(self, context: Context, start: Endpoint, end: Endpoint) -> None:
        super().__init__(context, [start, end])
        self.start, self.end = start, end
        self.short_name = f"{end.short_name} aligned"
        self.suffix = f"-{context.config.rebasin.method}"
        self.aligned_by = str(context.config.rebasin.method)

    @property
    def label(self) -> str:
        return f"{self.context.label}-{pair_label(self.start, self)}"

    @property
    def original(self) -> Endpoint:
        return self.end

    def compute(self, run: Run) -> None:
        module, symmetry, batch = self.traced
        a, b = self.start.state(), self.end.state()
        found = self._match(module, symmetry, batch, a, b, Saver(run, self.context))
        aligned = symmetry.permute(b, found.permutations)
        certificate = certify_all(module, symmetry, [b], [aligned], self.examples())
        write_state(run, "permutation.safetensors", symmetry.moves(b, found.permutations))
        write_state(run, "merged.safetensors", {k: _midpoint(a[k], aligned[k]) for k in a})
        net = self.context.net(0)
        with torch.no_grad():
            net.module.load_state_dict(aligned)
        evaluator = self.context.evaluator(net, Interpolation())
        moved = [int((p != torch.arange(len(p))).sum()) for p in found.permutations]
        self.write(
            run,
            evaluator,
            net,
            {
                "method": str(self.context.config.rebasin.method),
                "objective": found.objective,
                "objective_is": found.measure,
                "objective_before": found.before,
                "objective_after": found.after,
                "start": found.start,
                "groups": [
                    {"name": g.name, "size": g.size, "moved": m} for g, m in zip(symmetry.groups, moved, strict=True)
                ],
                "pinned_by": symmetry.pinned_by,
                "certificate": certificate,
            },
        )
        require_same(self.end.metrics(), metrics(evaluator.scores()), self.short_name, self.context.task.columns)

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        summary = json.loads((run.folder / "summary.json").read_text())
        keep = ("method", "groups", "objective", "objective_is", "objective_before", "objective_after", "certificate")
        return {**super().found(run), "aligned": {"name": self.end.short_name, **{k: summary[k] for k in keep}}}

    def _match(
        self,
        module: nn.Module,
        symmetry: Symmetry,
        batch: int,
        a: dict[str, Tensor],
        b: dict[str, Tensor],
        saver: Saver,
    ) -> Matching:
        options = self.context.config.rebasin
        if options.method == Match.activation:
            return self._match_activations(symmetry, batch, a, b)
        names = [n for n, _ in module.named_parameters()]
        first, second = ({n: state[n].to(self.context.device) for n in names} for state in (a, b))
        if options.method == Match.weight:
            restarts = default_restarts(symmetry) if options.restarts is None else options.restarts
            watch = self._watch(restarts + 1)
            return weight_matching(
                symmetry, first, second, names, options.seed, restarts, options.sweeps,
                lambda start, sweep, objective: watch(start, f"sweep {sweep + 1} objective {objective:.4f}"), saver,
            )  # fmt: skip
        loss, check = self._losses(a)

        def trained(step: int, value: float) -> None:
            self.context.reporter.progress(step + 1, options.steps, f"loss {value:.4f}")
            saver.stop_if_asked()

        if options.method == Match.straight_through:
            return straight_through(
                symmetry,
                first,
                second,
                loss,
                check,
                options.steps,
                options.lr or 1e-3,
                seed=options.seed,
                watch=trained,
                memory=saver,
            )
        return sinkhorn_matching(
            symmetry,
            first,
            second,
            None if options.between is Between.l2 else loss,
            check,
            options.steps,
            options.lr or 0.1,
            options.temperature,
            options.unrolled,
            options.between is Between.random,
            seed=options.seed,
            watch=trained,
            memory=saver,
        )

    def _watch(self, total: int) -> Callable[[int, str], None]:
        def watch(done: int, note: str) -> None:
            self.context.reporter.progress(done, total, note)
            self.context.signals.check()

        return watch

    def _losses(self, a: dict[str, Tensor]) -> tuple[Loss, Check]:
        """The loss of a network with other parameters, on a step's batch and on examples that stay the same.

        BatchNorm normalises by the batch, as it would after its statistics were reset.
        """
        options, task = self.context.config.rebasin, self.context.task
        data = task.data
        module = self.context.net(0).module.eval()
        for layer in norm_layers(module):
            layer.train()
        names = {n for n, _ in module.named_parameters()}
        buffers = {k: v.to(self.context.device) for k, v in a.items() if k not in names}
        n = len(data.train)
        fixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: options.examples]

        def on(parameters: Parameters, chosen: Tensor) -> Tensor:
            chosen = chosen.to(data.train.x.device)
            own = {k: v.clone() for k, v in buffers.items()}
            batch = task.batch(data.train, chosen)
            return task.loss(functional_call(module, {**own, **parameters}, (batch.x,)), batch)

        def loss(parameters: Parameters, step: int) -> Tensor:
            generator = torch.Generator().manual_seed(options.seed * options.steps + step)
            return on(parameters, torch.randint(n, (min(options.batch_size, n),), generator=generator))

        @torch.no_grad()
        def check(parameters: Parameters) -> float:
            return float(on(parameters, fixed))

        return loss, check

    def _match_activations(
        self, symmetry: Symmetry, batch: int, a: dict[str, Tensor], b: dict[str, Tensor]
    ) -> Matching:
        options, data = self.context.config.rebasin, self.context.data_on_host
        total = max(min(options.examples, len(data.train)) // batch, 1)
        watch = self._watch(total)
        done = itertools.count(1)

        def batches() -> Iterator[Tensor]:
            drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
            for part in drawn[: batch * total].split(batch):
                yield data.inputs(data.train, part)

        centred = options.similarity is Similarity.correlation
        return activation_matching(
            symmetry, a, b, batches(), centred, lambda: watch(min(next(done), total), "comparing units")
        )


def _midpoint(a: Tensor, b: Tensor) -> Tensor:
    return torch.lerp(a, b, 0.5) if a.is_floating_point() else a
