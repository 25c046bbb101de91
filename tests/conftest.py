"""What every test shares: one thread, reproducible property tests, a data set made by hand."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

from modeconn_cli.data.dataset import Augment, Data, Split

torch.set_num_threads(1)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start would compile the package every time
settings.register_profile("modeconn", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("modeconn")


# Files whose tests wait long for processes: begun first, so that no worker is left alone with one at the end.
LONG = ("work/test_safety.py", "front/test_sweeps.py", "test_outside.py", "interface/test_pages.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


def _make_data(
    n: int = 11,
    shape: tuple[int, ...] = (4,),
    classes: int = 3,
    n_test: int = 7,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Data:
    generator = torch.Generator().manual_seed(seed)
    splits = [
        Split(
            name,
            torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(classes, (size,), generator=generator),
        )
        for name, size in (("train", n), ("test", n_test))
    ]
    broadcast = (1, shape[0], *[1] * (len(shape) - 1))
    mean = torch.linspace(-0.3, 0.4, shape[0], dtype=torch.float64).to(dtype).view(broadcast)
    std = torch.linspace(0.8, 1.7, shape[0], dtype=torch.float64).to(dtype).view(broadcast)
    return Data(splits[0], None, splits[1], classes, shape, mean, std, Augment(), "by hand")


@pytest.fixture(scope="session")
def make_data():
    """Makes random Data of a given size, shape and dtype, with a mean and a std that matter."""
    return _make_data
