"""What reads a data set: its content, a checksum of it, and where its files are looked for.

A data set's options make their reader (``reader()``), or have ``arrays()``, which is all that :class:`Made` wants.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from modeconn_cli.data.arrays import Targets, raw_of
from modeconn_cli.data.convert import array_of
from modeconn_cli.data.custom import content_digest
from modeconn_cli.data.formats import Raw
from modeconn_cli.errors import UserError
from modeconn_cli.settings import choices, named_choice

if TYPE_CHECKING:
    from modeconn_cli.data.options import DatasetBase

Options = TypeVar("Options", bound="DatasetBase")
_digests: dict[tuple[object, ...], str] = {}


class Reader(Generic[Options]):
    """Reads a data set as its options say.

    given: whether its content is what a caller gives, which is looked for nowhere.
    """

    given: ClassVar[bool] = False

    def __init__(self, options: Options) -> None:
        self.options = options
        self.source = str(options.source)

    def read(self, targets: Targets) -> tuple[Raw, str]:
        """The data before splitting, and their checksum.

        Args:
            targets: what the targets of arrays are to be read as.

        Raises:
            UserError: files are missing or damaged; it names the file and its fault.
        """
        raise NotImplementedError

    def checksum(self) -> str:
        """SHA-256 of the raw data, or of all that generates them, 64 hex digits.

        Raises:
            UserError: files are missing or cannot be read.
        """
        raise NotImplementedError

    def places(self) -> list[tuple[Path, bool]]:
        """Every folder that is looked in, and whether all files are there; empty for what is made or given."""
        return []

    def how_to_get(self) -> str:
        """One line that says where its files come from."""
        return "nothing to get: it comes with this package"


class Made(Reader["DatasetBase"]):
    """A data set whose options have ``arrays()``: x_train, y_train, x_test, y_test by name."""

    def read(self, targets: Targets) -> tuple[Raw, str]:
        found = self._arrays()
        return raw_of(found, self.source, targets=targets, classes=self.options.classes), content_digest(found)

    def checksum(self) -> str:
        return content_digest(self._arrays())

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {k: array_of(v) for k, v in self.options.arrays().items()}


def reader_of(dataset: DatasetBase) -> Reader[DatasetBase]:
    """What reads a data set.

    Raises:
        UserError: there is no such source, or it has options that these are not.
    """
    source = str(dataset.source)
    chosen = choices("dataset").get(source)
    known = {f.name for f in dataclasses.fields(dataset)}
    if chosen is not None and any(f.name not in known for f in dataclasses.fields(chosen)):
        raise UserError(f"dataset.source={source} has its own options; choose it with dataset={source}")
    found: DatasetBase = named_choice(dataset, "dataset")
    return found.reader()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error


def unless_changed(paths: Iterable[Path], digest: Callable[[], str]) -> str:
    """The digest of files, made again only where one of them is another than when this process last asked."""
    stamps = [(path, (s := path.stat()).st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in paths]
    key = tuple(stamps)
    if key not in _digests:
        _digests[key] = digest()
    return _digests[key]
