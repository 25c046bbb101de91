"""What a data set can be told, and what reads it, which is imported when it is read.

A source is a class of options registered by ``@choice("dataset", name)``, with ``reader()`` or with ``arrays()`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeconn_cli.settings import LARGEST_SEED, Name, choice, option

if TYPE_CHECKING:
    from modeconn_cli.data.reader import Reader


class SplitBy(Name):
    last = "last"
    random = "random"


class Examples(Name):
    clean = "clean"
    augmented = "augmented"


class Channels(Name):
    auto = "auto"
    first = "first"
    last = "last"


class Inputs(Name):
    auto = "auto"
    continuous = "continuous"
    integers = "integers"


INPUTS = (
    "integers: whole numbers reach the network as they are (token ids); continuous: as real numbers, normalised; auto: "
    "integers where rows of whole numbers from 0 are stored and the network takes them."
)


@dataclass
class DatasetBase:
    """What every data set can be told: which examples are used, and how they reach the network."""

    name: str = option("digits", "Label used in directory names.", identity=False)
    source: str = option("digits", "Which reader finds and reads the files.", names="dataset")
    test_size: int = option(0, "Examples drawn (by split_seed) as the test split, for sources that ship none.", ge=0)
    classes: int | None = option(
        None, "How many classes the labels count, where some have no example; null: those that occur.", ge=2
    )
    validation_size: int = option(0, "Training examples held out as the validation split.", ge=0)
    validation_split: SplitBy = option(SplitBy.last, "Hold out the last examples (Garipov) or a seeded random draw.")
    split_seed: int = option(0, "Seed of every random split.", ge=0, le=LARGEST_SEED)
    use_test: bool = option(True, "Report the test split; false reports the validation split in its place.")
    train_size: int | None = option(None, "Keep only this many training examples (seeded draw); null keeps all.", ge=1)
    mean: list[float] | None = option(
        None, "Per-channel mean on the 0..1 scale; null measures it on the training split."
    )
    std: list[float] | None = option(None, "Per-channel standard deviation; null measures it.", gt=0)
    shrink: int = option(1, "Make images smaller: the mean of every square of so many pixels on a side; 1: off.", ge=1)
    pad_to: int | None = option(None, "Zero-pad images (shrunk ones) to this height and width; null leaves them.", ge=1)
    crop_padding: int = option(0, "Augmentation: random crop after zero padding by this many pixels; 0 is off.", ge=0)
    flip: bool = option(False, "Augmentation: horizontal flip with probability one half.")
    cutout: int = option(
        0,
        "Augmentation: a square of so many pixels a side, anywhere inside the image, set to the mean; 0 is off.",
        ge=0,
    )
    statistics: Examples = option(
        Examples.clean,
        "Training examples that statistics of units are taken on, BatchNorm's, REPAIR's and activation matching's: "
        "clean, or augmented by one fixed draw.",
    )
    data_dir: str | None = option(
        None, "Where the files are; null looks in $MODECONN_DATA, ./data and system folders.", identity=False
    )
    download: bool = option(False, "Let torchvision download missing files.", identity=False)

    def reader(self) -> Reader[Any]:
        """What reads it."""
        from modeconn_cli.data.reader import Made

        return Made(self)

    def arrays(self) -> Mapping[str, Any]:
        """x_train (N, ...), y_train (N, ...) and, unless test_size draws one, x_test and y_test."""
        raise NotImplementedError


@choice("dataset", "digits")
@dataclass
class Dataset(DatasetBase):
    """The digits that come with this package; what other sources are told besides, they add."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.digits import Digits

        return Digits(self)


@choice("dataset", "fashion_mnist", "mnist", "kmnist")
@dataclass
class IDX(Dataset):
    """MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017) or KMNIST (Clanuwat et al. 2018): ten classes."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.images import idx

        return idx(self)


@choice("dataset", "cifar10")
@dataclass
class CIFAR10(Dataset):
    """32 x 32 colour images of ten classes (Krizhevsky 2009)."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.images import cifar10

        return cifar10(self)


@choice("dataset", "cifar100")
@dataclass
class CIFAR100(Dataset):
    """32 x 32 colour images of a hundred classes (Krizhevsky 2009)."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.images import cifar100

        return cifar100(self)


@choice("dataset", "svhn")
@dataclass
class SVHN(Dataset):
    """32 x 32 house numbers, ten classes (Netzer et al. 2011)."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.images import svhn

        return svhn(self)


@choice("dataset", "yacht", "energy", "concrete", "airfoil")
@dataclass
class Table(Dataset):
    """A table of UCI's: real inputs, and one number to learn."""

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.tables import table

        return table(self)


@choice("dataset", "two_spirals")
@dataclass
class TwoSpirals(Dataset):
    """Points of the plane on two interleaved arms, generated; two classes."""

    examples: int = option(
        2000, "Training points, both spirals together; as many again are the test split.", ge=4, le=10_000_000
    )
    turns: float = option(1.75, "Turns of each arm.", gt=0)
    noise: float = option(0.04, "Standard deviation of the noise, in units of the outer radius.", ge=0)

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.spirals import Spirals

        return Spirals(self)


@choice("dataset", "arrays")
@dataclass
class Arrays(Dataset):
    """Arrays of the user's own, in a file."""

    path: str = option("", "A .npz or .safetensors file with x_train, y_train, x_test, y_test.", identity=False)
    channels: Channels = option(Channels.auto, "Where images keep their channels: first (NCHW), last (NHWC) or auto.")
    inputs: Inputs = option(Inputs.auto, INPUTS)

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.given import FromFile

        return FromFile(self)


@choice("dataset", "custom")
@dataclass
class CustomData(Dataset):
    """What a function of the user's own returns."""

    target: str = option(
        "",
        "my_package.my_module:load or path/to/file.py:load, called for x_train, y_train, x_test, y_test by name, or "
        "for a pair (train, test) of torch data sets.",
    )
    kwargs: dict[str, Any] = option({}, "Arguments of that call.")
    channels: Channels = option(Channels.auto, "Where images keep their channels: first (NCHW), last (NHWC) or auto.")
    inputs: Inputs = option(Inputs.auto, INPUTS)

    def reader(self) -> Reader[Any]:
        from modeconn_cli.data.given import FromFunction

        return FromFunction(self)
