"""rebasin: the second endpoint, permuted so that it computes the same and lies near the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError, listed
from modeconn_cli.evaluation.buffers import midpoint
from modeconn_cli.evaluation.evaluator import require_same
from modeconn_cli.evaluation.options import BatchNorm, Interpolation, Renormalise
from modeconn_cli.evaluation.statistics import norm_layers
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import taken
from modeconn_cli.matching.given import Given
from modeconn_cli.matching.options import AsTheyAre, Method, Pairwise, Together, methods
from modeconn_cli.networks import write_state
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.endpoints import Endpoint, endpoints, pair_label, two_of
from modeconn_cli.stages.symmetries import groups_text
from modeconn_cli.symmetry.certificate import certify_all, refuse_wrong
from modeconn_cli.symmetry.graph import CannotTrace, trace
from modeconn_cli.symmetry.groups import FROZEN, Symmetry, held
from modeconn_cli.symmetry.written import read_groups
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver
from modeconn_cli.work.stage import Stage

CERTIFIED_ON = 64  # examples
MIDPOINT = "merged.safetensors"


@command(
    "rebasin",
    panel="align",
    help="Align the second endpoint with the first, and measure the line between them before and after.",
    more="rebasin=weight (the default here), activation, straight_through or sinkhorn; merge_many or c2m3 for "
    "any number of endpoints. Writes the permutation, the aligned and the merged "
    "network, and a certificate that the function is the same. interpolate and fit-curve take rebasin=weight too.",
    chooses={"rebasin": "weight"},
    networks=True,
)
def request(context: Context) -> Request:
    options, given = context.config.rebasin, endpoints(context)
    if not isinstance(options, Method):
        raise UserError(
            f"rebasin={options.method} aligns nothing: choose rebasin={', '.join(methods(Method))}, or measure the "
            "line as it is with modeconn interpolate."
        )
    if isinstance(options, Together):
        return merge(context, given)
    if len(given) > 2:
        raise UserError(
            f"modeconn rebasin joins two endpoints by rebasin={options.method}, and {len(given)} are given: "
            f"use rebasin={' or rebasin='.join(methods(Together))} for more."
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
        rebasin = config.rebasin if to is aligned else AsTheyAre()
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
    if not isinstance(context.config.rebasin, Method):
        return None
    if isinstance(context.config.rebasin, Together):
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

    @property
    def method(self) -> Method:
        options = self.context.config.rebasin
        assert isinstance(options, Method)
        return options

    def fields(self) -> dict[str, Any]:
        fields = {"method": str(self.method.method), **self.method.own()}
        if "groups" in fields:  # what is in the file, wherever it is
            fields["groups"] = hashlib.sha256(self._groups_text.encode()).hexdigest()
        return fields

    @cached_property
    def traced(self) -> tuple[nn.Module, Symmetry, int]:
        """The network on the CPU, its groups, and the batch that they were traced with."""
        options = self.method
        batch = options.traced_with(len(self.context.data_on_host.train))
        groups = None if options.groups is None else self._groups_text
        asked = f"{self.context.task_fields()} {options.takes_graph} {batch} {groups}"
        return self.context.recent("traced", asked, lambda: self._trace(batch))

    def _trace(self, batch: int) -> tuple[nn.Module, Symmetry, int]:
        options, data = self.method, self.context.data_on_host
        torch.manual_seed(0)
        module = evaluating(self.context.module())
        beyond = [n for n, p in module.named_parameters() if p.is_complex()]
        if beyond:
            raise UserError(f"{beyond[0]} is complex, and re-basin matches real weights: use interpolate or fit-curve.")
        if options.groups is not None:
            if options.takes_graph:
                raise UserError(
                    f"rebasin={options.method} compares what units compute, which takes the graph and not only the "
                    "groups: drop rebasin.groups, or use rebasin=weight."
                )
            symmetry = held(read_groups(self._groups_text, module.state_dict(), options.groups), module)
            refuse_wrong(module, symmetry, self.examples(), options.groups)
            return module, symmetry, batch
        try:
            return module, trace(module, taken(module, data.inputs(data.train, slice(0, batch)))), batch
        except CannotTrace as error:
            raise UserError(
                f"{error}. Write its groups into a file (modeconn symmetries --output groups.yaml begins one) and give "
                "rebasin.groups=groups.yaml, or go without re-basin."
            ) from None

    @cached_property
    def _groups_text(self) -> str:
        return groups_text(str(self.method.groups))

    def check(self) -> None:
        """Raise UserError now, before anything is written, for a network that cannot be traced or has no symmetry."""
        options = self.method
        for idle in sorted(options.aside):
            self.context.reporter.say(f"rebasin.{idle} changes nothing with rebasin={options.method}")
        if self.locate(False).status == "cached":
            return
        _, symmetry, _ = self.traced
        if not symmetry.groups and options.groups is not None:
            raise UserError(
                f"{options.groups} names no dimension: where it has a number, write a name for what may move."
            )
        if not symmetry.groups:
            holds = ", ".join(symmetry.pinned_by)
            because = f": {holds} held every axis in its place" if holds else ""
            raise UserError(f"this network has no permutation that leaves its function alone{because}.")
        if FROZEN in symmetry.pinned_by:
            places = symmetry.pinned_by[FROZEN]
            self.context.reporter.say(
                f"frozen parameters are fixed, and so is the order of the units along {listed(places)}"
            )

    def given(self, states: Sequence[Mapping[str, Tensor]], run: Run) -> Given:
        """What the method is given to match these networks."""
        module, symmetry, batch = self.traced
        context = self.context
        return Given(
            symmetry,
            module,
            batch,
            states,
            context.task,
            context.data_on_host,
            context.device,
            network=lambda: context.net(0).module,
            progress=context.reporter.progress,
            check=context.signals.check,
            memory=Saver(run, context),
        )

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
        return self.end.original

    def compute(self, run: Run) -> Result:
        module, symmetry, _ = self.traced
        a, b = self.start.state(), self.end.state()
        assert isinstance(self.method, Pairwise)
        found = self.method.match(self.given([a, b], run))
        aligned = symmetry.permute(b, found.permutations)
        certificate = certify_all(module, symmetry, [b], [aligned], self.examples())
        write_state(run, "permutation.safetensors", symmetry.moves(b, found.permutations))
        write_state(run, MIDPOINT, midpoint(module, a, aligned))
        net = self.context.net(0)
        net.load(aligned)
        evaluator = self.context.evaluator(net, Interpolation())
        moved = [int((p != torch.arange(len(p))).sum()) for p in found.permutations]
        found_by = {
            "method": str(self.method.method),
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
        }
        result = self.measured(run, evaluator, net, found_by)
        require_same(self.end.metrics(), dict(result.metrics), self.short_name, self.context.task.columns)
        return replace(result, networks=[*result.networks, MIDPOINT])

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        summary = json.loads((run.folder / "summary.json").read_text())
        keep = ("method", "groups", "objective", "objective_is", "objective_before", "objective_after", "certificate")
        return {**super().found(run), "aligned": {"name": self.end.short_name, **{k: summary[k] for k in keep}}}
