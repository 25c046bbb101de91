"""A path between two networks, measured on a grid and at a searched maximum, into path.csv and summary.json.

So is a surface, a family over several coordinates, on its grid alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.evaluator import Evaluator, Scores, gram, metrics, require_same, search_maximum
from modeconn_cli.evaluation.measured import (
    KEPT_BYTES,
    METHOD,
    SPLITS,
    Measured,
    Question,
    judged,
    split_note,
    statistics,
    unpack,
)
from modeconn_cli.evaluation.options import BatchNorm, Renormalise
from modeconn_cli.families.base import Array, Family, coefficients_at, end_coordinates, overrides
from modeconn_cli.families.geometry import distances, geometry
from modeconn_cli.networks import write_state
from modeconn_cli.results import SCORES, Result, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import fields_off_default
from modeconn_cli.tasks.base import Column
from modeconn_cli.training.recipe import Optimizer
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver
from modeconn_cli.work.stage import Stage

By = dict[str, Scores]  # by split
Coordinates = tuple[float, ...]


class End(Protocol):
    """A network at an end of a path. aligned_by: the method that permuted it, if any."""

    short_name: str
    aligned_by: str | None

    def state(self) -> dict[str, Tensor]:
        """Its weights and buffers."""

    def metrics(self) -> dict[str, float]:
        """``<split>_<column>`` as measured when it was made."""


class MeasuredPath(Stage):
    """A path evaluated on a grid of t and at a searched maximum."""

    makes = "path"
    groups = ("rebasin", "interpolation")

    def __init__(self, context: Context, start: End, end: End, pair: str, upstream: Sequence[Stage]) -> None:
        """``pair``: the two ends in a directory's name, as s0-1."""
        super().__init__(context, upstream)
        self.start, self.end, self.pair = start, end, pair
        training = context.config.endpoints
        # A decoupled decay is no term of any loss.
        self.weight_decay = 0.0 if training.optimizer is Optimizer.adamw else training.weight_decay

    @property
    def columns(self) -> Sequence[Column]:
        """The task's."""
        return self.context.task.columns

    @property
    def title(self) -> str:
        """What the path is, for tables and legends."""
        raise NotImplementedError

    @property
    def between(self) -> str:
        """The ends that it joins, by name."""
        return " and ".join(e.short_name for e in (self.start, self.end))

    def control_points(self, net: FlatModule) -> Tensor:
        raise NotImplementedError

    @property
    def path(self) -> Family:
        raise NotImplementedError

    @property
    def ends_fixed(self) -> tuple[bool, bool]:
        """Whether each end of the path is its endpoint."""
        return True, True

    @property
    def question(self) -> Question:
        """What its context asks of the scores."""
        return question_of(self.context)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """The score of every example in every column at every point, and as they are stacked."""
        options, data = self.context.config.interpolation, self.context.data_on_host
        examples = len(data.train) if options.train_examples is None else options.train_examples
        points = options.points + options.search_max
        return 2 * points * (examples + len(data.test)) * len(self.columns) * 4

    def fields(self) -> dict[str, Any]:
        return {
            "interpolation": fields_off_default(self.context.config.interpolation),
            "weight_decay": self.weight_decay,
        }

    def compute(self, run: Run) -> Result:
        net = self.context.net(0)
        evaluator = self.context.evaluator(net)
        W_kp = self.control_points(net)
        points, grid, squared = self._measure(run, net, evaluator, W_kp)
        u_td = self._ordered(points)
        if self.is_surface:
            length, l2 = distances(self.path, squared, u_td)
            t = np.asarray(self.path.anchors(u_td), dtype=np.float64)[:, 1]
        else:
            t = u_td[:, 0]
            length, l2 = geometry(self.path, squared, t)
        by_split = {s: stacked_scores([points[tuple(u)][s] for u in u_td.tolist()]) for s in SPLITS}
        measured = Measured(t, l2, by_split, self.columns, self.weight_decay, self.is_surface)
        on_grid = np.array([tuple(u) in grid for u in u_td.tolist()])
        rows = _rows(dict(zip(self.path.coordinates, u_td.T, strict=True)), measured, length, on_grid)
        run.write_rows("path.csv", rows)
        kept = keep_scores(run, measured.pack())
        barriers = measured.barriers(self.question)
        verdict = judged(barriers, self.question, len(evaluator.splits["test"]))
        self.context.trackers.rows(rows)
        self.context.trackers.summary({"verdict": verdict["connected"], **barriers})
        more = self._more(measured, u_td, length, on_grid, evaluator)
        return Result(self.title, barriers=barriers, verdict=verdict, more={**more, "scores": kept})

    @property
    def is_surface(self) -> bool:
        """Whether its points have several coordinates."""
        return len(self.path.coordinates) > 1

    def _ordered(self, points: Mapping[Coordinates, By]) -> Array:
        """Measured coordinates (T, d), the start first and the end last."""
        start, end = map(tuple, end_coordinates(self.path).tolist())
        return np.array([start, *sorted({*points} - {start, end}), end])

    def _measure(
        self, run: Run, net: FlatModule, evaluator: Evaluator, W_kp: Tensor
    ) -> tuple[dict[Coordinates, By], set[Coordinates], Array]:
        """Scores by coordinates, the grid among these, and the rows' inner products (see ``gram``)."""
        context, options, path = self.context, self.context.config.interpolation, self.path
        net.bind(W_kp[0].clone())
        coordinates = set(net.names)
        states = [self.start.state(), self.end.state()]
        buffers = [{k: v for k, v in s.items() if k not in coordinates} for s in states]
        evaluator.net.load_rest(buffers[0])
        for note in evaluator.notes(buffers):
            context.reporter.say(note)
        saver = Saver(run, context)
        found = _resumed(saver.begun(), self.columns)
        ends = [tuple(u) for u in end_coordinates(path).tolist()]
        grid = _grid(path, options.points, self.title)
        searched = 0 if self.is_surface else options.search_max
        total = len({*grid, *ends}) + searched

        def measure(u: Coordinates) -> By:
            if u not in found:
                at = ", ".join(f"{name} {x:.3f}" for name, x in zip(path.coordinates, u, strict=True))
                shares = path.anchors([u])[0] if self.is_surface or overrides(path, "anchors") else None
                try:
                    found[u] = evaluator.at(W_kp, coefficients_at(path, u), buffers, self.ends_fixed, shares)
                except RunFailed as failure:
                    raise RunFailed(f"{self.title} at {self._place(u)}: {failure}") from None
                if saver.due:
                    saver.save(_begun(found))
                context.reporter.progress(len(found), total, f"{at} loss {found[u]['train'].objective:.4f}")
                saver.stop_if_asked()
            return found[u]

        for u, endpoint, fixed in zip(ends, (self.start, self.end), self.ends_fixed, strict=True):
            # The ends first: a path that does not start at its endpoint is not worth walking.
            self._check_end(u, endpoint if fixed else None, measure(u), evaluator)
        for u in grid:
            measure(u)
        squared = gram(W_kp)

        def train_loss(t: float) -> float:
            _, l2 = geometry(path, squared, np.array([t]))
            return measure((t,))["train"].objective + self.weight_decay / 2 * float(l2[0]) ** 2

        if searched:
            t = np.unique([u[0] for u in (*grid, *ends)])
            search_maximum(train_loss, t, np.array([train_loss(float(at)) for at in t]), searched)
        context.reporter.progress(total, total, "bootstrap")
        return found, {*grid, *ends}, squared

    def _place(self, u: Coordinates) -> str:
        """As "t=0.5"."""
        return ", ".join(f"{name}={x:g}" for name, x in zip(self.path.coordinates, u, strict=True))

    def _check_end(self, u: Coordinates, endpoint: End | None, scores: By, evaluator: Evaluator) -> None:
        """That an end of the path is its endpoint, where it is to be one."""
        if endpoint is None:
            return
        recorded = endpoint.metrics()
        if len(evaluator.splits["train"]) < len(self.context.data.train):
            recorded = {k: v for k, v in recorded.items() if not k.startswith("train")}
        try:
            require_same(recorded, metrics(scores), f"{self.title} at {self._place(u)}", self.columns)
        except RunFailed:
            evaluator.require_repeatable()
            raise

    def _more(
        self, measured: Measured, u_td: Array, length: Array, on_grid: np.ndarray, evaluator: Evaluator
    ) -> dict[str, Any]:
        """What the summary says besides barriers and verdict."""
        options, asked = self.context.config.interpolation, self.question
        means, names = measured.means(), self.path.coordinates
        along = None if self.is_surface else length
        columns = {k: statistics(v, on_grid, along) for k, v in {"l2": measured.l2, **means}.items()}
        highest = u_td[means["train_loss"].argmax()].tolist()
        return {
            "path": self.title,
            "task": {
                "dataset": self.context.config.dataset.name,
                "architecture": self.context.config.architecture.name,
                "endpoints": self.between,
                **task_note(self.context.task),
            },
            "aligned_by": self.end.aligned_by,
            "columns": columns,
            "intervals": {
                "method": METHOD,
                "resamples": asked.resamples,
                "confidence": asked.confidence,
            },
            "maximum": {
                **dict(zip(names, highest, strict=True)),
                "of": "train_loss",
                "searched_between_grid_points": options.search_max > 0 and not self.is_surface,
            },
            "grid_points": int(on_grid.sum()) if self.is_surface else options.points,
            **({"coordinates": [*names]} if self.is_surface else {}),
            "splits": {k: split_note(evaluator, k) for k in SPLITS},
            "weight_decay": self.weight_decay,
            "batch_norm": f"{options.batch_norm} at inner points, the endpoints' own at the ends"
            if evaluator.has_batch_norm
            else "none",
            "length": float(length[-1]),
        }


def question_of(context: Context) -> Question:
    """What a request asks of scores."""
    options = context.config.interpolation
    return Question(options.bootstrap, options.confidence, context.task.verdict, options.verdict_odds)


def keep_scores(run: Run, scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keep scores where they are not too many, for what will be asked of them; what was done about it."""
    size = sum(v.numel() * v.element_size() for v in scores.values())
    if size > KEPT_BYTES:
        return {"kept": False, "bytes": size, "most": KEPT_BYTES}
    write_state(run, SCORES, scores)
    return {"kept": True, "bytes": size, "most": KEPT_BYTES}


def named_by_options(title: str, context: Context) -> str:
    """A path's title with what was done to the networks along it, where that is not the usual."""
    said = {"": "", "averaged": " with averaged statistics", "repair": " + REPAIR", "rescale": " + RESCALE"}
    return title + said[done_to_networks(context)]


def done_to_networks(context: Context) -> str:
    """How networks along a path are renormalised or their statistics found, in a word, where that is not the usual."""
    options = context.config.interpolation
    if options.renormalise is not Renormalise.none:
        return str(options.renormalise)
    return "averaged" if options.batch_norm is BatchNorm.mean else ""


def stacked_scores(scores: Sequence[Scores]) -> dict[str, Tensor]:
    """Scores of T networks on a split as (T, n) by column."""
    return {name: torch.stack([s.columns[name] for s in scores]) for name in scores[0].columns}


def _grid(path: Family, points: int, title: str) -> list[Coordinates]:
    """Where a family is evaluated: its own grid.

    Raises:
        UserError: it lies outside the unit cube.
    """
    u_td = np.asarray(path.grid(points), dtype=np.float64)
    if u_td.ndim != 2 or u_td.shape[1] != len(path.coordinates) or not ((u_td >= 0) & (u_td <= 1)).all():
        raise UserError(
            f"the {title}'s grid has shape {u_td.shape}, or values outside 0 to 1: it must give coordinates "
            f"(T, {len(path.coordinates)}) in the unit cube."
        )
    return [tuple(u) for u in u_td.tolist()]


def _rows(
    coordinates: Mapping[str, Array], measured: Measured, length: Array, on_grid: np.ndarray
) -> list[dict[str, Any]]:
    """path.csv, a row a point."""
    columns = {**coordinates, "length": length, "l2": measured.l2, **measured.means()}
    columns |= {f"{k}_se": v for k, v in measured.standard_errors().items()}
    return [
        {**{k: float(v[i]) for k, v in columns.items()}, "searched": int(not on_grid[i])}
        for i in range(len(measured.t))
    ]


def _begun(found: dict[Coordinates, By]) -> dict[str, Any]:
    """Measured points as a state to save."""
    stacked = {s: stacked_scores([by[s] for by in found.values()]) for s in SPLITS}
    kept = {f"{s}.{k}": v for s, columns in stacked.items() for k, v in columns.items()}
    return {"t": [u[0] if len(u) == 1 else list(u) for u in found], **kept}


def _resumed(state: dict[str, Any] | None, columns: Sequence[Column]) -> dict[Coordinates, By]:
    """Measured points from what :func:`_begun` made."""
    by_split = unpack(state or {})
    if state is None or not by_split:
        return {}
    scales = {c.name: c.scale for c in columns}
    return {
        tuple(np.atleast_1d(u).tolist()): {s: Scores({k: v[i] for k, v in by_split[s].items()}, scales) for s in SPLITS}
        for i, u in enumerate(state["t"])
    }
