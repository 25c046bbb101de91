"""Data from the user's own code: a function that returns arrays, tensors or torch data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeconn_cli.data import arrays
from modeconn_cli.data.convert import array_of, examples_of
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import CustomData
from modeconn_cli.errors import UserError
from modeconn_cli.targets import Target, working_directory_importable


def read(dataset: CustomData, targets: arrays.Targets = "classes") -> Raw:
    """What the function returns, as a file's arrays are read."""
    return arrays.raw_of(_found(dataset), dataset.target, dataset.channels, dataset.inputs, targets, dataset.classes)


def checksum(dataset: CustomData) -> str:
    """SHA-256 of the function's source file and of what it returned."""
    return hashlib.sha256(f"{_target(dataset).checksum} {content_digest(_found(dataset))}".encode()).hexdigest()


def content_digest(found: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of arrays by name: their types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(found):
        values = np.ascontiguousarray(found[name])
        total.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def _target(dataset: CustomData) -> Target:
    return Target(dataset.target, "dataset")


def _found(dataset: CustomData) -> dict[str, NDArray[Any]]:
    kwargs = json.dumps(dataset.kwargs, sort_keys=True, default=str)
    return _called(dataset.target, _target(dataset).checksum, kwargs, str(Path.cwd()))


@lru_cache(maxsize=1)  # one request asks for the checksum and for the data
def _called(text: str, _source: str, kwargs: str, _directory: str) -> dict[str, NDArray[Any]]:
    target = Target(text, "dataset")
    with working_directory_importable():
        make = target.load()
        if not callable(make):
            raise UserError(
                f"{text} is a {type(make).__name__} object: point dataset.target to a function that returns the data"
            )
        returned = target.call(make, {}, json.loads(kwargs))
        if isinstance(returned, Mapping):
            return {k: array_of(returned[k]) for k in arrays.KEYS if k in returned} or dict.fromkeys(
                map(str, returned), np.empty(0)
            )
        if isinstance(returned, tuple | list) and len(returned) == 2:
            found = {}
            for split, examples in zip(("train", "test"), returned, strict=True):
                found[f"x_{split}"], found[f"y_{split}"] = examples_of(examples, f"{text}: the {split} split")
            return found
    raise UserError(
        f"{text} returned {type(returned).__name__}: wanted a dictionary of {', '.join(arrays.KEYS)}, or a pair "
        "(train, test) of torch data sets"
    )
