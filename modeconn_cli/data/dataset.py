"""Data sets as tensors on the device: read, split, normalised and augmented in whole batches.

    data = load(dataset).to(device)
    draw = data.augment.draw(len(data.train), generator).to(device)    # once an epoch
    x = data.inputs(data.train, order[start:stop], draw[start:stop])   # one batch, ready for the network

Images stay bytes on the device until a batch is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.augment import Augment, AugmentDraw
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import Dataset, Examples, SplitBy
from modeconn_cli.data.sources import checksum, how_to_get, read, search
from modeconn_cli.data.spirals import random_state
from modeconn_cli.errors import UserError

__all__ = ["Augment", "AugmentDraw", "Data", "Split", "checksum", "how_to_get", "load", "search"]

CHUNK = 2048  # examples converted to float64 at a time when measuring


@dataclass(frozen=True, eq=False)
class Split:
    """Examples as stored: x (N, *shape) uint8, float32 or int64; y (N,) int64 labels, or targets (N,) or (N, T)."""

    name: str  # train, validation or test
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.name, self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set ready to train on.

    ``test`` is the split to report: the validation split, named so, with ``use_test=false``.
    ``mean`` and ``std`` broadcast against one batch (N, *shape); for uint8 they are on the 0..1 scale. ``classes``
    is None where the targets are numbers; ``class_names`` are the labels as they were stored, where not 0, 1, 2.
    With ``integers`` inputs reach the network as they are. ``statistics_draw`` augments the
    training examples that statistics of units are taken on, BatchNorm's, REPAIR's and matching's; None: clean ones.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: int | None
    shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    augment: Augment
    checksum: str
    class_names: tuple[str, ...] | None = None
    integers: bool = False
    statistics_draw: AugmentDraw | None = None

    @property
    def targets(self) -> int:
        """Numbers that an example's target has: 1, or T of targets (N, T)."""
        return 1 if self.train.y.dim() == 1 else self.train.y.shape[1]

    def told_apart(self, others: int) -> str:
        """What to do about a network that tells so many classes apart, in a sentence."""
        names = "" if self.class_names is None else f" ({', '.join(self.class_names[:5])})"
        advice = "was it trained on other labels?"
        if self.classes is not None and others > self.classes:
            advice = f"where {others} are told apart, give dataset.classes={others}."
        return f"The data have {self.classes} classes{names}: {advice}"

    @property
    def largest(self) -> int | None:
        """The largest of inputs that are integers, over all splits; None where they are real numbers."""
        splits = [s for s in (self.train, self.validation, self.test) if s is not None]
        return max(int(s.x.max()) for s in splits) if self.integers else None

    def continuous(self) -> Data:
        """The same with integer inputs as real numbers, to be normalised."""
        if not self.integers:
            return self
        test = replace(self.test, x=self.test.x.float())
        validation = self.validation
        if validation is not None:
            validation = test if validation is self.test else replace(validation, x=validation.x.float())
        train = replace(self.train, x=self.train.x.float())
        return replace(self, train=train, validation=validation, test=test, integers=False)

    def to(self, device: torch.device | str) -> Data:
        test = self.test.to(device)
        validation = self.validation
        if validation is not None:
            validation = test if validation is self.test else validation.to(device)
        return replace(
            self,
            train=self.train.to(device),
            validation=validation,
            test=test,
            mean=self.mean.to(device),
            std=self.std.to(device),
            statistics_draw=None if self.statistics_draw is None else self.statistics_draw.to(device),
        )

    def for_statistics(self, index: Tensor) -> AugmentDraw | None:
        """What training examples are augmented by where statistics of units are taken; None for clean ones."""
        return None if self.statistics_draw is None else self.statistics_draw[index]

    def inputs(self, split: Split, index: Tensor | slice, draw: AugmentDraw | None = None) -> Tensor:
        """The examples at ``index`` as a normalised float32 batch (B, *shape), augmented by ``draw``.

        Integers are given as stored, (B, *shape) int64.
        """
        x = split.x[index]
        if self.integers:
            return x
        if draw is not None:
            x = self.augment.apply(x, draw)
        if x.dtype == torch.uint8:
            scale, shift = self._fused
            x = x.float()
            x = torch.addcmul(shift, x, scale, out=x)  # in place: a batch's memory is dear to allocate
        else:
            x = (x - self.mean) / self.std  # fusing would lose digits where the mean is large
        return x if draw is None else self.augment.cut(x, draw)

    @cached_property
    def _fused(self) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.cpu().double(), self.std.cpu().double()
        return (1 / (255 * std)).to(self.mean), (-mean / std).to(self.mean)


def load(dataset: Dataset, targets: Targets = "classes") -> Data:
    """Read, split and measure a data set, on the CPU.

    Args:
        dataset: a ``settings.Dataset`` or, for the sources named so, ``TwoSpirals``, ``Arrays`` or ``CustomData``.
        targets: what the targets of arrays are to be read as; see :data:`Targets`.

    Raises UserError, in one line, for files that are missing or damaged and options that do not fit the data.
    """
    return prepare(*read(dataset, targets), dataset)


def prepare(raw: Raw, digest: str, dataset: Dataset) -> Data:
    """Split and measure what was read, as a data set's options say."""
    raw = _counted(raw, dataset)
    train, validation, test = _split(raw, dataset)
    shape = tuple(train.x.shape[1:])
    changes: list[Callable[[Split], Split]] = []
    if dataset.shrink > 1:
        shape = _shrunk_shape(shape, dataset.shrink)
        changes.append(lambda split: _shrink(split, dataset.shrink))
    if dataset.pad_to is not None:
        shape = _padded_shape(shape, dataset.pad_to)
        changes.append(lambda split: _pad(split, shape))
    for change in changes:
        train = change(train)
        reported, test = test, change(test)
        if validation is not None:
            validation = test if validation is reported else change(validation)
    mean, std = _normalisation(train.x, dataset)
    augment = _augmentation(dataset, shape)
    drawn = None
    if dataset.statistics == Examples.augmented:
        drawn = augment.draw(len(train), torch.Generator().manual_seed(0))
    integers = raw.x.dtype == torch.int64
    names = raw.class_names
    return Data(train, validation, test, raw.classes, shape, mean, std, augment, digest, names, integers, drawn)


def _augmentation(dataset: Dataset, shape: tuple[int, ...]) -> Augment:
    augment = Augment(dataset.crop_padding, dataset.flip, dataset.cutout)
    for option in ("crop_padding", "flip", "cutout"):
        if getattr(augment, option):
            _refuse_other_than_images(option, shape)
    if dataset.cutout > min(shape[1:], default=0):
        raise UserError(
            f"dataset.cutout={dataset.cutout} is larger than the {shape[1]}x{shape[2]} images; set at most "
            f"{min(shape[1:])}, or 0"
        )
    if dataset.statistics == Examples.augmented and not augment.active:
        raise UserError(
            "dataset.statistics=augmented, and nothing augments these examples: set dataset.crop_padding, dataset.flip "
            "or dataset.cutout, or leave it clean"
        )
    return augment


def _counted(raw: Raw, dataset: Dataset) -> Raw:
    """With as many classes as are asked for, the last ones without an example."""
    asked, there = dataset.classes, raw.classes
    if asked is None or asked == there:
        return raw
    if there is None:
        raise UserError(f"dataset.classes={asked}: the targets of {dataset.name} are numbers, not labels; drop it")
    if asked < there:
        raise UserError(f"dataset.classes={asked}: the labels of {dataset.name} count {there}; set {there} or more")
    return replace(raw, classes=asked)


# --------------------------------------------------------------------------------------------- splitting

# Each draw has a stream of its own, so that changing one size does not reshuffle the other splits.
_TEST, _VALIDATION, _TRAIN = 1, 2, 3


def _drawn(count: int, size: int, seed: int, stream: int) -> Tensor:
    """A mask (count,) of ``size`` examples drawn by ``seed``; a smaller size draws a subset of a larger."""
    random = random_state(seed, stream)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(random.permutation(count)[:size])] = True
    return mask


def _split(raw: Raw, dataset: Dataset) -> tuple[Split, Split | None, Split]:
    if not dataset.use_test and not dataset.validation_size:
        raise UserError(
            "dataset.use_test=false reports the validation split, but dataset.validation_size=0; "
            "set it to the number of training examples to hold out"
        )
    x, y, seed = raw.x, raw.y, dataset.split_seed
    test = None if raw.x_test is None or raw.y_test is None else Split("test", raw.x_test, raw.y_test)
    if dataset.test_size:
        if test is not None:
            raise UserError(
                f"dataset.test_size={dataset.test_size}: {dataset.name} ships a test split "
                f"({len(test)} examples); set dataset.test_size=0"
            )
        _fits("test_size", dataset.test_size, len(y) - 1, "to leave a training example")
        mask = _drawn(len(y), dataset.test_size, seed, _TEST)
        test = Split("test", x[mask], y[mask])
        x, y = x[~mask], y[~mask]
    validation = None
    if dataset.validation_size:
        _fits("validation_size", dataset.validation_size, len(y) - 1, "to leave a training example")
        mask = torch.arange(len(y)) >= len(y) - dataset.validation_size
        if dataset.validation_split == SplitBy.random:
            mask = _drawn(len(y), dataset.validation_size, seed, _VALIDATION)
        validation = Split("validation", x[mask], y[mask])
        x, y = x[~mask], y[~mask]
    if dataset.train_size is not None:
        _fits("train_size", dataset.train_size, len(y), "which is all there is to train on")
        mask = _drawn(len(y), dataset.train_size, seed, _TRAIN)
        x, y = x[mask], y[mask]
    reported = test if dataset.use_test else validation
    if reported is None:
        raise UserError(
            f"{dataset.name} ships no test split; set dataset.test_size, the examples to draw, or "
            "dataset.validation_size and dataset.use_test=false"
        )
    for split in (Split("train", x, y), reported):
        if len(split) == 0:
            raise UserError(f"{dataset.name}: its {split.name} split is empty; check the files")
    return Split("train", x, y), validation, reported


def _fits(option: str, size: int, most: int, why: str) -> None:
    if size > most:
        raise UserError(f"dataset.{option}={size} is too big: at most {most}, {why}; lower it")


# ----------------------------------------------------------------------------------- shrinking and padding


def _refuse_other_than_images(option: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise UserError(f"dataset.{option} is for images (C, H, W), the examples are {shape}; unset it")


def _shrunk_shape(shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    _refuse_other_than_images(f"shrink={factor}", shape)
    if any(side % factor for side in shape[1:]):
        raise UserError(
            f"dataset.shrink={factor} does not divide the {shape[1]}x{shape[2]} images; set a divisor of both, or 1"
        )
    return shape[0], shape[1] // factor, shape[2] // factor


def _shrink(split: Split, factor: int) -> Split:
    x = F.avg_pool2d(split.x.float() if split.x.dtype == torch.uint8 else split.x, factor)
    return replace(split, x=x.round().to(split.x.dtype) if split.x.dtype == torch.uint8 else x)


def _padded_shape(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    _refuse_other_than_images(f"pad_to={side}", shape)
    if side < max(shape[1:]):
        raise UserError(
            f"dataset.pad_to={side} is smaller than the {shape[1]}x{shape[2]} images; "
            f"set at least {max(shape[1:])}, or null"
        )
    return shape[0], side, side


def _pad(split: Split, shape: tuple[int, ...]) -> Split:
    rows, columns = shape[1] - split.x.shape[2], shape[2] - split.x.shape[3]
    edges = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return replace(split, x=F.pad(split.x, edges))


# ----------------------------------------------------------------------------------------- normalisation


def _normalisation(x: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Mean and std (1, C, 1, ...), as given or measured on the (padded) training split."""
    given = [_given(dataset.mean, "mean", x.shape[1]), _given(dataset.std, "std", x.shape[1])]
    if given[1] is not None and not (given[1] > 0).all():
        raise UserError(f"dataset.std={dataset.std} must be greater than 0; null measures it")
    if any(values is None for values in given):
        given = [mine if mine is not None else found for mine, found in zip(given, measure(x), strict=True)]
    mean, std = (values.float().view(1, -1, *[1] * (x.ndim - 2)) for values in given if values is not None)
    return mean, std


def _given(values: Sequence[float] | None, option: str, channels: int) -> Tensor | None:
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise UserError(
            f"dataset.{option} has {len(values)} values, the data {channels} channels (features); "
            f"give {channels}, or 1 for all, or null to measure"
        )
    return torch.tensor(list(values), dtype=torch.float64).expand(channels)


def measure(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) in float64 of x (N, C, ...), per channel or feature; bytes as 0..1.

    A constant feature gets standard deviation 1.
    """
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    others = [d for d in range(x.ndim) if d != 1]
    count = x.numel() // x.shape[1]
    mean = _sum(x, others) / (unit * count)
    around = (mean * unit).view(1, -1, *[1] * (x.ndim - 2))
    std = (_sum(x, others, around) / count).sqrt() / unit
    constant = std <= 1e-9 * mean.abs()  # what is left is the rounding of the mean
    return mean, torch.where(constant, torch.ones_like(std), std)


def _sum(x: Tensor, dims: list[int], around: Tensor | None = None) -> Tensor:
    """Sum of x, or of (x - around)^2, over ``dims`` in float64, a chunk of examples at a time."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for chunk in x.split(CHUNK):
        values = chunk.double() if around is None else (chunk.double() - around).square_()
        total += values.sum(dims)
    return total
