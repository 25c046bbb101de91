"""What a caller gives for data and objective, as this package's Data and Task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from modeconn_cli.data.arrays import KEYS, read_targets
from modeconn_cli.data.augment import Augment
from modeconn_cli.data.convert import array_of, examples_of
from modeconn_cli.data.custom import content_digest
from modeconn_cli.data.dataset import Data, Split
from modeconn_cli.errors import UserError
from modeconn_cli.forward import evaluating, modes_kept, rest_kept
from modeconn_cli.models.external import check_answers
from modeconn_cli.settings import Config
from modeconn_cli.tasks.base import Batch, Column, Criterion, Draw, Task, draw_examples
from modeconn_cli.tasks.custom import Custom
from modeconn_cli.tasks.make import make_task
from modeconn_cli.tasks.options import Regression, TaskBase
from modeconn_cli.tasks.outputs import tensor_of

ONE = "train and test are the same examples, for only one set was given: give (train, test) to tell them apart"
Arrays = tuple[NDArray[Any], NDArray[Any]]


def splits_of(data: Any) -> tuple[Arrays, Arrays | None]:
    """Inputs and targets of the training split and, where it was given, of the test split.

    data: a pair (x, y) of tensors or arrays, a map-style Dataset of pairs, or a DataLoader; or a pair (train, test) of
    these; or a dictionary of x_train, y_train and, where there are some, x_test and y_test.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(data, Mapping):
        missing = [k for k in KEYS[:2] if k not in data]
        if missing:
            raise UserError(f"data has no {' and no '.join(missing)}: name its arrays {', '.join(KEYS)}.")
        train, *test = [(data[f"x_{s}"], data[f"y_{s}"]) for s in ("train", "test") if f"x_{s}" in data]
        return _split(train, "data"), _split(test[0], "data") if test else None
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_split, data)):
        return _split(data[0], "the first of data"), _split(data[1], "the second of data")
    return _split(data, "data"), None


def _is_split(value: Any) -> bool:
    return isinstance(value, Dataset | DataLoader) or (isinstance(value, tuple | list) and len(value) == 2)


def _split(split: Any, what: str) -> Arrays:
    if isinstance(split, tuple | list) and not all(isinstance(v, Tensor | np.ndarray) for v in split):
        raise UserError(f"{what} is a {type(split).__name__}: give tensors (x, y), a torch Dataset, or a DataLoader.")
    x, y = examples_of(split, what)
    if x.ndim < 1 or y.ndim < 1 or not len(x) or len(x) != len(y):
        raise UserError(f"{what}: inputs {x.shape} and targets {y.shape}: give as many of both, and at least one.")
    return x, y


def data_of(data: Any, config: Config, dtype: torch.dtype, notes: list[str]) -> Data:
    """Data on the CPU that reach the network as they are: floats in its own type, bytes as 0 to 1, integers unchanged.

    Integer targets are class numbers, unchanged too.

    Raises:
        UserError: inputs are no numbers or not finite, or targets are not what the task learns.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, str):
        from modeconn_cli.work.context import Context
        from modeconn_cli.work.reporting import Silent

        return Context(config, Silent()).data_on_host
    train, test = splits_of(data)
    if test is None:
        notes.append(ONE)
        test = train
    arrays = dict(zip(KEYS, (*train, *test), strict=True))
    ys, classes = _targets([train[1], test[1]], config)
    xs = [_inputs(x, dtype) for x in (train[0], test[0])]
    if xs[0].dtype != xs[1].dtype or xs[0].shape[1:] != xs[1].shape[1:]:
        kinds = [f"{x.dtype} {tuple(x.shape[1:])}" for x in xs]
        raise UserError(f"examples are {kinds[0]} in the training split, {kinds[1]} in the test split: give one kind.")
    shape = tuple(xs[0].shape[1:])
    around = (1, *[1] * len(shape))
    splits = [Split(name, x, y) for name, x, y in zip(("train", "test"), xs, ys, strict=True)]
    mean, std = torch.zeros(around, dtype=dtype), torch.ones(around, dtype=dtype)
    integers = xs[0].dtype == torch.int64
    return Data(
        splits[0], None, splits[1], classes, shape, mean, std, Augment(), content_digest(arrays), None, integers
    )


def _inputs(x: NDArray[Any], dtype: torch.dtype) -> Tensor:
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    if x.dtype.kind in "iu":
        return torch.from_numpy(x.astype(np.int64))
    if x.dtype.kind not in "bf":
        raise UserError(f"inputs are {x.dtype}: numbers are read; convert them.")
    found = torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    if not torch.isfinite(found).all():
        raise UserError("inputs hold NaN or infinity; remove or replace those examples.")
    return found


def _targets(ys: list[NDArray[Any]], config: Config) -> tuple[list[Tensor], int | None]:
    wanted = config.task.targets
    if wanted != "numbers" and all(y.dtype.kind in "iu" and y.ndim == 1 for y in ys):
        lowest = min(int(y.min()) for y in ys)
        if lowest < 0:
            raise UserError(f"a target is {lowest}: classes count from 0; leave out examples without one.")
        return [torch.from_numpy(y.astype(np.int64)) for y in ys], max(int(y.max()) for y in ys) + 1
    found, classes, _ = read_targets(ys, "data", wanted)
    return found, classes


def task_of(task: Any, data: Data, config: Config, module: nn.Module, normalised: bool = False) -> Task:
    """The objective on data, fit for a network.

    task: "auto", "classify", "regress"; a function of output and target, or a loss module; an object with loss, scores
    and columns; or a whole Task, which has its data. normalised: whether numbers are learnt normalised where nothing is
    said, as on the command line; a module of the caller's answers in their unit.

    Raises:
        UserError: the network does not take these inputs, or does not answer with what the task scores.
    """
    if data.classes is not None and (found := _logits(module, data)) is not None:
        data = replace(data, classes=_classes(found, data.classes))
    if isinstance(task, str):
        numbers = data.classes is None and str(config.task.kind) == "auto" and not normalised
        asked = _numbers(config.task) if numbers else config.task
        made = make_task(asked, data, config.interpolation.connected_below)
    elif hasattr(task, "data"):
        made = task
    else:
        made = Custom.around(data, task, getattr(task, "__name__", type(task).__name__))
    check_answers(
        module, type(module).__name__, made.data.shape, made.answers, made.data.largest, "give data as it takes them"
    )
    return made


def _numbers(auto: TaskBase) -> Regression:
    """What to do with numbers where the task is found from the data: they are as the network answers."""
    verdict = {f.name: getattr(auto, f.name) for f in fields(TaskBase) if f.name.startswith("verdict")}
    return Regression(normalise=False, **verdict)


def _logits(module: nn.Module, data: Data) -> int | None:
    """How many numbers the network answers an example with, where it takes the data and that is one row."""
    try:
        with torch.no_grad(), modes_kept(module), rest_kept(module):
            answer = tensor_of(evaluating(module)(data.inputs(data.train, slice(0, 2)).clone()))
    except Exception:  # which is said when the network is tried in earnest
        return None
    return 1 if answer.dim() == 1 else answer.shape[1] if answer.dim() == 2 else None


def _classes(logits: int, labels: int) -> int:
    """Classes that are told apart: as many as logits, for data need not have an example of each."""
    classes = 2 if logits == 1 else logits
    if labels > classes:
        raise UserError(
            f"a label is {labels - 1}, and the networks answer with {logits} logits, so classes count from 0 to "
            f"{classes - 1}: for numbers give task='regress'."
        )
    return classes


class Unlabelled:
    """Inputs alone: nothing is learnt from them and nothing scored."""

    columns: tuple[Column, ...] = (Column("none", "nothing"),)
    verdict = Criterion("none", "above_mean", 1.0)
    outputs = 1
    answers: tuple[tuple[int, ...], ...] = ()

    def __init__(self, data: Data) -> None:
        self.data = data

    def to(self, device: Any) -> Unlabelled:
        return Unlabelled(self.data.to(device))

    def smoothed(self, label_smoothing: float) -> Unlabelled:
        return self

    def draw(self, seed: int, epoch: int) -> Draw:
        return draw_examples(self.data, seed, epoch)

    def batch(self, split: Split, index: Tensor | slice, draw: Any = None) -> Batch:
        return Batch(self.data.inputs(split, index, draw), split.y[index])

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return torch.zeros(())

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {"none": torch.zeros(len(batch.x))}


SIDES = (32, 28, 64, 224, 16, 8)  # of images, as data sets have them


def unlabelled_data(x: Tensor | None, module: nn.Module) -> Data:
    """Inputs x (N, ...) without targets, on the CPU; None: random ones that the network takes.

    Raises:
        UserError: what it takes cannot be told.
    """
    dtype = next(p.dtype for p in module.parameters())
    x = _random_inputs(module, dtype) if x is None else _inputs(array_of(x), dtype)
    y = torch.zeros(len(x), dtype=torch.int64)
    around = (1, *[1] * (x.dim() - 1))
    mean, std = torch.zeros(around, dtype=dtype), torch.ones(around, dtype=dtype)
    train, test = Split("train", x, y), Split("test", x, y)
    digest = content_digest({"x": array_of(x)})
    return Data(train, None, test, None, tuple(x.shape[1:]), mean, std, Augment(), digest, None, x.dtype == torch.int64)


def _random_inputs(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """64 examples of a shape that the network takes, as its first layer suggests."""
    tried = evaluating(copy.deepcopy(module))
    generator = torch.Generator().manual_seed(0)
    first = next((m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(first.in_features,)]
    elif first is not None:
        shapes = [(first.in_channels, *[side] * len(first.kernel_size)) for side in SIDES]
    for shape in shapes:
        x = torch.randn(64, *shape, generator=generator, dtype=dtype)
        try:
            with torch.no_grad():
                tried(x[:2].clone())
        except Exception:  # another shape may do
            continue
        return x
    raise UserError(
        "the shape of an input cannot be told from the network: give data, as a tensor of inputs x (N, ...)."
    )
