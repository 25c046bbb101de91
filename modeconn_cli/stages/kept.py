"""What trainings with a cyclic rate share: where they start, the training, what is measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.families.point import Point
from modeconn_cli.forward import modes_kept, rest_kept
from modeconn_cli.networks import CHECKPOINT, read_state, require_kept
from modeconn_cli.report.plots import save_png
from modeconn_cli.results import Result, task_note
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import fields_off_default
from modeconn_cli.stages.endpoints import Endpoint, TrainedEndpoint, endpoints
from modeconn_cli.tasks.base import Task
from modeconn_cli.training.averages import Average
from modeconn_cli.training.cycles import Cycles
from modeconn_cli.training.loop import Trainer, steps_per_epoch
from modeconn_cli.training.precision import arithmetic
from modeconn_cli.training.recipe import Precision, recipe
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.context import Context
from modeconn_cli.work.fitting import fit
from modeconn_cli.work.stage import Stage

TRACE = "trace.csv"


@dataclass(frozen=True)
class Start:
    """Where a training with a cyclic rate starts.

    name: for headings; label: for directories; seed: of its order, augmentation and dropout; init_seed: of
    initialisation; endpoint: whose file is the network instead.
    """

    name: str
    label: str
    seed: int
    init_seed: int = 0
    endpoint: Endpoint | None = None
    file: str = CHECKPOINT

    def state(self) -> dict[str, Tensor]:
        assert self.endpoint is not None
        return read_state(self.endpoint.result.folder / self.file)


def starts(context: Context, group: str) -> list[Start]:
    """Networks to go on from: those of endpoints.from or endpoints.checkpoints; else a share of ordinary training.

    Of the latter there is one for each of endpoints.seeds, and by default for the first of a replicate. It is kept from
    a training that goes on to the end of the budget, the network to compare with.
    """
    options, seed = context.config.endpoints, context.config.seed
    if options.references is not None or options.checkpoints is not None:
        own = seed if options.data_seed is None else options.data_seed
        return [Start(e.short_name, e.label, own, endpoint=e) for e in endpoints(context)]
    if options.fuse:
        raise UserError(
            f"endpoints.fuse=true folds norms of finished networks, and {group} goes on training: name some by "
            "endpoints.from, or go without it."
        )
    after = getattr(context.config, group).before(group, options.epochs)
    begun = options.having(
        keep_epochs=sorted({*options.keep_epochs, after}),
        seeds=[2 * seed] if options.seeds is None else options.seeds,
    )
    found = []
    for endpoint in endpoints(context.having(endpoints=begun)):
        assert isinstance(endpoint, TrainedEndpoint)
        file = f"checkpoint-epoch{after}.safetensors"
        found.append(Start(endpoint.short_name, endpoint.label, endpoint.data_seed, endpoint=endpoint, file=file))
    return found


class Gathered:
    """What is gathered at the steps of a training.

    rows: the test split's figures by step, with the rate and whether a network was kept there. average: of points that
    were passed by, where a method has one.
    """

    def __init__(self, evaluator: Evaluator, cycles: Cycles, every: int, average: Average | None = None) -> None:
        self.evaluator, self.cycles, self.every, self.average = evaluator, cycles, every, average
        self.rows: list[dict[str, float]] = []

    def trace(self, trainer: Trainer) -> None:
        """Measure the test split, where it is time to, with statistics re-estimated and put back."""
        kept = trainer.step in self.cycles.kept
        due = self.every and trainer.step % (self.every * trainer.steps_per_epoch) == 0
        if not due and not (kept and self.every):
            return
        module = self.evaluator.net.module
        trainer.require_finite()
        with arithmetic(Precision.float32), modes_kept(module), rest_kept(module):
            self.evaluator.reestimate()
            found = self.evaluator.score(self.evaluator.splits["test"]).means
        at = {"step": trainer.step, "epoch": trainer.step / trainer.steps_per_epoch, "lr": trainer.lr}
        self.rows.append({**at, "kept": int(kept), **{f"test_{k}": v for k, v in found.items()}})

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "average": {} if self.average is None else self.average.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
        if self.average is not None:
            self.average.load(state["average"])


class Kept(Stage):
    """A training with a cyclic rate, and the networks that it passes by; a subclass says what becomes of them."""

    title: str  # for headings

    def __init__(self, context: Context, start: Start) -> None:
        super().__init__(context, [] if start.endpoint is None else [start.endpoint])
        self.start = start
        self.steps = steps_per_epoch(len(context.data_on_host.train), context.config.endpoints.batch_size)
        self.cycles = self._cycles(isinstance(start.endpoint, TrainedEndpoint))

    def _cycles(self, whole: bool) -> Cycles:
        found: Cycles = self.options.plan(self.name, self.context.config.endpoints, self.steps, whole)
        return found

    @property
    def options(self) -> Any:
        """Of its group, which is called as it is."""
        return getattr(self.context.config, self.name)

    @property
    def label(self) -> str:
        return self.start.label

    def fields(self) -> dict[str, Any]:
        start = {"init_seed": self.start.init_seed} if self.start.endpoint is None else {"from": self.start.file}
        own = fields_off_default(self.options)
        return {
            **self.context.task_fields(),
            "recipe": recipe(self.cycles.training),
            self.name: {k: v for k, v in own.items() if k not in ("start", "epochs")},  # which the recipe has
            **start,
            "data_seed": self.start.seed,
        }

    @property
    def averaged(self) -> list[str]:
        """Files of the networks whose predictions are averaged: the one that it ends in."""
        return [CHECKPOINT]

    @property
    def gradient_steps(self) -> int:  # type: ignore[override]
        return self.cycles.training.epochs * self.steps

    def average(self, net: FlatModule) -> Average | None:
        """What gathers an average of points, before any is added."""
        return None

    def keep(self, run: Run, trainer: Trainer, gathered: Gathered) -> None:
        """Called after every step, the starting one included."""
        raise NotImplementedError

    def finish(self, run: Run, net: FlatModule, gathered: Gathered) -> Result:
        """What was found, once the training is over."""
        raise NotImplementedError

    def compute(self, run: Run) -> Result:
        context, training = self.context, self.cycles.training
        net = context.net(self.start.init_seed)
        require_kept(net.module)
        if self.start.endpoint is not None:
            with torch.no_grad():
                net.load(self.start.state())
        trainer = Trainer(
            net,
            Point(),
            net.point[None],
            slice(0, 1),
            context.training_task(context.config.endpoints),
            training,
            self.start.seed,
            schedule=lambda step: self.cycles.rate(step + 1),
        )
        evaluator = context.evaluator(net, Interpolation())
        gathered = Gathered(evaluator, self.cycles, self.options.trace, self.average(net))

        def keep(t: Trainer) -> None:
            if t.step in self.cycles.kept:
                t.require_finite()
            self.keep(run, t, gathered)
            gathered.trace(t)

        fit(trainer, run, context, keep, gathered)
        return self.finish(run, net, gathered)

    def said(self, net: FlatModule) -> dict[str, Any]:
        """What summary.json says of the training."""
        return {
            "name": f"{self.title} of {self.start.name}",
            "task": task_note(self.context.task),
            "parameters": net.size,
            "epochs": {"before": self.cycles.before, "with_a_cyclic_rate": self.cycles.training.epochs},
            "kept_after_steps": list(self.cycles.kept),
            "steps_per_epoch": self.steps,
        }

    def traced(self, run: Run, gathered: Gathered) -> list[str]:
        """Write trace.csv and its picture, where anything was traced; the pictures."""
        if not gathered.rows:
            return []
        run.write_rows(TRACE, gathered.rows)
        with run.writing("trace.png") as file:
            draw(file, gathered.rows, self.cycles, self.steps, self.context.task, f"{self.title}, {self.label}")
        return ["trace.png"]


def member_file(number: int) -> str:
    """Where a run has one of its networks, which count from 1."""
    return f"member-{number}.safetensors"


def draw(file: Path, rows: Sequence[Mapping[str, float]], cycles: Cycles, steps: int, task: Task, heading: str) -> None:
    """Rate and test figure by epochs, members marked; the epochs count those of the training before."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    total = cycles.training.epochs * steps
    at = sorted({*range(1, total + 1, max(total // 4000, 1)), *cycles.kept})
    above.plot([cycles.before + i / steps for i in at], [cycles.rate(i) for i in at], color="#0072B2", linewidth=1)
    kept = [i for i in cycles.kept if len(cycles.kept) <= total // 2]
    above.plot([cycles.before + i / steps for i in kept], [cycles.rate(i) for i in kept], "o", color="#D55E00", ms=4)
    above.set_ylabel("learning rate")
    column = next(c for c in task.columns if c.name == task.verdict.column)
    points = [(cycles.before + row["epoch"], row[f"test_{column.name}"], row["kept"]) for row in rows]
    below.plot([x for x, _, _ in points], [y for _, y, _ in points], color="#0072B2", linewidth=1)
    below.plot([x for x, _, k in points if k], [y for _, y, k in points if k], "o", color="#D55E00", ms=4)
    below.set_ylabel(f"test {column.heading}", parse_math=False)
    below.set_xlabel("epoch")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading, fontsize=10, parse_math=False)
    save_png(figure, file)
