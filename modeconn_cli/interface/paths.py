"""A path between two networks as Python has it: figures, pictures, and the network at any of its points."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import Interpolation, Renormalise
from modeconn_cli.families.base import Family, coefficients_at
from modeconn_cli.forward import evaluating
from modeconn_cli.interface.live import Live, LiveContext
from modeconn_cli.interface.process import at_work
from modeconn_cli.networks import Network, Networks
from modeconn_cli.report.plots import PathResult, draw_panel
from modeconn_cli.report.tables import read_path, verdict_sentence
from modeconn_cli.settings import Config
from modeconn_cli.states import matching_state, unpacked
from modeconn_cli.work.measuring import MeasuredPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Measured(ABC):
    """What is known of a measured path."""

    @property
    @abstractmethod
    def result(self) -> PathResult:
        """The figures.

        Raises:
            UserError: there are none, for this is no measured path.
        """

    @abstractmethod
    def state_dict(self, t: float) -> dict[str, Tensor]:
        """The network at t in [0, 1], as :meth:`at` gives it, by name and on the CPU."""

    @abstractmethod
    def at(self, t: float) -> nn.Module:
        """The network at t in [0, 1]: a module of its own, in evaluation mode.

        BatchNorm statistics are re-estimated on the training data, as they were where the path was measured; at an end
        they are that endpoint's own.

        Raises:
            UserError: t is outside, or the path was measured with networks that no weights describe (REPAIR).
        """

    @property
    def title(self) -> str:
        """What the path is, as "Bezier curve, 1 bend"."""
        return self.result.title

    @property
    def table(self) -> pd.DataFrame:
        """A row a point: t, arc length, norm l2, then ``<split>_loss`` and the task's columns, each with its ``_se``.

        Percentages are 0 to 100. ``searched`` marks the points that were added where the training loss is highest.
        """
        return self.result.table

    @property
    def summary(self) -> dict[str, Any]:
        """Barriers by metric and convention with their intervals, the verdict, columns; docs/files.md describes it."""
        return self.result.summary

    @property
    def connected(self) -> bool | None:
        """Whether it connects its ends, by the task's criterion; None: undecided, too near the threshold or of too few
        examples."""
        return {"yes": True, "no": False}.get(self.result.summary["verdict"]["connected"])

    @property
    def verdict(self) -> str:
        """The same in a sentence, with the barriers and their intervals."""
        return verdict_sentence(self.result)

    def plot(self, ax: Axes | None = None, metric: str | None = None) -> Axes:
        """Draw a metric along the path; see :func:`draw`."""
        return draw([self], ax, metric)


def draw(paths: Sequence[Measured], ax: Axes | None = None, metric: str | None = None) -> Axes:
    """Draw a metric along paths, with bands of 1.96 standard errors and a dot at each maximum.

    Args:
        ax: of matplotlib's; None: of a new figure.
        metric: a column of the tables, as "train_loss"; None: the verdict's, as "test_error".

    Raises:
        UserError: there is no such metric, or one of them is a surface.
    """
    results = [p.result for p in paths]
    if any(r.is_surface for r in results):
        raise UserError("a surface is no line: its table has its coordinates, and a picture of its run draws it.")
    metrics = results[0].metrics
    metric = metric or metrics.judged
    if metric not in metrics.names:
        raise UserError(f"metric={metric}: no such metric; there are {', '.join(metrics.names)}.")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    draw_panel(ax, results, metric, metrics.heading(metric))
    ax.legend(frameon=False)
    return ax


@dataclass(frozen=True, eq=False, repr=False)
class ModePath(Measured):
    """A path between two live networks.

    Attributes:
        family: of its coefficients c(t) (K,).
        points: its control points, the rows of W (K, P), each by parameter name.
        buffers: of the networks at its ends.
        history: a row an epoch of its training; None: it was not trained.
    """

    measured: PathResult
    config: Config
    live: Live
    family: Family
    points: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    ends_fixed: tuple[bool, bool]
    history: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"<{self.title}> {self.verdict}"

    @property
    def result(self) -> PathResult:
        return self.measured

    @property
    def networks(self) -> Networks:
        """Its control points, without buffers."""
        k = len(self.points)
        named = (Network(f"control point {i + 1} of {k}", "control point", held=w) for i, w in enumerate(self.points))
        return Networks(tuple(named), self.title)

    def state_dict(self, t: float) -> dict[str, Tensor]:
        asked = self.config.interpolation
        if asked.renormalise is not Renormalise.none:
            raise UserError(
                f"networks along this path were measured with {asked.renormalise}, which is in no weights; take the "
                "path without renormalise."
            )
        if not 0 <= t <= 1:
            raise UserError(f"t={t:g} does not lie on the path; give a number from 0 to 1.")
        options = Interpolation(batch_norm=asked.batch_norm, bn_examples=asked.bn_examples)
        with at_work(progress=False) as reporter:
            context = LiveContext(self.config, self.live, reporter)
            context.settle_threads()
            net = context.net(0)
            W_kp = torch.stack([net.flatten(w) for w in self.points])
            buffers = [{k: v.to(context.device) for k, v in b.items()} for b in self.buffers]
            context.evaluator(net, options).at(W_kp, coefficients_at(self.family, t), buffers, self.ends_fixed)
            return unpacked({k: v.cpu() for k, v in net.state().items()})

    def at(self, t: float) -> nn.Module:
        module = copy.deepcopy(self.live.architecture)
        matching_state(module, self.state_dict(t), "the network", own=True)
        return evaluating(module.to(self.config.runtime.device))


def mode_path(stage: MeasuredPath, history: pd.DataFrame | None = None) -> ModePath:
    """What a finished stage found, without its directory."""
    context = stage.context
    assert isinstance(context, LiveContext)
    net = context.net(0)
    W_kp = stage.control_points(net)
    points = [{k: v.detach().cpu().clone() for k, v in net.named(row).items()} for row in W_kp]
    buffers = [_rest(end.state(), points[0]) for end in (stage.start, stage.end)]
    found = read_path(stage.result.folder, stage.question)
    # Where its networks were is no part of what is asked of it later, and may be gone.
    config = replace(context.config, runtime=replace(context.config.runtime, device=str(context.device)))
    return ModePath(found, config, context.live, stage.path, tuple(points), tuple(buffers), stage.ends_fixed, history)


def _rest(state: Mapping[str, Tensor], coordinates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k not in coordinates}
