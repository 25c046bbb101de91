"""connect and fit_curve: paths between two live networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from modeconn_cli.data.options import Dataset
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.chance import at_chance
from modeconn_cli.families.base import Family
from modeconn_cli.families.custom import check_ends
from modeconn_cli.families.options import Curve
from modeconn_cli.interface.given import data_of, task_of
from modeconn_cli.interface.live import (
    Live,
    LiveContext,
    LiveEndpoint,
    Model,
    architecture_of,
    given_ends,
)
from modeconn_cli.interface.options import configured
from modeconn_cli.interface.paths import ModePath, draw, mode_path
from modeconn_cli.interface.process import Listener, at_work, directory
from modeconn_cli.matching.options import Pairwise, methods
from modeconn_cli.models.options import Architecture
from modeconn_cli.report.tables import barrier_rows, connection
from modeconn_cli.results import read_summary
from modeconn_cli.settings import Config
from modeconn_cli.stages.connect import epochs_of_a_first_answer, paths_between
from modeconn_cli.stages.curve import curve_between
from modeconn_cli.stages.evaluate import MeasuredCurve
from modeconn_cli.stages.rebasin import Aligned
from modeconn_cli.work.command import Request
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.plan import plan_of
from modeconn_cli.work.recorded import OBJECT
from modeconn_cli.work.stage import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = ("curve", "interpolation", *Aligned.groups, "task", "runtime")
NAMES = ("model_a", "model_b")


@dataclass(frozen=True, eq=False, repr=False)
class Connection:
    """Whether two networks are connected, and the paths that were tried.

    Attributes:
        answer: "linearly connected", "connected after alignment", "connected by a curve", "not connected" or
            "undecided".
        verdict: the same in a sentence, with the barrier behind it, its interval, convention and threshold.
        paths: by "segment", "aligned" and "curve", those that were measured.
        notes: remarks, as what could not be tried and why.
    """

    answer: str
    verdict: str
    paths: dict[str, ModePath]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(repr(p) for p in self.paths.values()), *self.notes])

    @property
    def connected(self) -> bool | None:
        """Whether any of the paths connects them; None: undecided."""
        return {"not connected": False, "undecided": None}.get(self.answer, True)

    @property
    def barriers(self) -> pd.DataFrame:
        """A row a path: the ends, the maximum and every barrier of the training loss and of the verdict's metric.

        A convention's column is its value; ``<convention>_low`` and ``_high`` are its interval.
        """
        rows = []
        for row in barrier_rows([p.result for p in self.paths.values()]):
            flat: dict[str, Any] = {}
            for key, value in row.items():
                if isinstance(value, dict):
                    flat |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
                else:
                    flat[key] = value
            rows.append(flat)
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None, metric: str | None = None) -> Axes:
        """Draw a metric along all paths; see :meth:`ModePath.plot`."""
        return draw([*self.paths.values()], ax, metric)


def connect(
    model_a: Model,
    model_b: Model,
    data: Any,
    *,
    task: Any = "auto",
    align: bool | str | None = None,
    curve: bool | str | None = None,
    architecture: nn.Module | None = None,
    names: tuple[str, str] = NAMES,
    output_dir: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Connection:
    """Whether two networks are connected: by the straight line, or after alignment, or else by a curve.

    The networks given stay as they are; work is done on copies, on the device where they are.

    Args:
        model_a, model_b: torch modules of one architecture; or a state_dict, a checkpoint file or a reference such as
            "RUN@t=0.3" for either, where the other or ``architecture`` is a module.
        data: inputs as the networks take them, with targets: a pair (x, y) of tensors x (N, ...), y (N, ...), a torch
            Dataset or a DataLoader; or a pair (train, test) of these. BatchNorm and curves see the training split, the
            verdict is on the test split. Every example counts once, without shuffling. Or a data set's name, "digits".
        task: "auto" (classes, or else numbers), "classify", "regress", a function of output and target, or a Task.
        align: whether to measure the line to model_b aligned; None: where the line itself does not connect. A method
            ("weight", "activation", "straight_through", "sinkhorn") chooses it.
        curve: whether to fit a curve; None: where nothing simpler connects. "bezier" or "chain" chooses its kind.
        architecture: a module of the architecture with any weights.
        names: what the two are called in sentences.
        output_dir: keep run directories here, and answer from them another time; None: no file is left.
        progress: whether a bar shows; None: in a notebook and at a terminal.
        options: any setting by its name: points, search_max, confidence, bends, epochs, lr, weight_decay, seed ...; or
            with its group, ``**{"interpolation.batch_size": 500}``.

    Raises:
        UserError: something of this does not fit. RunFailed: a loss became NaN. Interrupted: Ctrl-C.

    >>> import torch
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    >>> found = connect(*nets, (x, (x[:, 0] > 0).long()), align=False, curve=False, points=3, search_max=0)
    >>> list(found.paths), list(found.paths["segment"].table["t"])
    (['segment'], [0.0, 0.5, 1.0])
    """
    method = method_of(align, "align") if isinstance(align, str) else "weight"
    options |= {"curve": curve} if isinstance(curve, str) else {}
    asked = request((model_a, model_b), data, task, architecture, names, output_dir, progress, GROUPS, options)
    with asked as (context, listener, start, end):
        if not {"epochs", "curve.epochs"} & options.keys():
            epochs = epochs_of_a_first_answer(context.config.curve, len(context.data_on_host.train))
            context = context.having(curve=replace(context.config.curve, epochs=epochs))
        found = {k: mode_path(p, _history(p)) for k, p in _tried(context, start, end, align, curve, method).items()}
        verdicts = [_verdict(p) for p in found.values()]
        metrics = next(iter(found.values())).result.metrics
        lost = at_chance({e.short_name: e.metrics() for e in (start, end)}, context.task_on_host)
        listener.notes += [lost] if lost else []
        return Connection(*connection(verdicts, start.short_name, end.short_name, metrics), found, listener.notes)


def _tried(
    context: LiveContext, start: LiveEndpoint, end: LiveEndpoint, align: Any, curve: Any, method: str
) -> dict[str, MeasuredPath]:
    """The paths that are asked for, or else wanted because none before them connects."""

    def measure(aligned: bool, curved: bool) -> dict[str, MeasuredPath]:
        made, measured = paths_between(context, start, end, method if aligned else None, curved)
        carry_out(context, [*made, *measured], (start, end))
        return dict(zip(["segment", *["aligned"] * aligned, *["curve"] * curved], measured, strict=True))

    paths = measure(bool(align), bool(curve))
    if align is None and not _joined(paths):
        try:
            paths = measure(True, bool(curve))
        except UserError as error:  # it is not asked for, and a curve may join them still
            context.reporter.say(f"not aligned: {error}")
    if curve is None and not _joined(paths):
        paths = measure("aligned" in paths, True)
    return paths


def fit_curve(
    model_a: Model,
    model_b: Model,
    data: Any,
    *,
    task: Any = "auto",
    kind: str | Family = "bezier",
    architecture: nn.Module | None = None,
    names: tuple[str, str] = NAMES,
    output_dir: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ModePath:
    """A curve of low loss between two networks, trained and measured.

    Args:
        model_a, model_b, data, task, architecture, names, output_dir, progress, options: as for :func:`connect`.
            Here they are bends, epochs, lr, batch_size, optimizer, weight_decay (0 where not given), seed, points ...
        kind: "bezier" or "chain", or a :class:`modeconn_cli.families.base.Family` of your own, whose first and last
            control points are the networks.

    Raises:
        UserError, RunFailed, Interrupted: as for :func:`connect`.

    >>> import torch
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    >>> found = fit_curve(*nets, (x, (x[:, 0] > 0).long()), epochs=2, points=3, search_max=0)
    >>> found.title, found.at(0.5).weight.shape, len(found.history)
    ('Bezier curve, 1 bend', torch.Size([2, 3]), 2)
    """
    options |= {"curve": kind} if isinstance(kind, str) else {}
    asked = request((model_a, model_b), data, task, architecture, names, output_dir, progress, GROUPS, options)
    with asked as (context, _, start, end):
        if not isinstance(kind, str):
            context = context.having(curve=GivenCurve(kind, context.config.curve))
        measured = MeasuredCurve(context, curve_between(context, start, end))
        carry_out(context, [measured], (start, end))
        return mode_path(measured, _history(measured))


class GivenCurve(Curve):
    """How a family is trained that is an object."""

    def __init__(self, family: Family, asked: Curve) -> None:
        super().__init__(**{f.name: getattr(asked, f.name) for f in fields(Curve)})
        name = type(family).__name__
        check_ends(family, name)
        self.made, self.kind = family, name

    def family(self) -> Family:
        return self.made

    def own(self) -> dict[str, Any]:
        """A class may make many families, so one is known by what it computes."""
        drawn = np.ascontiguousarray(self.made.coefficients(self.made.grid(65)))
        return {"coefficients": hashlib.sha256(drawn.tobytes()).hexdigest()}


@contextmanager
def request(
    models: tuple[Model, Model],
    data: Any,
    task: Any,
    architecture: nn.Module | None,
    names: tuple[str, str],
    output_dir: str | Path | None,
    progress: bool | None,
    groups: tuple[str, ...],
    options: dict[str, Any],
) -> Iterator[tuple[LiveContext, Listener, LiveEndpoint, LiveEndpoint]]:
    """One call's context, who is told of its work, and its two ends."""
    with at_work(progress) as listener, directory(output_dir) as root:
        if hasattr(task, "data") and data is not None:
            raise UserError("the task holds its data already, and data is given too: give data=None.")
        device = architecture_of(models, architecture)[1]
        config = _config(data, task, groups, options, str(root), str(device))
        live = live_of(models, architecture, data, task, config, listener.notes)
        described = replace(
            config,
            dataset=Dataset(name=data if isinstance(data, str) else "data", source=OBJECT),
            architecture=Architecture(name=type(live.architecture).__name__, family=OBJECT),
            runtime=replace(config.runtime, save_every=config.runtime.save_every if output_dir else 1e9),
        )
        context = LiveContext(described, live, listener)
        context.settle_threads()
        yield context, listener, *given_ends(context, models, names)


def live_of(
    models: tuple[Model, Model], architecture: nn.Module | None, data: Any, task: Any, config: Config, notes: list[str]
) -> Live:
    """The network and the task of what a caller gave."""
    module, _ = architecture_of(models, architecture)
    dtype = next(p.dtype for p in module.parameters())
    examples = task.data if hasattr(task, "data") else data_of(data, config, dtype, notes)
    return Live(module, task_of(task, examples, config, module, normalised=isinstance(data, str)))


def _config(data: Any, task: Any, groups: tuple[str, ...], options: dict[str, Any], root: str, device: str) -> Config:
    base = ["endpoints.weight_decay=0", "curve.weight_decay=0"]
    base += [f"task={task}"] if isinstance(task, str) else []
    base += [f"dataset={data}"] if isinstance(data, str) else []
    if task == "regress" and not isinstance(data, str):
        base.append("task.normalise=false")  # the networks answer in the targets' unit
    given = {"runtime.output_dir": root, "runtime.device": device, **options}
    return configured(groups, given, base)


def carry_out(context: LiveContext, stages: list[Any], beside: tuple[Stage, ...]) -> None:
    """Bring stages into being, and what they stand on."""
    plan_of(context, Request(own=stages, beside=beside)).execute([])


def method_of(text: str, argument: str) -> str:
    """How two networks are aligned, by its name.

    Raises:
        UserError: there is none of that name; ``argument``: what it was given as.
    """
    able = methods(Pairwise)
    if text not in able:
        raise UserError(f"{argument}={text}: no such method; there are {', '.join(able)}.")
    return text


def _joined(paths: dict[str, MeasuredPath]) -> bool:
    summaries = [read_summary(p.result.folder, p.question) for p in paths.values()]
    return any(s["verdict"]["connected"] == "yes" for s in summaries)


def _verdict(path: ModePath) -> dict[str, Any]:
    summary = path.summary
    return {"path": path.title, **summary["verdict"], "confidence": summary["intervals"]["confidence"]}


def _history(path: MeasuredPath) -> pd.DataFrame | None:
    """The epochs of the training behind a path, if there was any."""
    if not isinstance(path, MeasuredCurve):
        return None
    return pd.read_csv(path.curve.result.folder / "metrics.csv")
