"""interpolate and evaluate: loss and error along a path, into path.csv and summary.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import RunFailed
from modeconn_cli.evaluation.barriers import barrier_intervals, resampled_means, verdict
from modeconn_cli.evaluation.evaluator import Evaluator, Scores, gram, metrics, require_same, search_maximum
from modeconn_cli.families.base import Array, Path
from modeconn_cli.families.bezier import segment
from modeconn_cli.families.geometry import geometry
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import BatchNorm, Optimizer, Renormalise, fields_off_default
from modeconn_cli.stages.curve import FitCurve, end_points
from modeconn_cli.stages.endpoints import Endpoint, pair_label, split_note
from modeconn_cli.stages.rebasin import Aligned
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.context import Context
from modeconn_cli.work.saving import Saver
from modeconn_cli.work.stage import Stage

SPLITS = ("train", "test")
METRICS = tuple(f"{split}_{metric}" for split in SPLITS for metric in ("loss", "nll", "error"))


class MeasuredPath(Stage):
    """A path evaluated on a grid of t and at a searched maximum."""

    def __init__(self, context: Context, start: Endpoint, end: Endpoint, upstream: list[Stage]) -> None:
        super().__init__(context, upstream)
        self.start, self.end = start, end
        training = context.config.endpoints
        # A decoupled decay is no term of any loss.
        self.weight_decay = 0.0 if training.optimizer is Optimizer.adamw else training.weight_decay

    @property
    def title(self) -> str:
        """What the path is, for tables and legends."""
        raise NotImplementedError

    def control_points(self, net: FlatModule) -> Tensor:
        raise NotImplementedError

    @property
    def path(self) -> Path:
        raise NotImplementedError

    @property
    def ends_fixed(self) -> tuple[bool, bool]:
        """Whether each end of the path is its endpoint."""
        return True, True

    def fields(self) -> dict[str, Any]:
        return {
            "interpolation": fields_off_default(self.context.config.interpolation),
            "weight_decay": self.weight_decay,
        }

    def compute(self, run: Run) -> None:
        context, options = self.context, self.context.config.interpolation
        net = context.net(0)
        evaluator = context.evaluator(net)
        W_kp = self.control_points(net)
        net.bind(W_kp[0].clone())
        states = [self.start.state(), self.end.state()]
        coordinates = set(net.names)
        buffers = [{k: v for k, v in s.items() if k not in coordinates} for s in states]
        evaluator.net.load_rest(buffers[0])

        saver = Saver(run, context)
        measured = _unpack(saver.begun())
        total = options.points + options.search_max
        c_at = self.path.coefficients

        def measure(t: float) -> dict[str, Scores]:
            if t not in measured:
                try:
                    measured[t] = evaluator.at(W_kp, c_at([t])[0], buffers, self.ends_fixed)
                except RunFailed as failure:
                    raise RunFailed(f"{self.title} at t={t:g}: {failure}") from None
                if saver.due:
                    saver.save(_pack(measured))
            context.reporter.progress(len(measured), total, f"t {t:.3f} loss {measured[t]['train'].objective:.4f}")
            saver.stop_if_asked()
            return measured[t]

        grid = np.linspace(0, 1, options.points)
        for t in (0.0, 1.0):  # the ends first: a path that does not start at its endpoint is not worth walking
            self._check_end(t, measure(t), evaluator)
        for t in grid:
            measure(float(t))
        squared = gram(W_kp)

        def train_loss(t: float) -> float:
            _, l2 = geometry(self.path, squared, np.array([t]))
            return measure(t)["train"].objective + self.weight_decay / 2 * float(l2[0]) ** 2

        search_maximum(train_loss, grid, np.array([train_loss(float(t)) for t in grid]), options.search_max)
        context.reporter.progress(total, total, "bootstrap")

        every_t = np.array(sorted(measured))
        on_grid = np.isin(every_t, grid)
        rows, columns = self._table(every_t, on_grid, squared, measured)
        run.write_rows("path.csv", rows)
        summary = self._summary(every_t, on_grid, columns, measured, evaluator)
        run.write_json("summary.json", summary)
        context.trackers.rows(rows)
        context.trackers.summary({"verdict": summary["verdict"]["connected"], **summary["barriers"]})

    def _check_end(self, t: float, scores: dict[str, Scores], evaluator: Evaluator) -> None:
        endpoint = self.end if t else self.start
        if not self.ends_fixed[int(t)]:
            return
        recorded = endpoint.metrics()
        if len(evaluator.splits["train"]) < len(self.context.data.train):
            recorded = {k: v for k, v in recorded.items() if not k.startswith("train")}
        require_same(recorded, metrics(scores), f"{self.title} at t={t:g}", evaluator.task.columns)

    def _table(
        self, t: Array, on_grid: np.ndarray, squared: Array, measured: dict[float, dict[str, Scores]]
    ) -> tuple[list[dict[str, Any]], dict[str, Array]]:
        length, l2 = geometry(self.path, squared, t)
        columns = {"t": t, "length": length, "l2": l2}
        errors = {}
        for split in SPLITS:
            nll = torch.stack([measured[s][split].columns["nll"] for s in t]).double().numpy()
            wrong = torch.stack([measured[s][split].columns["error"] for s in t]).double().numpy()
            n = nll.shape[1]
            columns[f"{split}_nll"] = nll.mean(1)
            columns[f"{split}_loss"] = columns[f"{split}_nll"] + self.weight_decay / 2 * l2**2
            columns[f"{split}_error"] = 100 * wrong.mean(1)
            errors[f"{split}_nll_se"] = errors[f"{split}_loss_se"] = nll.std(1, ddof=1) / np.sqrt(n)
            errors[f"{split}_error_se"] = 100 * wrong.std(1, ddof=1) / np.sqrt(n)
        names = ["t", "length", "l2", *METRICS]
        rows = [
            {
                **{k: float(columns[k][i]) for k in names},
                **{f"{k}_se": float(errors[f"{k}_se"][i]) for k in METRICS},
                "searched": int(not on_grid[i]),
            }
            for i in range(len(t))
        ]
        return rows, columns

    def _summary(
        self,
        t: Array,
        on_grid: np.ndarray,
        columns: dict[str, Array],
        measured: dict[float, dict[str, Scores]],
        evaluator: Evaluator,
    ) -> dict[str, Any]:
        options = self.context.config.interpolation
        length = columns["length"]
        barriers: dict[str, Any] = {}
        for split in SPLITS:
            per_example = {
                "nll": torch.stack([measured[s][split].columns["nll"] for s in t]),
                "error": 100 * torch.stack([measured[s][split].columns["error"] for s in t]).double(),
            }
            resampled = {k: resampled_means(v, options.bootstrap) for k, v in per_example.items()}
            resampled["loss"] = resampled["nll"] + (columns[f"{split}_loss"] - columns[f"{split}_nll"])
            for metric in ("loss", "nll", "error"):
                key = f"{split}_{metric}"
                barriers[key] = barrier_intervals(t, columns[key], resampled[metric], options.confidence)
        found = barriers["test_error"]["above_mean"]
        return {
            "path": self.title,
            "task": {
                "dataset": self.context.config.dataset.name,
                "architecture": self.context.config.architecture.name,
                "endpoints": " and ".join(e.short_name for e in (self.start, self.end)),
            },
            "aligned_by": str(self.context.config.rebasin.method) if isinstance(self.end, Aligned) else None,
            "columns": {k: _statistics(columns[k], on_grid, length) for k in ("l2", *METRICS)},
            "barriers": barriers,
            "intervals": {
                "method": "percentile bootstrap over examples",
                "resamples": options.bootstrap,
                "confidence": options.confidence,
            },
            "maximum": {
                "t": float(t[columns["train_loss"].argmax()]),
                "of": "train_loss",
                "searched_between_grid_points": options.search_max > 0,
            },
            "grid_points": options.points,
            "verdict": {
                "connected": verdict(found, options.connected_below),
                "metric": "test_error",
                "convention": "above_mean",
                "below": options.connected_below,
                **found,
            },
            "splits": {k: split_note(evaluator, k) for k in SPLITS},
            "weight_decay": self.weight_decay,
            "batch_norm": f"{options.batch_norm} at inner points, the endpoints' own at the ends"
            if evaluator.has_batch_norm
            else "none",
            "length": float(length[-1]),
        }

    def summary(self) -> dict[str, Any]:
        """The finished run's summary.json."""
        content: dict[str, Any] = json.loads((self.result.folder / "summary.json").read_text())
        return content


class Segment(MeasuredPath):
    """The straight line between two endpoints."""

    name = "interpolate"

    @property
    def title(self) -> str:
        return named_by_options("aligned segment" if isinstance(self.end, Aligned) else "segment", self.context)

    def __init__(self, context: Context, start: Endpoint, end: Endpoint) -> None:
        super().__init__(context, start, end, [start, end])

    @property
    def label(self) -> str:
        words = [self.context.label, pair_label(self.start, self.end), "segment", _done_to_networks(self.context)]
        return "-".join(filter(None, words))

    @property
    def path(self) -> Path:
        return segment()

    def control_points(self, net: FlatModule) -> Tensor:
        return end_points(net, self.start, self.end)


class MeasuredCurve(MeasuredPath):
    """A fitted curve."""

    name = "evaluate"

    def __init__(self, context: Context, curve: FitCurve) -> None:
        super().__init__(context, curve.start, curve.end, [curve])
        self.curve = curve

    @property
    def title(self) -> str:
        bends = self.context.config.curve.bends
        kind = {"bezier": "Bezier curve", "chain": "polygonal chain"}[self.curve.kind]
        aligned = ", to the aligned end" if isinstance(self.end, Aligned) else ""
        return named_by_options(f"{kind}, {bends} bend{'s' if bends > 1 else ''}{aligned}", self.context)

    @property
    def label(self) -> str:
        return self.curve.label

    @property
    def path(self) -> Path:
        return self.curve.path

    @property
    def ends_fixed(self) -> tuple[bool, bool]:
        options = self.context.config.curve
        return options.fix_start, options.fix_end

    def control_points(self, net: FlatModule) -> Tensor:
        return self.curve.control_points(net)


def named_by_options(title: str, context: Context) -> str:
    """A path's title with what was done to the networks along it, where that is not the usual."""
    said = {"": "", "averaged": " with averaged statistics", "repair": " + REPAIR", "rescale": " + RESCALE"}
    return title + said[_done_to_networks(context)]


def _done_to_networks(context: Context) -> str:
    """How networks along a path are renormalised or their statistics found, in a word, where that is not the usual."""
    options = context.config.interpolation
    if options.renormalise is not Renormalise.none:
        return str(options.renormalise)
    return "averaged" if options.batch_norm is BatchNorm.mean else ""


def _statistics(values: Array, on_grid: np.ndarray, length: Array) -> dict[str, float]:
    """Ends, extremes over every point, mean over the uniform grid, and integral over arc length."""
    return {
        "start": float(values[0]),
        "end": float(values[-1]),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values[on_grid].mean()),
        "integral": float(np.trapezoid(values, length)),
    }


def _pack(measured: dict[float, dict[str, Scores]]) -> dict[str, Any]:
    first = next(iter(measured.values()))
    return {
        "t": list(measured),
        "scales": {split: dict(scores.scales) for split, scores in first.items()},
        "columns": {
            split: {name: torch.stack([m[split].columns[name] for m in measured.values()]) for name in scores.columns}
            for split, scores in first.items()
        },
    }


def _unpack(state: dict[str, Any] | None) -> dict[float, dict[str, Scores]]:
    if state is None:
        return {}
    return {
        t: {
            split: Scores({name: values[i] for name, values in columns.items()}, state["scales"][split])
            for split, columns in state["columns"].items()
        }
        for i, t in enumerate(state["t"])
    }
