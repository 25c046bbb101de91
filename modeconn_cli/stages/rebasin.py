"""rebasin: the second endpoint, permuted so that it computes the same and lies near the first."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation import require_same
from modeconn_cli.runs import Run
from modeconn_cli.schema import Config, Interpolation, Match, Similarity, check, fields_off_default
from modeconn_cli.stages.checkpoints import write_state
from modeconn_cli.stages.context import Context, Silent
from modeconn_cli.stages.endpoints import Endpoint, pair_label
from modeconn_cli.symmetry.axes import Leaf, leaves
from modeconn_cli.symmetry.graph import CannotTrace, trace
from modeconn_cli.symmetry.groups import Axes, Symmetry, symmetry_of
from modeconn_cli.symmetry.matching import Matching, activation_matching, weight_matching
from modeconn_cli.symmetry.written import read_groups, write_groups

CERTIFIED_ON = 64  # examples
TOLERANCE = 1e-10  # relative, in float64
ACTIVATION_BATCH = 100


class Aligned(Endpoint):
    """The second endpoint after re-basin: checkpoint.safetensors, and how it came about.

    permutation.safetensors needs nothing of this project: for every ``<tensor>:<dim>`` it holds the indices with which
    ``index_select`` along that dimension makes the aligned tensor from the second endpoint's. merged.safetensors is
    the midpoint of the first endpoint and the aligned one.
    """

    name = "rebasin"

    def __init__(self, context: Context, start: Endpoint, end: Endpoint) -> None:
        super().__init__(context)
        self.upstream = [start, end]
        self.start, self.end = start, end
        self.short_name = f"{end.short_name} aligned"
        self.suffix = f"-{context.config.rebasin.method}"

    @property
    def label(self) -> str:
        return f"{self.context.label}-{pair_label(self.start, self)}"

    @property
    def original(self) -> Endpoint:
        return self.end

    def fields(self) -> dict[str, Any]:
        options = fields_off_default(self.context.config.rebasin)
        unused = {"weight": ("examples", "similarity"), "activation": ("restarts", "sweeps", "seed")}
        fields = {k: v for k, v in options.items() if k not in unused[str(self.context.config.rebasin.method)]}
        if "groups" in fields:  # what is in the file, wherever it is
            fields["groups"] = hashlib.sha256(self._groups_text.encode()).hexdigest()
        return fields

    @cached_property
    def _traced(self) -> tuple[nn.Module, Symmetry, int]:
        """The network on the CPU, its groups, and the batch that they were traced with."""
        options = self.context.config.rebasin
        data = self.context.data_on_host
        matched = options.method is Match.activation
        batch = min(ACTIVATION_BATCH, options.examples, len(data.train)) if matched else 2
        torch.manual_seed(0)
        module = self.context.module().eval()
        if options.groups is not None:
            if matched:
                raise UserError(
                    "rebasin=activation compares what units compute, which takes the graph and not only the groups: "
                    "drop rebasin.groups, or use rebasin=weight."
                )
            return module, read_groups(self._groups_text, module.state_dict(), options.groups), batch
        try:
            return module, trace(module, data.inputs(data.train, slice(0, batch))), batch
        except CannotTrace as error:
            raise UserError(
                f"{error}. Write its groups into a file (modeconn symmetries --output groups.yaml begins one) and give "
                "rebasin.groups=groups.yaml, or set rebasin=none."
            ) from None

    @cached_property
    def _groups_text(self) -> str:
        file = Path(str(self.context.config.rebasin.groups))
        if not file.is_file():
            raise UserError(f"rebasin.groups: no file {file}.")
        return file.read_text(encoding="utf-8")

    def check(self) -> None:
        """Raise UserError now, before anything is written, for a network that cannot be traced or has no symmetry."""
        if self.locate(False).status == "cached":
            return
        _, symmetry, _ = self._traced
        if not symmetry.groups:
            unknown = ", ".join(symmetry.unknown)
            because = f": {unknown} hold every axis in its place" if unknown else ""
            raise UserError(
                f"this network has no permutation that leaves its function alone{because}; set rebasin=none."
            )

    def compute(self, run: Run) -> None:
        module, symmetry, batch = self._traced
        a, b = self.start.state(), self.end.state()
        found = self._match(module, symmetry, batch, a, b)
        aligned = symmetry.permute(b, found.permutations)
        certificate = certify(module, symmetry, b, aligned, self._examples())
        if certificate["difference"] > TOLERANCE or certificate["control"] <= TOLERANCE:
            raise RunFailed(
                f"the permuted network is not the same function: outputs differ by {certificate['difference']:.1e} of "
                f"the largest (a broken permutation: {certificate['control']:.1e}). Please report the network."
            )
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
                "start": found.start,
                "groups": [
                    {"name": g.name, "size": g.size, "moved": m} for g, m in zip(symmetry.groups, moved, strict=True)
                ],
                "pinned_by": symmetry.unknown,
                "certificate": certificate,
            },
        )
        measured = {}
        for split, scores in evaluator.scores().items():
            measured[f"{split}_nll"], measured[f"{split}_error"] = scores.means
        require_same(self.end.metrics(), measured, f"{self.short_name}")

    def _match(
        self, module: nn.Module, symmetry: Symmetry, batch: int, a: dict[str, Tensor], b: dict[str, Tensor]
    ) -> Matching:
        options, reporter = self.context.config.rebasin, self.context.reporter
        if options.method is Match.weight:
            device = self.context.device

            def swept(start: int, sweep: int, objective: float) -> None:
                reporter.progress(start, options.restarts + 1, f"sweep {sweep + 1} objective {objective:.4f}")
                self.context.signals.check()

            names = [n for n, _ in module.named_parameters()]
            first, second = ({k: v.to(device) for k, v in state.items()} for state in (a, b))
            return weight_matching(
                symmetry, first, second, names, options.seed, options.restarts, options.sweeps, watch=swept
            )
        total = max(min(options.examples, len(self.context.data_on_host.train)) // batch, 1)
        done = 0

        def compared() -> None:
            nonlocal done
            done = min(done + 1, total)
            reporter.progress(done, total, "comparing units")
            self.context.signals.check()

        centred = options.similarity is Similarity.correlation
        return activation_matching(symmetry, a, b, self._batches(batch, total), centred, compared)

    def _batches(self, batch: int, total: int) -> Iterator[Tensor]:
        data = self.context.data_on_host
        drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
        for part in drawn[: batch * total].split(batch):
            yield data.inputs(data.train, part)

    def _examples(self) -> Tensor:
        data = self.context.data_on_host
        return data.inputs(data.test, slice(0, CERTIFIED_ON))


def groups_of(config: Config, output: Path | None = None) -> dict[str, Any]:
    """A configured architecture's permutation groups, the axes that each runs along, and what stays in place.

    Args:
        output: also written there, as rebasin.groups reads it. A network that cannot be traced is written there with
            every dimension in its place.

    Raises:
        UserError: it cannot be traced, or the file is there.
    """
    check(config)
    context = Context(config, Silent())
    data = context.data_on_host
    module = context.module().eval()
    if output is not None and output.exists():
        raise UserError(f"{output} is there already; give another name.")
    try:
        if config.rebasin.groups is not None:
            symmetry = read_groups(Path(config.rebasin.groups).read_text(), module.state_dict(), config.rebasin.groups)
        else:
            symmetry = trace(module, data.inputs(data.train, slice(0, 2)))
    except CannotTrace as error:
        if output is None:
            raise UserError(f"{error}. To write its groups by hand, begin with --output groups.yaml.") from None
        still: dict[str, Axes] = {k: [Leaf(n, pinned=True) for n in v.shape] for k, v in module.state_dict().items()}
        output.write_text(write_groups(symmetry_of(still), module.state_dict()), encoding="utf-8")
        raise UserError(
            f"{error}. {output} has all its tensors with every dimension in its place: give the dimensions that may "
            "move names, and then rebasin.groups=" + str(output) + "."
        ) from None
    if output is not None:
        output.write_text(write_groups(symmetry, module.state_dict()), encoding="utf-8")
    number = {g.leaf: i for i, g in enumerate(symmetry.groups)}
    along: list[list[str]] = [[] for _ in symmetry.groups]
    in_place = []
    for name, axes in symmetry.axes.items():
        met = {number[leaf] for axis in axes for leaf in leaves(axis) if leaf in number}
        for dim, axis in enumerate(axes):
            for i in {number[leaf] for leaf in leaves(axis) if leaf in number}:
                along[i].append(f"{name}[{dim}]")
        if not met and axes:
            in_place.append(name)
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "groups": [{"size": g.size, "along": a} for g, a in zip(symmetry.groups, along, strict=True)],
        "in_place": in_place,
        "unknown_operations": symmetry.unknown,
        "log10_symmetries": sum(math.lgamma(g.size + 1) for g in symmetry.groups) / math.log(10),
    }


@torch.no_grad()
def certify(
    module: nn.Module, symmetry: Symmetry, before: dict[str, Tensor], after: dict[str, Tensor], x: Tensor
) -> dict[str, Any]:
    """How far the permuted network's outputs are from the original's, in float64 on real inputs.

    ``difference``: the largest over outputs, relative to the largest output. ``control``: the same for a permutation
    that is broken on purpose, moving one group in a single tensor; it shows that a wrong one would be seen.
    """
    exact = copy.deepcopy(module).double().eval()
    generator = torch.Generator().manual_seed(0)

    def outputs(state: dict[str, Tensor]) -> Tensor:
        exact.load_state_dict(state)
        found: Tensor = exact(x.double())
        return found

    wanted = outputs(before)
    scale = float(wanted.abs().max()) or 1.0
    control = 0.0
    for i, group in enumerate(symmetry.groups):
        permutations = symmetry.identity()
        permutations[i] = torch.roll(torch.randperm(group.size, generator=generator), 1)
        name = group.tensor
        broken = {**before, name: symmetry.permute({name: before[name]}, permutations)[name]}
        control = max(control, float((outputs(broken) - wanted).abs().max()) / scale)
        if control > 1e-6:
            break
    difference = float((outputs(after) - wanted).abs().max()) / scale
    return {"difference": difference, "control": control, "examples": len(x), "dtype": "float64"}


def _midpoint(a: Tensor, b: Tensor) -> Tensor:
    return torch.lerp(a, b, 0.5) if a.is_floating_point() else a
