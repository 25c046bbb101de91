"""The user's own arrays: a .npz or .safetensors file with x_train, y_train, x_test, y_test."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeconn_cli.data.formats import Raw, tensor
from modeconn_cli.data.options import Arrays, Channels, Inputs
from modeconn_cli.errors import UserError
from modeconn_cli.unpacking import unbelievable

KEYS = ("x_train", "y_train", "x_test", "y_test")
# What targets are read as: labels; numbers; numbers where they are stored as floating point; or auto, which also takes
# floating point that is whole, or one-hot rows, for labels.
Targets = Literal["classes", "numbers", "floats", "auto"]
EXACT = 2**53  # beyond this a float no longer holds every integer


def _refused(message: str) -> UserError:
    """In one line, whatever names and labels the file brought into the message."""
    return UserError(" ".join(message.split()))


def find(dataset: Arrays) -> Path:
    """The file of arrays; UserError where none is named or it is not there."""
    if not dataset.path:
        raise _refused(f"dataset.path is empty: give a .npz or .safetensors file with {', '.join(KEYS)}")
    path = Path(dataset.path).expanduser()
    if path.suffix not in (".npz", ".safetensors"):
        raise _refused(f"dataset.path={path}: .npz and .safetensors files are read; save the arrays as one")
    if not path.is_file():
        raise _refused(f"dataset.path={path}: no such file; paths are relative to the working directory")
    return path


def read(dataset: Arrays, targets: Targets = "classes") -> Raw:
    """The arrays of a file, as :func:`raw_of` makes them."""
    path = find(dataset)
    found = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    return raw_of(found, str(path), dataset.channels, dataset.inputs, targets, dataset.classes)


def raw_of(
    found: Mapping[str, NDArray[Any]],
    origin: str,
    channels: Channels = Channels.auto,
    inputs: Inputs = Inputs.auto,
    targets: Targets = "classes",
    classes: int | None = None,
) -> Raw:
    """Arrays by the names of KEYS, checked.

    x of any shape becomes uint8, float32 or int64 (images N, C, H, W), labels 0..classes-1 in sorted order, or where so
    many ``classes`` are asked for as they are; numbers float64 (N,) or (N, T).

    Raises UserError for arrays that are missing, empty, of unequal lengths, not numbers, or not finite.
    """
    wanted = KEYS if "x_test" in found or "y_test" in found else KEYS[:2]
    if missing := [k for k in wanted if k not in found]:
        alike = {k.lower(): k for k in found}
        cased = [f"{alike[k]} is to be called {k}" for k in missing if k in alike]
        what_to_do = " and ".join(cased) or "rename the arrays, or add them"
        raise _refused(
            f"{origin}: no {' or '.join(missing)} in it; wanted {', '.join(KEYS)} (without a test split, the first two "
            f"and dataset.test_size), found {', '.join(found) or 'nothing'}; {what_to_do}"
        )
    splits = ("train", "test") if "x_test" in found else ("train",)
    for split in splits:
        x, y = found[f"x_{split}"], found[f"y_{split}"]
        if x.ndim == 0 or y.ndim == 0 or x.size == 0 or y.size == 0:
            raise _refused(f"{origin}: x_{split} {x.shape} or y_{split} {y.shape} is empty; add examples")
        if len(x) != len(y):
            raise _refused(f"{origin}: x_{split} holds {len(x)} examples, y_{split} {len(y)}; make them equal")
    integers = _stay_integers([found[f"x_{split}"] for split in splits], inputs, origin)
    xs = [_inputs(found[f"x_{split}"], f"{origin}: x_{split}", channels, integers) for split in splits]
    ys, classes, names = read_targets([found[f"y_{split}"] for split in splits], origin, targets, classes)
    if len(xs) == 1:
        return Raw(xs[0], ys[0], None, None, classes, names)
    if xs[0].dtype != xs[1].dtype:
        types = f"x_train is {found['x_train'].dtype} and x_test {found['x_test'].dtype}"
        raise _refused(f"{origin}: {types}: only uint8 is scaled by 1/255; store both alike")
    if xs[0].shape[1:] != xs[1].shape[1:]:
        shapes = [tuple(x.shape[1:]) for x in xs]
        raise _refused(f"{origin}: examples are {shapes[0]} in x_train, {shapes[1]} in x_test; use one shape")
    return Raw(xs[0], ys[0], xs[1], ys[1], classes, names)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            _require_declared(stream)
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single unnamed array, as numpy.save and not numpy.savez writes")
            # Other keys are only named: they may be anything, and reading them costs memory.
            return {k: archive[k] if k in KEYS else np.empty(0) for k in archive.files}
    except Exception as error:  # a damaged archive can raise anything
        hint = (
            "store numbers, or text labels as y.astype(str)" if "bject arrays" in str(error) else "write the file again"
        )
        raise _refused(f"{path}: cannot be read as .npz ({path.stat().st_size} bytes): {error}; {hint}") from error


def _require_declared(stream: BinaryIO) -> None:
    """Raise ValueError where an array declares more than the archive holds of it, or than so few bytes unpack to."""
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        return
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            if entry.filename.removesuffix(".npy") not in KEYS:
                continue
            if unbelievable(entry.compress_size, entry.file_size):
                raise ValueError(f"{entry.compress_size} bytes of {entry.filename} unpack to {entry.file_size}")
            with archive.open(entry) as content:
                version = np.lib.format.read_magic(content)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header
                shape, _, dtype = header(content)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size:
                sizes = "x".join(map(str, shape))
                raise ValueError(f"{entry.filename} declares {sizes} of {dtype} in {entry.file_size} bytes")
    stream.seek(0)


_read_header = np.lib.format.read_array_header_2_0  # whose length those of version 3 share


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import safe_open

    def array(values: Tensor) -> NDArray[Any]:
        known_to_numpy = values.dtype in _NUMPY or not values.is_floating_point()
        return (values if known_to_numpy else values.float()).numpy()

    try:
        with safe_open(path, framework="pt") as archive:
            return {k: array(archive.get_tensor(k)) if k in KEYS else np.empty(0) for k in archive.keys()}  # noqa: SIM118
    except Exception as error:  # also of numbers that numpy has not
        raise _refused(
            f"{path}: cannot be read as .safetensors ({path.stat().st_size} bytes): {error}; write the file again"
        ) from error


_NUMPY = (torch.float16, torch.float32, torch.float64)


def _stay_integers(xs: list[NDArray[Any]], inputs: Inputs, origin: str) -> bool:
    """Whether inputs are to reach the network as integers: asked for, or rows of whole numbers from 0, as token ids."""
    whole = all(x.dtype.kind in "iu" for x in xs)
    if inputs == Inputs.integers and not whole:
        raise _refused(f"{origin}: dataset.inputs=integers, but x_train is {xs[0].dtype}; store integers")
    if inputs != Inputs.auto:
        return inputs == Inputs.integers
    return whole and all(x.itemsize > 1 and x.ndim == 2 and x.min() >= 0 for x in xs)


def _inputs(x: NDArray[Any], what: str, channels: Channels, integers: bool) -> Tensor:
    """uint8 kept, integers as int64 where they are to stay so, every other number as float32; channels moved second."""
    if x.dtype.kind not in "biuf":
        raise _refused(f"{what} is {x.dtype}; numbers are read (bool, integer or float); convert it")
    if integers:
        return tensor(x.astype(np.int64).reshape(len(x), -1) if x.ndim == 1 else x.astype(np.int64))
    if x.dtype != np.uint8:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise _refused(f"{what} holds NaN or infinity; remove or replace those examples")
        with np.errstate(over="ignore"):
            narrow = x.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise _refused(f"{what} holds {x.dtype} values too large for float32; rescale it")
        x = narrow
    if x.ndim in (1, 3):
        x = x[:, None]
    elif x.ndim >= 4:
        last = channels == Channels.last
        if channels == Channels.auto:
            last = x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
        if last:
            x = np.moveaxis(x, -1, 1)
    return tensor(x)


def read_targets(
    ys: list[NDArray[Any]], origin: str, wanted: Targets, classes: int | None = None
) -> tuple[list[Tensor], int | None, tuple[str, ...] | None]:
    """Labels with the number and names of their classes, or float64 numbers."""
    numeric = all(y.dtype.kind in "biuf" for y in ys)
    if wanted == "numbers" and not numeric:
        raise _refused(f"{origin}: y_train is {ys[0].dtype}; task=regress learns numbers, task=classify labels")
    floats = all(y.dtype.kind == "f" for y in ys)
    if wanted == "numbers" or (floats and wanted == "floats") or (floats and wanted == "auto" and not _are_labels(ys)):
        return (
            [_numbers(y, f"{origin}: {name}") for y, name in zip(ys, ("y_train", "y_test"), strict=False)],
            None,
            None,
        )
    return _labels(ys, origin, classes)


def _are_labels(ys: list[NDArray[Any]]) -> bool:
    """Whether floating-point targets are class labels all the same: whole numbers, or one-hot rows."""
    if any(y.ndim > 2 or not np.isfinite(y).all() for y in ys):
        return True  # which is refused, and said why, as labels are
    if all(y.ndim == 1 or y.shape[1] == 1 for y in ys):
        return all((y == np.round(y)).all() for y in ys)
    return all(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all() for y in ys)


def _numbers(y: NDArray[Any], what: str) -> Tensor:
    if y.ndim > 2:
        raise _refused(f"{what} has shape {y.shape}; give one target an example, or a row of them")
    values = y.astype(np.float64)
    if not np.isfinite(values).all():
        raise _refused(f"{what} holds NaN or infinity; remove or replace those examples")
    return tensor(values[:, 0].copy() if values.ndim == 2 and values.shape[1] == 1 else values)


def _labels(
    ys: list[NDArray[Any]], origin: str, classes: int | None
) -> tuple[list[Tensor], int, tuple[str, ...] | None]:
    plain: list[NDArray[Any]] = []
    columns: set[int] = set()
    for y, name in zip(ys, ("y_train", "y_test"), strict=False):
        values = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if values.ndim == 2:
            columns.add(values.shape[1])
            plain.append(_decoded(values, f"{origin}: {name}"))
        elif values.ndim == 1:
            columns.add(0)
            plain.append(_comparable(values, f"{origin}: {name}"))
        else:
            raise _refused(f"{origin}: {name} has shape {y.shape}; give one label an example, or one-hot rows")
    if len(columns) > 1 or len({values.dtype.kind for values in plain}) > 1:
        raise _refused(f"{origin}: y_train and y_test hold labels of different kinds; store both alike")
    seen = np.unique(np.concatenate(plain))
    if len(seen) < 2:
        raise _refused(f"{origin}: every label is {seen[0]}; a classifier needs two classes or more")
    if one_hot := columns.pop():
        return [tensor(values) for values in plain], one_hot, None
    if classes is not None and len(seen) != classes:
        _require_numbered(seen, classes, origin)
        return [tensor(values) for values in plain], classes, None
    codes = [tensor(np.searchsorted(seen, values).astype(np.int64)) for values in plain]
    words = [v.decode() if isinstance(v, bytes) else str(v) for v in seen.tolist()]
    return codes, len(seen), None if words == [str(i) for i in range(len(seen))] else tuple(words)


def _require_numbered(seen: NDArray[Any], classes: int, origin: str) -> None:
    """Raise unless labels are numbers from 0 to below ``classes``."""
    if seen.dtype.kind not in "iu":
        raise _refused(
            f"{origin}: dataset.classes={classes}, and {len(seen)} labels occur, which are text: where the others "
            "stand cannot be told; store numbers from 0, or one-hot rows"
        )
    if seen[0] < 0 or seen[-1] >= classes:
        raise _refused(
            f"{origin}: dataset.classes={classes} counts labels from 0 to {classes - 1}, and {len(seen)} run from "
            f"{seen[0]} to {seen[-1]}; number them so, or set dataset.classes to what they are"
        )


def _decoded(y: NDArray[Any], what: str) -> NDArray[np.int64]:
    numbers = y.dtype.kind in "biuf"
    if not numbers or not (((y == 0) | (y == 1)).all() and (y.sum(axis=1, dtype=np.float64) == 1).all()):
        raise _refused(
            f"{what} has shape {y.shape} but its rows are not one-hot (a single 1, the rest 0); "
            "give one label an example, or one-hot rows"
        )
    return y.argmax(axis=1).astype(np.int64)


def _comparable(y: NDArray[Any], what: str) -> NDArray[Any]:
    """Labels as int64 or text, so that train and test can be compared."""
    if y.dtype.kind in "US":
        return y
    if y.dtype.kind == "f":
        if not np.isfinite(y).all() or (y != np.round(y)).any():
            raise _refused(f"{what} holds numbers that are not integers; give class labels")
    elif y.dtype.kind not in "biu":
        raise _refused(f"{what} is {y.dtype}; labels are integers, booleans, text or one-hot rows; convert")
    if y.dtype.kind != "b" and (np.abs(y.astype(np.float64)) >= EXACT).any():
        raise _refused(f"{what} holds labels beyond 2^53; number the classes from 0")
    return y.astype(np.int64)
