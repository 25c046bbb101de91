"""torch's data sets, loaders and tensors as this package's Data.

data = from_torch(train, test)          # Datasets, DataLoaders or pairs of tensors (x, y)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from modeconn_cli.errors import UserError, one_line


def array_of(values: Any) -> NDArray[Any]:
    """A tensor, an array, an image or a sequence as an array; bfloat16 as float32."""
    if isinstance(values, Tensor):
        try:
            values = values.detach().cpu()
            return (values.float() if values.dtype is torch.bfloat16 else values).resolve_conj().numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:  # of meta, sparse, quantised and float8 ones
            raise UserError(
                f"a tensor cannot be read as an array ({one_line(str(error))}); give a plain one"
            ) from error
    return np.asarray(values)


def examples_of(split: Any, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """All inputs (N, ...) and targets (N, ...) of one split, each example once and in its own order.

    split: a pair (x, y) of tensors or arrays, a map-style Dataset of pairs, or a DataLoader. Of a loader, the examples
    that it draws from are read without its shuffling; its batches, where its data set has no length.

    Raises:
        UserError: it is none of these, is empty, or its examples are not pairs of one shape.
    """
    if isinstance(split, DataLoader):
        if isinstance(split.dataset, IterableDataset):
            batches = [_pair(batch, what) for batch in split]
            if not batches:
                raise UserError(f"{what} is empty; give examples")
            return _joined(batches, what)
        chosen = _drawn_from(split, what)
        if split.collate_fn is not default_collate:
            in_order = DataLoader(chosen, batch_size=split.batch_size or 1, collate_fn=split.collate_fn)
            return _joined([_pair(batch, what) for batch in in_order], what)
        split = chosen
    if isinstance(split, TensorDataset):
        split = split.tensors
    if isinstance(split, Dataset) and not isinstance(split, IterableDataset):
        pairs = [_pair(split[i], what) for i in range(len(split))]  # type: ignore[arg-type]
        if not pairs:
            raise UserError(f"{what} is empty; give examples")
        try:
            x, y = (np.stack([array_of(p[k]) for p in pairs]) for k in (0, 1))
        except ValueError as error:
            raise UserError(f"{what}: its examples are not of one shape ({error}); give all one") from error
        return x, y
    if isinstance(split, tuple | list) and len(split) == 2:
        return array_of(split[0]), array_of(split[1])
    raise UserError(
        f"{what} is a {type(split).__name__}: give a pair (x, y), a torch Dataset of pairs, or a DataLoader"
    )


def _drawn_from(loader: DataLoader[Any], what: str) -> Dataset[Any]:
    """The examples of a loader's data set that it draws from, in their own order."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement):
        return loader.dataset
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, sorted(map(int, sampler.indices)))
    name = type(loader.batch_sampler if sampler is None else sampler).__name__
    raise UserError(f"{what}: a loader with a {name} does not say which examples it has; give its Dataset, or a Subset")


def _joined(batches: Sequence[Any], what: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        x, y = (np.concatenate([array_of(b[k]) for b in batches]) for k in (0, 1))
    except ValueError as error:
        raise UserError(f"{what}: its examples are not of one shape ({error}); give all one") from error
    return x, y


def _pair(example: Any, what: str) -> Any:
    if isinstance(example, tuple | list) and len(example) == 2:
        return example
    raise UserError(f"{what}: an example is a {type(example).__name__}, not a pair of input and target")


def from_torch(train: Any, test: Any, *, normalise: bool = False, targets: str = "auto", inputs: str = "auto") -> Any:
    """Data (:class:`modeconn_cli.data.dataset.Data`) on the CPU, from what :func:`examples_of` reads.

    normalise: inputs to mean 0 and deviation 1 per channel, measured on ``train``; False leaves them as they are, bytes
    as 0 to 1. targets: "classes", "numbers", "floats" or "auto", as in :data:`modeconn_cli.data.arrays.Targets`.
    inputs: "auto", "continuous" or "integers", as ``dataset.inputs``. The checksum is of the content.

    >>> data = from_torch((torch.rand(8, 3), torch.arange(8) % 2), (torch.rand(4, 3), torch.arange(4) % 2))
    >>> data.shape, data.classes, len(data.test)
    ((3,), 2, 4)
    """
    from modeconn_cli.data.arrays import raw_of
    from modeconn_cli.data.custom import content_digest
    from modeconn_cli.data.dataset import prepare
    from modeconn_cli.data.options import Channels, CustomData, Inputs

    found = {}
    for split, examples in (("train", train), ("test", test)):
        found[f"x_{split}"], found[f"y_{split}"] = examples_of(examples, f"the {split} split")
    raw = raw_of(found, "the data", Channels.auto, Inputs(inputs), targets)  # type: ignore[arg-type]
    options = CustomData(name="data") if normalise else CustomData(name="data", mean=[0.0], std=[1.0])
    return prepare(raw, content_digest(found), options)
