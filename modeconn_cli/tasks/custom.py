"""An objective from the user's own code.

A function of output and target that gives one loss an example, (B,), or their mean; or an object with

    loss(output, batch) -> ()      scores(output, batch) -> {column: (B,)}      columns: names, or Columns

and, if it likes, ``verdict`` (a Criterion) and ``outputs``. A function's output is the tensor in what the network
returned (:func:`modeconn_cli.tasks.outputs.tensor_of`), an object's is whatever that was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.data.dataset import Data, Split
from modeconn_cli.errors import UserError
from modeconn_cli.failures import refused, said
from modeconn_cli.targets import Target, working_directory_importable
from modeconn_cli.tasks.base import Batch, Column, Criterion, Draw, draw_examples
from modeconn_cli.tasks.outputs import tensor_of
from modeconn_cli.tasks.targets import Scale

PROBED = 256  # training examples that a constant answer is tried on
SHARE = 0.02  # of what a constant answer costs: the barrier below which a path connects


@dataclass(frozen=True, eq=False)
class Custom:
    """A task whose objective is ``inner``: the user's own object, or a function made one."""

    data: Data
    inner: Any
    columns: tuple[Column, ...]
    verdict: Criterion
    outputs: int
    answers: tuple[tuple[int, ...], ...] = ()
    scale: Scale | None = None  # of targets that were normalised

    @staticmethod
    def of(
        data: Data, target: Target, kwargs: dict[str, Any], outputs: int | None = None, normalise: bool = False
    ) -> Custom:
        """The task on data as read.

        Where the object has no ``verdict`` of its own, a path connects when its barrier is below 2% of what a constant
        answer costs: the mean target, or zeros for classes.

        Raises:
            UserError: the target is no such function or object, or it fails on a constant answer.
        """
        return Custom.around(data, _made(target, kwargs), target.text, outputs, normalise)

    @staticmethod
    def around(data: Data, objective: Any, text: str, outputs: int | None = None, normalise: bool = False) -> Custom:
        """:meth:`of` a function or an object that is at hand; ``text``: what messages call it."""
        if normalise and data.classes is not None:
            raise UserError("task.normalise=true is for targets that are numbers, and these are labels")
        scale = Scale.measured(data.train.y) if normalise else None
        if data.classes is None:
            flat = data.train.y.dim() == 1
            data = (scale or Scale.none(data.targets)).normalised(data)
            data = _flat(data) if flat else data
        inner = _objective(objective, text)
        columns = tuple(c if isinstance(c, Column) else Column(str(c), str(c)) for c in inner.columns)
        width = outputs or getattr(inner, "outputs", None) or (data.targets if data.classes is None else data.classes)
        verdict = getattr(inner, "verdict", None)
        if verdict is None:
            verdict = Criterion(
                columns[0].name, "above_mean", _constant_cost(data, inner, columns[0].name, width, text)
            )
        return Custom(data, inner, columns, verdict, int(width), scale=scale)

    @property
    def note(self) -> dict[str, Any]:
        names = {} if self.data.class_names is None else {"classes": [*self.data.class_names]}
        return names if self.scale is None else {"targets": self.scale.note()}

    def to(self, device: Any) -> Custom:
        return replace(self, data=self.data.to(device))

    def smoothed(self, label_smoothing: float) -> Custom:
        if label_smoothing:
            raise UserError(f"label_smoothing={label_smoothing:g} is of task=classify; smooth in task.target instead.")
        return self

    def draw(self, seed: int, epoch: int) -> Draw:
        return draw_examples(self.data, seed, epoch)

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def loss(self, output: Any, batch: Batch) -> Tensor:
        found: Tensor = self.inner.loss(output, batch)
        return found

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.inner.scores(output, batch)
        return found


class FromFunction:
    """A function of output and target as an objective with one column, called as the function is."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        self.function = function
        plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        # test_loss is the whole of it, with the weight-decay term.
        self.name = "objective" if plain in ("", "loss") else plain
        self.columns = (Column(self.name, name),)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return self.function(*_alike(tensor_of(output), batch.y)).mean()

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        answer, y = _alike(tensor_of(output), batch.y)
        found = self.function(answer, y)
        if found.dim() == 0:  # a mean over examples: each by itself is a batch of one
            found = self._one_by_one(answer, y)
        return {self.name: found.reshape(len(y), -1).mean(1)}

    def _one_by_one(self, answer: Tensor, y: Tensor) -> Tensor:
        def of_one(a: Tensor, b: Tensor) -> Tensor:
            return self.function(a[None], b[None])

        try:
            return torch.vmap(of_one)(answer, y)
        except Exception:  # not every function can be mapped so; any can be called in turn
            return torch.stack([of_one(a, b) for a, b in zip(answer, y, strict=True)])


def _alike(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One output and one target an example in one shape: (B, 1) against (B,) would broadcast to (B, B)."""
    if y.is_floating_point():
        y = y.to(output.dtype)
        if y.dim() == 1 and output.shape == (len(y), 1):
            output = output[:, 0]
    return output, y


def _flat(data: Data) -> Data:
    """Targets (N, 1) as (N,), as they were stored."""

    def of(split: Split) -> Split:
        return replace(split, y=split.y[:, 0])

    test = of(data.test)
    validation = data.validation
    if validation is not None:
        validation = test if validation is data.test else of(validation)
    return replace(data, train=of(data.train), validation=validation, test=test)


def _made(target: Target, kwargs: dict[str, Any]) -> Any:
    with working_directory_importable():
        found = target.load()
        if isinstance(found, type):
            found = target.call(found, {}, kwargs)
        elif kwargs:
            raise UserError(f"task.kwargs are what a class is made with, and {target.text} is none: remove them")
    return found


def _objective(found: Any, text: str) -> Any:
    if all(hasattr(found, name) for name in ("loss", "scores", "columns")):
        return found
    if not callable(found):
        raise UserError(
            f"{text} is a {type(found).__name__}: point task.target to a function of output and target, or to a "
            "class with loss, scores and columns"
        )
    return FromFunction(found, getattr(found, "__name__", type(found).__name__))


def _constant_cost(data: Data, inner: Any, column: str, outputs: int, text: str) -> float:
    """SHARE of the mean objective of the best guess that looks at no input."""
    y = data.train.y[:PROBED]
    rows = torch.zeros(len(y), outputs)
    if y.is_floating_point() and outputs == data.targets:
        rows = rows + data.train.y.double().reshape(len(data.train), -1).mean(0).float()
    try:
        with torch.no_grad():
            scores = inner.scores(rows, Batch(data.train.x[:PROBED], y))
            cost = float(scores[column].double().mean())
            shape = tuple(scores[column].shape)
    except Exception as error:
        raise refused(
            error,
            f"{text} fails on outputs {tuple(rows.shape)} and targets {tuple(y.shape)} ({said(error)}): correct it, or "
            "set task.outputs",
        ) from error
    if shape != (len(y),):
        raise UserError(f"{text} gives {column} of shape {shape} for {len(y)} examples; give one an example")
    return float(f"{SHARE * abs(cost):.3g}") or SHARE
