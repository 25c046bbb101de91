"""predict: what networks say of every example, kept, so that the next question about it costs no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.data.dataset import Split
from modeconn_cli.data.foreign import foreign_fields, foreign_split
from modeconn_cli.data.options import Dataset
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.families.base import Array, coefficients_at
from modeconn_cli.networks import read_state, write_state
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.curve import FitCurve
from modeconn_cli.stages.endpoints import Endpoint
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.work.context import Context
from modeconn_cli.work.stage import Stage

PREDICTIONS = "predictions.safetensors"
OOD = "ensemble.ood"
WHOLE_BYTES = 64 << 20  # beyond which predictions are kept in half precision

Answer = Callable[[Evaluator, Split], Tensor]


class Predictions(Stage):
    """predictions.safetensors: answers to every example by split, (n, ...) or of M networks (M, n, ...), and labels
    (n,) by ``<split>.y``. Of classes they are log-probabilities."""

    name = "predict"
    makes = "predictions"
    of: str  # whose, for headings
    halved: bool = True  # whether half precision holds them, where they are many

    def asked(self) -> dict[str, Tensor]:
        """The predictions, by passing every example through every network."""
        raise NotImplementedError

    def compute(self, run: Run) -> Result:
        kept = self.asked()
        if self.halved and sum(v.numel() for v in kept.values()) * 4 > WHOLE_BYTES:
            kept = {k: v.half() if v.dtype == torch.float32 else v for k, v in kept.items()}
        write_state(run, PREDICTIONS, kept)
        splits = {k.removesuffix(".y"): len(v) for k, v in kept.items() if k.endswith(".y")}
        return Result(f"predictions of {self.of}", more={"splits": splits, **self.said()})

    def said(self) -> dict[str, Any]:
        """What else summary.json says."""
        return {}

    def predictions(self) -> dict[str, Tensor]:
        return read_state(self.result.folder / PREDICTIONS)


class Predicted(Predictions):
    """Of one network.

    Args:
        elsewhere: another data set, whose examples are predicted in place of the network's own.
    """

    def __init__(self, context: Context, network: Endpoint, elsewhere: Dataset | None = None) -> None:
        super().__init__(context, [network])
        self.network, self.elsewhere, self.of = network, elsewhere, network.short_name

    def fields(self) -> dict[str, Any]:
        return {} if self.elsewhere is None else {"on": foreign_fields(self.elsewhere)}

    def asked(self) -> dict[str, Tensor]:
        net, task = self.context.net(0), self.context.task
        assert isinstance(task, Classify)
        net.load(self.network.state())
        evaluator, splits = self.context.evaluator(net), judged_splits(task)
        if self.elsewhere is not None:
            splits = [foreign_split(self.elsewhere, self.context.data_on_host, OOD).to(self.context.device)]
        return {s.name: log_probabilities(evaluator, s, task) for s in splits} | labels_of(splits)


class PredictedMembers(Predictions):
    """Of several networks of a training, by their files."""

    def __init__(self, context: Context, training: Stage, files: Sequence[str]) -> None:
        super().__init__(context, [training])
        self.training, self.files, self.of = training, list(files), training.doing

    def asked(self) -> dict[str, Tensor]:
        net, task = self.context.net(0), self.context.task
        assert isinstance(task, Classify)
        evaluator, splits = self.context.evaluator(net), judged_splits(task)
        kept: dict[str, list[Tensor]] = {}
        for file in self.files:
            with torch.no_grad():
                net.load(read_state(self.training.result.folder / file))
            for split in splits:
                kept.setdefault(split.name, []).append(log_probabilities(evaluator, split, task))
        return {k: torch.stack(v) for k, v in kept.items()} | labels_of(splits)


class PredictedCurve(Predictions):
    """Of evenly spaced points of a curve."""

    def __init__(self, context: Context, curve: FitCurve, points: int) -> None:
        super().__init__(context, [curve.start, curve.end, curve])
        self.curve, self.of = curve, curve.label
        self.t = np.linspace(0, 1, points)

    def fields(self) -> dict[str, Any]:
        return {"t": self.t.tolist()}

    def said(self) -> dict[str, Any]:
        return {"t": self.t.tolist()}

    def asked(self) -> dict[str, Tensor]:
        context, task, options = self.context, self.context.task, self.context.config.curve
        assert isinstance(task, Classify)
        net = context.net(0)
        c_tk = np.stack([coefficients_at(self.curve.path, t) for t in self.t.tolist()])
        splits = judged_splits(task)
        kept = predictions_along(
            context,
            context.evaluator(net, Interpolation()),
            self.curve.control_points(net),
            c_tk,
            [self.curve.start.state(), self.curve.end.state()],
            (options.fix_start, options.fix_end),
            splits,
            lambda evaluator, split: log_probabilities(evaluator, split, task),
        )
        return kept | labels_of(splits)


def predictions_along(
    context: Context,
    evaluator: Evaluator,
    W_kp: Tensor,
    c_tk: Array,
    ends: Sequence[Mapping[str, Tensor]],
    held: tuple[bool, bool],
    splits: Sequence[Split],
    answer: Answer,
    shares: Sequence[Array | None] | None = None,
) -> dict[str, Tensor]:
    """Answers (T, n, ...) by split of the networks c @ W, c (T, K), as the path between two ends has them.

    Args:
        ends: states of the two, of which buffers are taken. held: whether each is an end of the path still.
        shares: (2,) of the ends' buffers at each point; None: by its place.
    """
    net = evaluator.net
    coordinates = {*net.names}
    buffers = [{k: v.to(net.point.device) for k, v in s.items() if k not in coordinates} for s in ends]
    net.load_rest(buffers[0])
    found: dict[str, list[Tensor]] = {s.name: [] for s in splits}
    for i, c in enumerate(c_tk):
        with evaluator.placed(W_kp, c, buffers, held, None if shares is None else shares[i]):
            for split in splits:
                found[split.name].append(answer(evaluator, split))
        context.reporter.progress(i + 1, len(c_tk), f"point {i + 1}")
        context.signals.check()
    return {k: torch.stack(v) for k, v in found.items()}


def judged_splits(task: Classify) -> list[Split]:
    """Where predictions are asked for, each once: the validation split, where there is one, and the test split."""
    both = [s for s in (task.data.validation, task.data.test) if s is not None]
    return [*{s.name: s for s in both}.values()]


def log_probabilities(evaluator: Evaluator, split: Split, task: Classify) -> Tensor:
    """Of the network as it is, (n, C), on the CPU."""
    return evaluator.read(split, lambda output: task.logits(output).double().log_softmax(1).float())


def labels_of(splits: Sequence[Split]) -> dict[str, Tensor]:
    """Labels (n,) on the CPU, by ``<split>.y``."""
    return {f"{s.name}.y": s.y.cpu() for s in splits}
