"""fit-curve: train the control points between two endpoints so that the whole path has low loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.families.options import Sampling
from modeconn_cli.networks import read_metadata, read_state, write_control_points
from modeconn_cli.results import Result, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.find import run_around
from modeconn_cli.runs.references import parse
from modeconn_cli.runs.sums import sha256
from modeconn_cli.stages.endpoints import CHECKPOINT, Endpoint, pair_label
from modeconn_cli.stages.referenced import path_of
from modeconn_cli.training.loop import Trainer, steps_per_epoch
from modeconn_cli.training.recipe import recipe
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.fitting import fit
from modeconn_cli.work.stage import Stage

WEIGHT = 4  # bytes of a float32


@command(
    "fit-curve",
    panel="join",
    help="Fit a low-loss curve between two endpoints, and measure it beside the straight line.",
    more="Endpoints that are missing are trained first. curve=bezier, chain or custom, curve.bends=N. seed=N is "
    "replicate N: endpoint seeds 2N and 2N+1 and the curve's own draws, independent of every other replicate.",
    introduction="trains two networks that differ in their seed, measures the straight line between them, bends a "
    "curve around the barrier, and says with intervals whether each path joins them.",
    examples=[
        "dataset=fashion_mnist curve.bends=2",
        "--multirun seed=0,1,2,3",
        "architecture=custom architecture.target=nets.py:Net",
    ],
    networks=True,
)
def request(context: Context) -> Request:
    from modeconn_cli.stages.evaluate import MeasuredCurve
    from modeconn_cli.stages.interpolate import Segment
    from modeconn_cli.stages.plot import Plot
    from modeconn_cli.stages.rebasin import ends_of_path

    start, end = ends_of_path(context, FitCurve.name)
    curve, segment = curve_between(context, start, end), Segment(context, start, end)
    measured = MeasuredCurve(context, curve)
    return Request(own=[curve, measured, Plot(context, [segment, measured])], beside=[start, end, segment])


class FitCurve(Stage):
    """A curve whose directory holds every control point in checkpoint.safetensors, as ``<k>.<parameter>``."""

    name = "fit-curve"
    makes = "curve"
    groups = ("seed", "rebasin", "curve")

    def __init__(self, context: Context, start: Endpoint, end: Endpoint) -> None:
        super().__init__(context, [start, end])
        self.start, self.end = start, end
        options = context.config.curve
        self.seed = context.config.seed if options.seed is None else options.seed
        self.path = options.family()

    @property
    def label(self) -> str:
        return f"{self.context.label}-{pair_label(self.start, self.end)}-{self.context.config.curve.tag}"

    @property
    def family(self) -> str:
        return str(self.context.config.curve.kind)

    def fields(self) -> dict[str, Any]:
        options = self.context.config.curve
        fields = {"recipe": recipe(options), "kind": self.family, **options.own(), "seed": self.seed}
        if not options.fix_start or not options.fix_end:
            fields["fixed"] = [options.fix_start, options.fix_end]
        if options.t_sampling is not Sampling.stratified:
            fields["t_sampling"] = str(options.t_sampling)
        if self.begun_from is not None:
            fields["init_from"] = sha256(self.begun_from[0])
        return fields

    @cached_property
    def begun_from(self) -> tuple[Path, list[Path]] | None:
        """The checkpoint of the curve that this one starts from, if any, and its run."""
        init_from = self.context.config.curve.init_from
        if not init_from:
            return None
        try:
            return curve_of(init_from, self.context.root)
        except UserError as error:
            raise UserError(f"curve.init_from: {error}") from None

    def made_from(self) -> Sequence[Path]:
        return () if self.begun_from is None else self.begun_from[1]

    @property
    def gradient_steps(self) -> int:  # type: ignore[override]
        options = self.context.config.curve
        return options.epochs * steps_per_epoch(len(self.context.data_on_host.train), options.batch_size)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """Control points, and a gradient and a velocity of each that is trained."""
        return 3 * self.path.vertices * self.context.parameters * WEIGHT

    def check(self) -> None:
        """Raise UserError now, before anything is written, for a curve to start from that does not fit."""
        if self.begun_from is not None:
            self._initial(self.context.net(0), None)

    def compute(self, run: Run) -> Result:
        options = self.context.config.curve
        net = self.context.net(self.seed)
        ends = end_points(net, self.start, self.end)
        control_points = self._initial(net, ends)
        first, last = int(options.fix_start), len(control_points) - int(options.fix_end)
        trainer = Trainer(
            net,
            self.path,
            control_points,
            slice(first, last),
            self.context.training_task(options),
            options,
            self.seed,
            options.t_sampling,
        )
        fit(trainer, run, self.context)
        write_control_points(run, net, control_points, self.family)
        made = {"task": task_note(self.context.task), "parameters": net.size, "gradient_steps": trainer.total_steps}
        return Result(options.title, networks=[CHECKPOINT], more=made)

    def control_points(self, net: FlatModule) -> Tensor:
        """W (K, P) as fitted, on the network's device."""
        return read_curve(self.result.folder / CHECKPOINT, net, self.family, self.path.vertices)

    def _initial(self, net: FlatModule, ends: Tensor | None) -> Tensor:
        """W (K, P) to start from, with these endpoints (2, P) where they are given."""
        if self.begun_from is not None:
            W_kp = read_curve(self.begun_from[0], net, self.family, self.path.vertices)
        else:
            assert ends is not None
            share = torch.as_tensor(np.linspace(0, 1, self.path.vertices), dtype=ends.dtype, device=ends.device)
            W_kp = torch.lerp(ends[:1], ends[1:], share[:, None])
        if ends is not None:
            W_kp[[0, -1]] = ends  # exactly, whatever lerp rounds to
        return W_kp


def curve_of(text: str, root: Path) -> tuple[Path, list[Path]]:
    """The checkpoint of a whole curve, by reference, and the runs that it comes from.

    Raises:
        UserError: there is none, or one network is meant.
    """
    reference = parse(text)
    if reference.selects:
        raise UserError(f"{text} is one network, and a curve starts from a whole curve: give RUN, or its checkpoint.")
    if reference.file is not None:
        return reference.file, run_around(reference.file)
    run = reference.run(root)
    path = path_of(run)
    file = None if path is None or path.networks.family is None else path.networks[0].file
    if file is None:
        raise UserError(f"{text}: {run.folder} holds no curve; give a run of modeconn fit-curve.")
    return file, [file.parent]


def read_curve(file: Path, net: FlatModule, kind: str, control_points: int) -> Tensor:
    """Control points (K, P) from a curve's checkpoint.

    Raises:
        UserError: the file is of another kind of path, another number of points or another architecture.
    """
    state = read_state(file)
    found = read_metadata(file)
    wanted = {"path": kind, "control_points": control_points}
    if found != wanted:
        raise UserError(
            f"{file} holds {found.get('path', 'no path')} with {found.get('control_points', 'no')} control "
            f"points; wanted {kind} with {control_points}: set curve.kind and curve.bends to match."
        )
    names = [f"{k}.{name}" for k in range(control_points) for name in net.names]
    shapes = [shape for _ in range(control_points) for shape in net.shapes]
    if set(names) != set(state) or any(state[n].shape != s for n, s in zip(names, shapes, strict=True)):
        raise UserError(f"{file} was fitted to another architecture than this one.")
    return torch.stack([net.flatten({n: state[f"{k}.{n}"] for n in net.names}) for k in range(control_points)])


def end_points(net: FlatModule, start: Endpoint, end: Endpoint) -> Tensor:
    """The two endpoints' coordinates (2, P).

    Raises:
        UserError: they are the same point, or differ in parameters that are frozen.
    """
    states = [start.state(), end.state()]
    W_2p = torch.stack([net.flatten(s) for s in states])
    if torch.equal(W_2p[0], W_2p[1]) and end.aligned_by is None:  # which may bring them together
        raise UserError(
            "the two endpoints are the same point of weight space, so there is no path between them: give two "
            "different seeds or checkpoints."
        )
    frozen = [n for n, p in net.module.named_parameters() if not p.requires_grad]
    moved = [n for n in frozen if not torch.equal(states[0][n], states[1][n])]
    if moved:
        raise UserError(
            f"the endpoints differ in {moved[0]}, which the architecture freezes: frozen weights are not coordinates "
            "of a path, so they must agree. endpoints.init_seed=0 gives all endpoints one initialisation."
        )
    return W_2p


def curve_between(context: Context, start: Endpoint, end: Endpoint) -> FitCurve:
    """The curve that the configuration asks for, checked before anything is written."""
    curve = FitCurve(context, start, end)
    curve.check()
    if len(curve.path.coordinates) > 1 and context.task.verdict.convention == "midpoint":
        raise UserError(
            f"task.verdict_convention=midpoint: the {context.config.curve.title} is a surface over "
            f"{', '.join(curve.path.coordinates)} and has none; use above_line, above_mean or above_max."
        )
    return curve
