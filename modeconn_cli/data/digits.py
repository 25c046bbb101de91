"""The handwritten digits that come with this package."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from modeconn_cli.data.arrays import Targets
from modeconn_cli.data.formats import Raw
from modeconn_cli.data.options import Dataset
from modeconn_cli.data.reader import Reader, file_digest

DIGITS = Path(__file__).with_name("digits.npz")


class Digits(Reader[Dataset]):
    """Reads :func:`digits`."""

    def read(self, targets: Targets) -> tuple[Raw, str]:
        return digits(), self.checksum()

    def checksum(self) -> str:
        return file_digest(DIGITS)

    def places(self) -> list[tuple[Path, bool]]:
        return [(DIGITS, DIGITS.is_file())]


def digits() -> Raw:
    """The 1797 handwritten digits of 8 x 8 pixels that scikit-learn bundles; no test split.

    They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
    Machine Learning Repository, 1998, doi:10.24432/C50P49), licensed CC BY 4.0. ``digits.npz`` keeps the
    published pixel values, 0 to 16; they are read times 15, so that ink takes 0 to 240 of a byte's 0 to 255.
    """
    with np.load(io.BytesIO(DIGITS.read_bytes()), allow_pickle=False) as archive:
        x = torch.from_numpy(archive["x"][:, None] * np.uint8(15))
        y = torch.from_numpy(archive["y"].astype(np.int64))
    return Raw(x, y, None, None, 10)
