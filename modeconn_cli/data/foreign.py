"""Examples of another data set, as networks that were trained on this one can take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from modeconn_cli.data.dataset import Data, Split, prepare
from modeconn_cli.data.options import Dataset
from modeconn_cli.data.sources import checksum, read
from modeconn_cli.errors import UserError
from modeconn_cli.settings import choices, fields_off_default

MADE_TO_MEASURE = ("arrays", "custom")  # which are no data set by their name alone


def foreign(named: str, beside: Dataset, setting: str) -> Dataset:
    """Another data set's options: a source by name, or a file as dataset=arrays takes it.

    Images are shrunk and padded as those of ``beside`` are, and looked for where they are.

    Raises:
        UserError: there is no such source or file.
    """
    sources = choices("dataset")
    shaped = {"shrink": beside.shrink, "pad_to": beside.pad_to, "data_dir": beside.data_dir}
    if named in sources and named not in MADE_TO_MEASURE:
        made: Dataset = sources[named](name=named, source=named, **shaped)
        return made
    if Path(named).is_file():
        found: Dataset = sources["arrays"](name=Path(named).name, source="arrays", path=named, **shaped)
        return found
    near = ", ".join(sorted(s for s in sources if s not in MADE_TO_MEASURE))
    raise UserError(f"{setting}={named}: no such data set and no such file; give a file of arrays, or one of {near}.")


def foreign_split(options: Dataset, data: Data, setting: str) -> Split:
    """Another data set's test split, or all of it where it ships none, on the CPU; it is normalised as ``data`` are.

    Raises:
        UserError: its examples are not of the same form.
    """
    raw, digest = read(options)
    whole = raw if raw.x_test is not None else replace(raw, x_test=raw.x, y_test=raw.y)
    other = prepare(whole, digest, options)
    if data.integers or other.integers:
        raise UserError(f"{setting}={options.name}: integer inputs have no scale to compare by; leave it out.")
    if other.shape != data.shape:
        raise UserError(
            f"{setting}={options.name}: its examples are {_shape(other.shape)} where the networks take "
            f"{_shape(data.shape)}; dataset.shrink and dataset.pad_to bring both to one size."
        )
    x = other.test.x
    if x.dtype != data.test.x.dtype:
        if torch.uint8 in (x.dtype, data.test.x.dtype):
            raise UserError(
                f"{setting}={options.name}: its examples are {x.dtype} and those of the networks {data.test.x.dtype}, "
                "which are not on one scale; store both as bytes, or both as real numbers."
            )
        x = x.to(data.test.x.dtype)
    return Split(options.name, x, other.test.y)


def foreign_fields(options: Dataset) -> dict[str, object]:
    """What determines another data set's examples."""
    return {"source": str(options.source), **fields_off_default(options), "data": checksum(options)}


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
