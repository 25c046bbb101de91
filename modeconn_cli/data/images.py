"""Published sets of images: MNIST and its relatives, CIFAR, SVHN."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modeconn_cli.data.files import Files, Kind, Layout
from modeconn_cli.data.formats import IDX_FILES, read_cifar, read_cifar_binary, read_idx, read_svhn
from modeconn_cli.data.options import Dataset

SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


def _cifar_layouts(number: int, train: tuple[str, ...], test: str, key: str) -> tuple[Layout, ...]:
    names = (*train, test)
    binary = tuple(f"{name}.bin" for name in names)
    python = partial(read_cifar, train=train, test=test, key=key, classes=number)
    records = partial(read_cifar_binary, train=binary[:-1], test=binary[-1], classes=number)
    folder = f"cifar-{number}-batches" if number == 10 else f"cifar-{number}"
    return (
        Layout(names, python, f"{folder}-py" if number == 10 else f"{folder}-python"),
        Layout(binary, records, f"{folder}-bin" if number == 10 else f"{folder}-binary"),
        Layout(names, python, f"cifar-{number}-python.tar.gz"),
        Layout(binary, records, f"cifar-{number}-binary.tar.gz"),
    )


def idx(options: Dataset) -> Files:
    """MNIST, Fashion-MNIST or KMNIST."""
    name = str(options.source)
    theirs = {"fashion_mnist": "FashionMNIST", "mnist": "MNIST", "kmnist": "KMNIST"}[name]
    layout = Layout(IDX_FILES, partial(read_idx, classes=10))
    get = "apt install dataset-fashion-mnist" if name == "fashion_mnist" else ""
    kind = Kind((layout,), f"{theirs}/raw", theirs, system=SYSTEM_FOLDERS.get(name), get=get)
    return Files(options, kind)


def cifar10(options: Dataset) -> Files:
    """CIFAR-10, five training batches and a test batch."""
    names = tuple(f"data_batch_{i}" for i in range(1, 6))
    return Files(options, Kind(_cifar_layouts(10, names, "test_batch", "labels"), "CIFAR10/raw", "CIFAR10"))


def cifar100(options: Dataset) -> Files:
    """CIFAR-100, by its fine labels."""
    return Files(options, Kind(_cifar_layouts(100, ("train",), "test", "fine_labels"), "CIFAR100/raw", "CIFAR100"))


def svhn(options: Dataset) -> Files:
    """SVHN's cropped digits; label 10 is 0."""
    layout = Layout(("train_32x32.mat", "test_32x32.mat"), partial(read_svhn, classes=10))
    return Files(options, Kind((layout,), "SVHN/raw", "SVHN", ("train", "test")))
