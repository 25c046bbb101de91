"""Readers of data sets that a user gives: a file of arrays, or a function."""

from __future__ import annotations

from modeconn_cli.data import arrays, custom
from modeconn_cli.data.arrays import KEYS, Targets
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import Arrays, CustomData
from modeconn_cli.data.reader import Reader, file_digest, unless_changed


class FromFile(Reader[Arrays]):
    """Reads a .npz or .safetensors file of arrays."""

    given = True

    def read(self, targets: Targets) -> tuple[Raw, str]:
        return arrays.read(self.options, targets), self.checksum()

    def checksum(self) -> str:
        path = arrays.find(self.options)
        return unless_changed([path], lambda: file_digest(path))

    def how_to_get(self) -> str:
        return f"set dataset.path to a .npz or .safetensors file with {', '.join(KEYS)}"


class FromFunction(Reader[CustomData]):
    """Reads what a function returns."""

    given = True

    def read(self, targets: Targets) -> tuple[Raw, str]:
        return custom.read(self.options, targets), self.checksum()

    def checksum(self) -> str:
        return custom.checksum(self.options)

    def how_to_get(self) -> str:
        return "set dataset.target to a function that returns the data, as path/to/file.py:load"
