"""Reading the formats image data sets come in, from bytes to tensors.

Every reader names the file and what is wrong with it in a UserError; none of them ever runs code from a file.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeconn_cli.data.matlab import read_matlab
from modeconn_cli.errors import UserError
from modeconn_cli.unpacking import unbelievable


@dataclass(frozen=True)
class Content:
    """The (uncompressed) bytes of one file and where they came from."""

    origin: str
    data: bytes


Contents = Mapping[str, Content]


def damaged(origin: object, what: str) -> UserError:
    """The error for a file that is not what it should be; ``what``: what is wrong with it."""
    return UserError(f"{origin}: {' '.join(what.split())}; delete it and fetch it again")


@dataclass(frozen=True)
class Raw:
    """A data set before any splitting.

    x (N, *shape) uint8, float32, or int64 that is to stay so; y (N,) int64 labels, or float64 targets (N,) or (N, T),
    of which there are no classes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor | None
    y_test: Tensor | None
    classes: int | None
    class_names: tuple[str, ...] | None = None


def gunzip(content: Content) -> Content:
    """The uncompressed content; anything that is not gzip is returned as it is, whatever its name says."""
    if content.data[:2] != b"\x1f\x8b":
        return content
    out = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content.data)) as stream:
            while chunk := stream.read(1 << 20):
                out += chunk
                if unbelievable(len(content.data), len(out)):
                    raise damaged(content.origin, f"its {len(content.data)} bytes unpack to more than {len(out)}")
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(
            content.origin,
            f"truncated or corrupt gzip file: its {len(content.data)} bytes give only the first {len(out)} "
            f"uncompressed ones ({error})",
        ) from error
    return Content(content.origin, bytes(out))


def tensor(array: NDArray[Any]) -> Tensor:
    """As a tensor, copied only where the array is a read-only or reordered view of something else."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def labels(values: NDArray[Any], count: int, classes: int, origin: str) -> NDArray[np.int64]:
    """Checked labels (N,) int64 in 0..classes-1."""
    if values.shape != (count,):
        raise damaged(origin, f"{values.size} labels for {count} images")
    if values.dtype.kind not in "iu":
        raise damaged(origin, f"labels are {values.dtype}, not integers")
    y = values.astype(np.int64)
    if y.size and (y.min() < 0 or y.max() >= classes):
        raise damaged(origin, f"labels run from {y.min()} to {y.max()}, not 0 to {classes - 1}")
    return y


# --------------------------------------------------------------------------------------------------- IDX


def idx(content: Content, ndim: int) -> NDArray[np.uint8]:
    """An IDX array of bytes: two zeros, 8, the rank, big-endian uint32 sizes, the items."""
    origin, data = content.origin, content.data
    header = 4 + 4 * ndim
    if data[:4] != bytes([0, 0, 8, ndim]):
        start = data[:4].hex() or "with nothing"
        raise damaged(origin, f"not an IDX file of rank {ndim}: it should start 0000080{ndim}, not {start}")
    if len(data) < header:
        raise damaged(origin, f"truncated: the header needs {header} bytes, found {len(data)}")
    shape = struct.unpack(f">{ndim}I", data[4:header])
    if 0 in shape[1:]:
        raise damaged(origin, f"its sizes are {'x'.join(map(str, shape))}, so there is nothing in it")
    expected = header + math.prod(shape)
    if len(data) != expected:
        wrong = "truncated" if len(data) < expected else "too long"
        sizes = "x".join(map(str, shape))
        raise damaged(origin, f"{wrong}: {sizes} needs {expected} bytes, found {len(data)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(contents: Contents, classes: int) -> Raw:
    """MNIST's four files: images (N, 1, H, W) bytes, labels below ``classes``."""

    def pair(images: str, names: str) -> tuple[Tensor, Tensor]:
        x = idx(contents[images], 3)
        y = labels(idx(contents[names], 1), len(x), classes, contents[names].origin)
        return tensor(x[:, None]), tensor(y)

    train, test = pair(*IDX_FILES[:2]), pair(*IDX_FILES[2:])
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = ["x".join(map(str, x.shape[2:])) for x, _ in (train, test)]
        raise damaged(contents[IDX_FILES[2]].origin, f"its images are {sizes[1]}, those to train on {sizes[0]}")
    return Raw(*train, *test, classes)


# ------------------------------------------------------------------------------------------------- CIFAR


class _Dtype:
    """Stands in for numpy.dtype: keeps the name of an integer type and nothing else."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not re.fullmatch(r"\|?[iu][1248]", text):
            raise ValueError(f"an array of {text!r}")
        self.name = text.lstrip("|")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.name = state[1] + self.name


class _Array:
    """Stands in for numpy.ndarray: collects the array's description, to be checked before it is built."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def build(self) -> NDArray[Any]:
        _, shape, dtype, fortran, data = self.state
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        return np.frombuffer(raw, np.dtype(dtype.name)).reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into the older pickle protocols."""
    if encoding != "latin1":
        raise ValueError(f"the codec {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):
    _STAND_INS[_package + ".multiarray", "_reconstruct"] = _Array
    _STAND_INS[_package + ".numeric", "_frombuffer"] = _from_buffer


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, text, numbers and integer arrays; a file that names anything else is refused.

    Not even numpy's own functions are reachable: the few names a pickled array uses are answered by the
    stand-ins above.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays and lists are read")
        return _STAND_INS[module, name]


def _require_few_notes(data: bytes) -> None:
    """Refuse a pickle that numbers what it remembers beyond what it can hold: the unpickler makes room for all."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"it numbers an object {argument} in {len(data)} bytes")


def unpickle(content: Content) -> dict[str, Any]:
    """The dictionary in a pickled CIFAR batch, its arrays built, without running anything the file names."""
    try:
        _require_few_notes(content.data)
        found = _PlainUnpickler(io.BytesIO(content.data), encoding="latin1").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        text = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}
        return {k: v.build() if isinstance(v, _Array) else v for k, v in text.items()}
    except Exception as error:  # a damaged pickle can raise anything
        what = f"not a CIFAR batch, or a truncated one, of {len(content.data)} bytes: {error}"
        raise damaged(content.origin, what) from error


def cifar_batch(content: Content, key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = unpickle(content)
    missing = [k for k in ("data", key) if k not in batch]
    if missing:
        raise damaged(content.origin, f"no {missing[0]!r} in it, only {', '.join(map(str, batch))}")
    x = batch["data"]
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] != (3072,):
        raise damaged(content.origin, "'data' is not an array of (N, 3072) bytes")
    try:
        values = np.asarray(batch[key])
    except ValueError as error:
        raise damaged(content.origin, f"{key!r} is not a list of integers") from error
    return x, labels(values, len(x), classes, content.origin)


def read_cifar(contents: Contents, train: Sequence[str], test: str, key: str, classes: int) -> Raw:
    """The Python version: a pickled dictionary a batch, images as rows of 3 x 32 x 32 bytes."""
    pairs = [cifar_batch(contents[name], key, classes) for name in (*train, test)]
    return _cifar(pairs, classes)


def read_cifar_binary(contents: Contents, train: Sequence[str], test: str, classes: int) -> Raw:
    """The binary version: a record an image, of one label (CIFAR-100: coarse, then fine) and 3072 bytes."""
    header = 1 if classes == 10 else 2
    pairs = []
    for name in (*train, test):
        origin, data = contents[name].origin, contents[name].data
        if not data or len(data) % (header + 3072):
            expected = f"a multiple of {header + 3072} bytes"
            raise damaged(origin, f"truncated: expected {expected}, found {len(data)}")
        records = np.frombuffer(data, np.uint8).reshape(-1, header + 3072)
        pairs.append((records[:, header:], labels(records[:, header - 1], len(records), classes, origin)))
    return _cifar(pairs, classes)


def _cifar(pairs: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: int) -> Raw:
    def joined(part: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
        x = np.concatenate([x for x, _ in part]).reshape(-1, 3, 32, 32)
        return tensor(x), tensor(np.concatenate([y for _, y in part]))

    return Raw(*joined(pairs[:-1]), *joined(pairs[-1:]), classes)


# -------------------------------------------------------------------------------------------------- SVHN


def read_svhn(contents: Contents, classes: int) -> Raw:
    """MATLAB files with X (32, 32, 3, N) bytes and y (N, 1), where the digit 0 is labelled 10."""

    def split(name: str) -> tuple[Tensor, Tensor]:
        origin, data = contents[name].origin, contents[name].data
        try:
            found = read_matlab(data, ("X", "y"))
            x, y = found["X"], found["y"].ravel()
        except ValueError as error:
            what = f"not SVHN's MATLAB file, or a truncated one, of {len(data)} bytes: {error}"
            raise damaged(origin, what) from error
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
            raise damaged(origin, f"X is {x.dtype} of shape {x.shape}, not bytes of (32, 32, 3, N)")
        y = np.where(y == 10, 0, y)
        return tensor(x.transpose(3, 2, 0, 1)), tensor(labels(y, x.shape[3], classes, origin))

    return Raw(*split("train_32x32.mat"), *split("test_32x32.mat"), classes)


# ------------------------------------------------------------------------------------------------- tables


def read_table(contents: Contents) -> Raw:
    """A text file of numbers, one example a line, by spaces or commas; the last column is the target. No test split."""
    (content,) = contents.values()
    try:
        lines = content.data.decode("utf-8").replace(",", " ").splitlines()
        rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
        table = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise damaged(content.origin, f"not a table of numbers, one example a line: {error}") from error
    with np.errstate(over="ignore"):
        finite = np.isfinite(table).all() and np.isfinite(table.astype(np.float32)).all()
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 2 or not finite:
        raise damaged(content.origin, f"a table of shape {table.shape}; wanted finite numbers, two columns or more")
    return Raw(tensor(table[:, :-1].astype(np.float32)), tensor(table[:, -1].copy()), None, None, None)
