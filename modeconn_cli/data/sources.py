"""A data set's content and checksum, and where its files are, whichever source it is."""

from __future__ import annotations

from pathlib import Path

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import DatasetBase
from modeconn_cli.data.reader import reader_of
from modeconn_cli.settings import choices


def checksum(dataset: DatasetBase) -> str:
    """SHA-256 of the raw data, 64 hex digits; of generated data, of the options that generate them.

    Raises UserError when the files are missing or cannot be read.
    """
    return reader_of(dataset).checksum()


def read(dataset: DatasetBase, targets: Targets = "classes") -> tuple[Raw, str]:
    """A source's data before splitting, and its checksum. Raises UserError naming the file and its fault."""
    return reader_of(dataset).read(targets)


def how_to_get(source: str) -> str:
    """One line that says where a source's files come from."""
    return reader_of(choices("dataset")[source](source=source)).how_to_get()


def search(source: str, data_dir: str | None = None) -> list[tuple[Path, bool]]:
    """Every folder a source is looked for in, and whether all its files are there; the first hit is read.

    Empty for sources that are made or given rather than looked for (two_spirals, arrays).
    """
    return reader_of(choices("dataset")[source](source=source, data_dir=data_dir)).places()
