"""uncertainty: of which inputs the networks along a path are unsure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.data.dataset import Split
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation import ensembles
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.unsure import Answers, Classes, Numbers
from modeconn_cli.families.base import Array, overrides
from modeconn_cli.networks import CHECKPOINT, read_state
from modeconn_cli.report.plots import save_png
from modeconn_cli.report.uncertain import contact_sheet, risk_figure
from modeconn_cli.results import Result, Table, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.sums import sha256
from modeconn_cli.settings import Config
from modeconn_cli.stages.endpoints import endpoints
from modeconn_cli.stages.imported import whole_path
from modeconn_cli.stages.predicted import (
    Predicted,
    Predictions,
    judged_splits,
    labels_of,
    log_probabilities,
    predictions_along,
)
from modeconn_cli.stages.referenced import StoredPath
from modeconn_cli.tasks.base import Column, Task
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.regress import Regress
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.recorded import OBJECT, recorded_config
from modeconn_cli.work.stage import Stage

KEPT_BYTES = 1 << 30  # of predictions
Kept = dict[str, Tensor]


@command(
    "uncertainty",
    panel="look",
    help="Say of which inputs the networks along a path are unsure, and divide a budget among them.",
    more="RUN is a path that was measured or fitted, whose settings hold; networks after it, as from other seeds, are "
    "averaged beside it. Writes uncertainty.csv, a row an input: label, prediction, confidence, and total uncertainty "
    "as aleatoric + epistemic. uncertainty.budget=N divides N in proportion.",
    examples=["evaluate/digits-mlp-s0-1 uncertainty.budget=1000"],
    networks=True,
)
def request(context: Context) -> Request:
    names = [*map(str, context.config.endpoints.references or [])]
    if not names:
        raise UserError("name the path whose networks are asked: modeconn uncertainty RUN.")
    path = _path(names[0], context)
    context = _context_of(path, names[0], context)
    task, options = context.task_on_host, context.config.uncertainty
    if not isinstance(task, Classify | Regress):
        raise UserError(
            f"modeconn uncertainty knows classes and numbers, and task={context.config.task.kind} has neither."
        )
    n = len(task.data.test)
    if options.budget is not None and not n * options.min <= options.budget <= n * _most(context):
        raise UserError(
            f"uncertainty.budget={options.budget}: {n} inputs get from {n * options.min} to {n * _most(context)} in "
            "all; change it, uncertainty.min or uncertainty.max."
        )
    beside = []
    if len(names) > 1:
        if isinstance(task, Regress):
            raise UserError(
                f"{names[1]}: beside a path stand networks of classes, and these data are numbers; drop it."
            )
        alone = dict.fromkeys(("checkpoints", "seeds", "init_from"))
        named = context.config.endpoints.having(**{**alone, "from": names[1:]})
        beside = [Predicted(context, e) for e in endpoints(context.having(endpoints=named))]
    return Request(own=[Uncertain(context, PathPredicted(context, path), beside)])


def _most(context: Context) -> int:
    options = context.config.uncertainty
    return (options.budget or 0) if options.max is None else options.max


def _path(name: str, context: Context) -> StoredPath:
    """The path that is meant.

    Raises:
        UserError: what is named is none, or has several coordinates.
    """
    path = whole_path(name, context)
    if path is None:
        raise UserError(f"{name} is no path of networks: name a run that measured or fitted one, as interpolate/...")
    if len(path.shape.coordinates) > 1:
        raise UserError(f"{name}: the {path.family} has several coordinates, and an order of its networks is needed.")
    return path


def _context_of(path: StoredPath, name: str, context: Context) -> Context:
    """The request's context with the settings that a path was made with.

    Raises:
        UserError: its networks or its data are not what they were.
    """
    config = recorded_config(path.run, context.config.runtime)
    if config.architecture.family == OBJECT:
        raise UserError(f"{name} was made from a torch module, which no setting describes: ask it from Python.")
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    made = context.having(**{**own, "uncertainty": context.config.uncertainty})
    if path.run.read("provenance.json").get("dataset_sha256") != made.checksum:
        raise UserError(f"{name}: the data set is not what it was when {path.run.folder} was made.")
    return made


class PathPredicted(Predictions):
    """predictions.safetensors: of networks at evenly spaced t (T,) along a path, by split, and labels by ``<split>.y``.

    Of classes log-probabilities (T, n, C); of numbers means and variances (T, n, D, 2), in the data's unit. Networks
    are as the path's measurement has them: BatchNorm's statistics, REPAIR.
    """

    def __init__(self, context: Context, path: StoredPath) -> None:
        super().__init__(context)
        self.path, self.of = path, path.run.name
        self.halved = isinstance(context.task_on_host, Classify)  # numbers may be of any size
        self.t = np.linspace(0, 1, context.config.uncertainty.points)
        self.c_tk = np.stack([path.coefficients(t) for t in self.t.tolist()])

    @property
    def label(self) -> str:
        return self.path.run.name.rpartition("-")[0]

    def made_from(self) -> Sequence[Path]:
        return [self.path.run.folder]

    @property
    def shaped_by(self) -> list[str]:
        return self.path.run.groups

    def fields(self) -> dict[str, Any]:
        files = [n.file for n in self.path.networks] + [e.folder / CHECKPOINT for e in self.path.ends]
        asked = self.context.config.interpolation
        networks = {k: str(getattr(asked, k)) for k in ("batch_norm", "renormalise", "bn_examples")}
        return {
            **self.context.task_fields(),
            "files": [sha256(f) for f in dict.fromkeys(files) if f is not None],
            "held": list(self.path.held),
            "coefficients": self.c_tk.tolist(),
            "networks": networks,
        }

    def check(self) -> None:
        """Raise UserError for more than is kept."""
        task = self.context.task_on_host
        width = task.outputs if isinstance(task, Classify) else 2 * task.data.targets
        size = (2 if self.halved else 4) * width * len(self.t) * sum(len(s) for s in splits_of(task))
        if size > KEPT_BYTES:
            raise UserError(
                f"predictions of {len(self.t)} networks would take {size / 1e9:.1f} GB, and {KEPT_BYTES / 1e9:.1f} are "
                "kept at most: ask fewer uncertainty.points, or set uncertainty.keep_predictions=false."
            )

    def said(self) -> dict[str, Any]:
        return {"t": self.t.tolist()}

    def asked(self) -> Kept:
        """The predictions, by passing every example through every network."""
        context, path = self.context, self.path
        net, task = context.net(0), context.task
        splits, shape = splits_of(task), path.shape
        found = predictions_along(
            context,
            context.evaluator(net),
            path.networks.points(net),
            self.c_tk,
            [read_state(e.folder / CHECKPOINT) for e in path.ends],
            path.held,
            splits,
            lambda evaluator, split: answers(evaluator, split, task),
            [*shape.anchors(self.t[:, None])] if overrides(shape, "anchors") else None,
        )
        return {**found, **labels_of(splits), "t": torch.from_numpy(self.t)}


def splits_of(task: Task) -> list[Split]:
    """Where predictions are asked for, each once."""
    return judged_splits(task) if isinstance(task, Classify) else [task.data.test]


def answers(evaluator: Evaluator, split: Split, task: Task) -> Tensor:
    """Of the network as it is: log-probabilities (n, C), or means and variances (n, D, 2)."""
    if isinstance(task, Classify):
        return log_probabilities(evaluator, split, task)
    assert isinstance(task, Regress)
    return evaluator.read(split, task.moments)


class Uncertain(Stage):
    """uncertainty.csv, a row an example of the reported split in its order; risk.png; images.png, of images."""

    name = "uncertainty"
    groups: ClassVar[tuple[str, ...]] = ("uncertainty",)

    def __init__(self, context: Context, path: PathPredicted, beside: Sequence[Predicted]) -> None:
        self.keeps = context.config.uncertainty.keep_predictions
        if self.keeps:
            path.check()
        super().__init__(context, [*([path] if self.keeps else []), *beside])
        self.path, self.beside = path, list(beside)

    @property
    def label(self) -> str:
        return self.path.label

    @property
    def shaped_by(self) -> list[str]:
        return [*dict.fromkeys([*self.path.shaped_by, *super().shaped_by])]

    def made_from(self) -> Sequence[Path]:
        return [] if self.keeps else self.path.made_from()

    def fields(self) -> dict[str, Any]:
        own = super().fields()
        return own if self.keeps else {**own, "path": self.path.fields()}

    def compute(self, run: Run) -> Result:
        task, options = self.context.task_on_host, self.context.config.uncertainty
        kept = self.path.predictions() if self.keeps else self.path.asked()
        split = task.data.test
        asked = Classes if isinstance(task, Classify) else Numbers
        along = kept[split.name].float()
        groups = {"networks along the path": along, "the first of them": along[:1]}
        if self.beside:
            said = [p.predictions()[split.name].float() for p in self.beside]
            groups[f"{len(said)} networks beside it"] = torch.stack(said)
        judged = {name: asked(task, U, split.y) for name, U in groups.items()}  # type: ignore[arg-type]
        first = next(iter(judged.values()))
        ranked = getattr(first.unsure, str(options.by))
        rows = [{"id": i, **row} for i, row in enumerate(first.rows())]
        if options.budget is not None:
            shares = ensembles.divided(options.budget, ranked, options.min, options.max)
            rows = [{**row, "budget": int(share)} for row, share in zip(rows, shares, strict=True)]
        run.write_rows("uncertainty.csv", rows)
        figures = [{"networks": name, "count": j.networks, **j.figures()} for name, j in judged.items()]
        columns = [Column("count", "number", digits=0), *first.columns]
        pictures = self._pictures(run, judged, ranked, rows)
        return Result(
            f"uncertainty along the {self.path.path.family}",
            {k: v for k, v in figures[0].items() if isinstance(v, float)},
            first.columns,
            [
                Table("risk.csv", f"{split.name} split", [Column("networks", "networks"), *columns], figures),
                _coverage(judged),
            ],
            pictures=pictures,
            more={
                "task": task_note(task),
                "t": self.path.t.tolist(),
                "split": split.name,
                "unit": first.unit,
                "beside": [p.network.short_name for p in self.beside],
                "predictions_kept": self.keeps,
            },
        )

    def _pictures(
        self, run: Run, judged: Mapping[str, Answers], ranked: Array, rows: Sequence[dict[str, Any]]
    ) -> list[str]:
        """The risk among the least uncertain; the most and the least certain examples, where they are images."""
        options, data = self.context.config.uncertainty, self.context.data_on_host
        heading = f"{self.context.label}: risk among the least uncertain"
        curves = {name: j.risk("total")[0] for name, j in judged.items()}
        with run.writing("risk.png") as file:
            save_png(risk_figure(curves, heading, next(iter(judged.values())).risk_heading), file)
        if not options.images:
            return ["risk.png"]
        if len(data.shape) != 3 or data.shape[0] not in (1, 3):
            self.context.reporter.say(
                f"inputs of shape {data.shape} are no images of one or three channels: none drawn"
            )
            return ["risk.png"]
        order = np.argsort(ranked, kind="stable")
        count = min(options.images, len(order))
        chosen = {"most certain": order[:count], "least certain": order[::-1][:count]}
        sheets = {
            title: [(_image(data.test.x[i]), _caption(rows[i], str(options.by))) for i in places.tolist()]
            for title, places in chosen.items()
        }
        with run.writing("images.png") as file:
            save_png(contact_sheet(sheets, f"{self.context.label}, {options.by} uncertainty"), file)
        return ["risk.png", "images.png"]


def _coverage(judged: Mapping[str, Answers]) -> Table:
    """The risk among the 5%, 10% ... 100% least uncertain by total uncertainty, a column for each set of networks."""
    curves = {name: j.risk("total")[0] for name, j in judged.items()}
    columns = [Column("coverage", "coverage", "%", 0), *(Column(name, name) for name in curves)]
    rows = [
        {"coverage": share, **{name: float(c[max(1, round(share / 100 * len(c))) - 1]) for name, c in curves.items()}}
        for share in range(5, 101, 5)
    ]
    heading = next(iter(judged.values())).risk_heading
    return Table("coverage.csv", f"{heading} among the least uncertain", columns, rows)


def _image(x: Tensor) -> np.ndarray:
    """Stored (C, H, W) as (H, W) or (H, W, 3) in [0, 1]."""
    wide = x.float()
    low, high = (0.0, 255.0) if x.dtype == torch.uint8 else (float(wide.min()), float(wide.max()))
    scaled = ((wide - low) / (high - low or 1.0)).permute(1, 2, 0).numpy()
    return scaled[:, :, 0] if scaled.shape[2] == 1 else scaled


def _caption(row: dict[str, Any], by: str) -> str:
    """As "7, said 1: 0.42"."""

    def word(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    said = ", ".join(word(v) for k, v in row.items() if k.startswith("label"))
    answer = ", ".join(word(v) for k, v in row.items() if k.startswith("prediction"))
    return f"{said if said == answer else f'{said}, said {answer}'}\n{row[by]:.2g}"
