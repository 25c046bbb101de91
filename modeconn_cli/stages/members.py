"""Members of an ensemble in one run, as networks of their own, and what their averaged predictions are worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.evaluation.evaluator import Evaluator, Scores
from modeconn_cli.evaluation.options import Ensemble
from modeconn_cli.networks import read_state, write_state
from modeconn_cli.results import Result, Table
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.ensemble import FIGURES, figures_on
from modeconn_cli.stages.kept import Gathered, Kept, member_file
from modeconn_cli.stages.predicted import judged_splits, log_probabilities
from modeconn_cli.tasks.base import Batch, Column, Task
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.tasks.outputs import tensor_of
from modeconn_cli.tasks.regress import Regress
from modeconn_cli.training.loop import Trainer
from modeconn_cli.weights import FlatModule


class Together:
    """Predictions of members as they come, and what the average over the first few is worth on the test split.

    Of classes, probabilities are averaged (evaluation/ensembles.py); of numbers, answers. Any other task's are not, for
    what their mean would mean is not known.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.columns = FIGURES if isinstance(task, Classify) else task.columns
        self.kept: dict[str, list[Tensor]] = {}

    def add(self, evaluator: Evaluator) -> dict[str, float | None]:
        """Of the network as it is; its own figures."""
        if isinstance(self.task, Classify):
            for split in judged_splits(self.task):
                self.kept.setdefault(split.name, []).append(log_probabilities(evaluator, split, self.task))
            return self._classified(slice(-1, None))
        test = evaluator.splits["test"]
        if isinstance(self.task, Regress):
            self.kept.setdefault(test.name, []).append(evaluator.read(test, tensor_of))
            return self._answered(slice(-1, None))
        return dict(evaluator.score(test).means)

    def of_first(self, members: int) -> dict[str, float | None]:
        """Figures of the average; empty where none is made."""
        if isinstance(self.task, Classify):
            return self._classified(slice(members))
        return self._answered(slice(members)) if isinstance(self.task, Regress) else {}

    def _classified(self, members: slice) -> dict[str, float | None]:
        assert isinstance(self.task, Classify)
        splits = judged_splits(self.task)
        L = {s.name: torch.stack(self.kept[s.name][members]) for s in splits}
        return figures_on(self.task.data.test.name, L, {s.name: s.y.cpu() for s in splits}, Ensemble())

    def _answered(self, members: slice) -> dict[str, float | None]:
        test, task = self.task.data.test, self.task
        assert isinstance(task, Regress)
        together = task.averaged(torch.stack(self.kept[test.name][members]).double())
        found = task.scores(together.to(test.y.device, test.y.dtype), Batch(test.x[:0], test.y))
        return dict(Scores(found, {c.name: c.scale for c in self.task.columns}).means)


def judged_members(
    run: Run, net: FlatModule, evaluator: Evaluator, states: Iterable[Mapping[str, Tensor]], labels: Sequence[Any]
) -> tuple[Together, list[dict[str, Any]]]:
    """Networks in turn: statistics re-estimated, written as members; their figures, own and together, a row each."""
    together, rows = Together(evaluator.task), []
    for number, (state, label) in enumerate(zip(states, labels, strict=True), 1):
        with torch.no_grad():
            net.load(state)
        evaluator.reestimate()
        write_state(run, member_file(number), net.state())
        own = together.add(evaluator)
        averaged = {f"first_{k}": v for k, v in together.of_first(number).items()}
        rows.append({"member": number, **label, **own, **averaged})
    return together, rows


def members_table(together: Together, rows: Sequence[Mapping[str, Any]], labels: Sequence[Column]) -> Table:
    """members.csv: each member by itself, and the average of the first so many."""
    own = [c for c in together.columns if c.name in rows[-1]]
    first = [
        _renamed(c, f"first_{c.name}", f"of the first: {c.title}") for c in own[:2] if f"first_{c.name}" in rows[-1]
    ]
    shown = [Column("member", "member", digits=0), *labels, *own[:2], *first]
    names = [c.name for c in shown]
    return Table("members.csv", "Members, test split", shown, [{k: row[k] for k in names} for row in rows])


def _renamed(column: Column, name: str, title: str) -> Column:
    return replace(column, name=name, title=title)


class KeptMembers(Kept):
    """A training whose kept networks are members of an ensemble."""

    @property
    def averaged(self) -> list[str]:
        return [member_file(k + 1) for k in range(len(self.cycles.kept))]

    def keep(self, run: Run, trainer: Trainer, gathered: Gathered) -> None:
        if trainer.step in self.cycles.kept:
            number = self.cycles.kept.index(trainer.step) + 1
            write_state(run, member_file(number), trainer.net.state())

    def finish(self, run: Run, net: FlatModule, gathered: Gathered) -> Result:
        kept = self.cycles.kept
        states = (read_state(run.folder / file) for file in self.averaged)
        labels: list[dict[str, Any]] = [{"epoch": self.cycles.before + step / self.steps} for step in kept]
        together, rows = judged_members(run, net, gathered.evaluator, states, labels)
        whole = {k: v for k, v in together.of_first(len(kept)).items() if v is not None}
        return Result(
            self.title,
            whole,
            [c for c in together.columns if c.name in whole],
            [members_table(together, rows, [Column("epoch", "epoch", digits=2)])],
            pictures=self.traced(run, gathered),
            networks=self.averaged,
            more=self.said(net),
        )
