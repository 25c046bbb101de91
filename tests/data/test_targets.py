"""Targets that are numbers, inputs that are integers, and data from tables, code and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from modeconn_cli.data.arrays import raw_of
from modeconn_cli.data.convert import from_torch
from modeconn_cli.data.dataset import load
from modeconn_cli.data.options import Arrays, CustomData, Inputs
from modeconn_cli.data.options import Dataset as Options
from modeconn_cli.data.sources import checksum, how_to_get
from modeconn_cli.errors import UserError


def raw(x: Any = None, y: Any = None, targets: Any = "auto", **options: Any) -> Any:
    x = np.arange(8.0).reshape(4, 2) if x is None else np.asarray(x)
    y = np.array([0, 1, 0, 1]) if y is None else np.asarray(y)
    return raw_of({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "here", targets=targets, **options)


# ----------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("y", "targets", "classes", "names"),
    [
        ([0.5, 1, 2, 3], "auto", None, None),
        ([0.0, 1, 2, 3], "auto", 4, None),
        ([0.0, 1, 2, 3], "floats", None, None),
        ([0.0, 1, 2, 3], "numbers", None, None),
        ([3, 7, 3, 7], "auto", 2, ("3", "7")),
        ([3, 7, 3, 7], "floats", 2, ("3", "7")),
        ([3, 7, 3, 7], "numbers", None, None),
        (["b", "a", "b", "a"], "auto", 2, ("a", "b")),
        (np.eye(2)[[0, 1, 0, 1]], "auto", 2, None),
        (np.eye(2)[[0, 1, 0, 1]], "numbers", None, None),
        (np.full((4, 2), 0.5), "auto", None, None),
        ([[0.5], [1], [2], [3]], "auto", None, None),
    ],
)
def test_what_targets_are_read_as(y: Any, targets: Any, classes: int | None, names: Any) -> None:
    found = raw(y=y, targets=targets)
    assert (found.classes, found.class_names) == (classes, names)
    if classes is None:
        wanted = np.asarray(y, dtype="f8")
        np.testing.assert_array_equal(found.y, wanted[:, 0] if wanted.shape[1:] == (1,) else wanted)
        assert found.y.dtype is torch.float64


@pytest.mark.parametrize(
    ("y", "targets", "words"),
    [
        (["a", "b", "a", "b"], "numbers", "task=regress learns numbers"),
        ([0.5, np.nan, 1, 2], "numbers", "y_train holds NaN or infinity"),
        ([0.5, np.inf, 1, 2], "auto", "y_train holds numbers that are not integers"),
        (np.ones((4, 2, 2)), "numbers", "give one target an example, or a row of them"),
    ],
)
def test_targets_that_are_refused(y: Any, targets: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        raw(y=y, targets=targets)


# ------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("x", "inputs", "dtype"),
    [
        (np.arange(8).reshape(4, 2), "auto", torch.int64),
        (np.arange(8, dtype="i2").reshape(4, 2), "auto", torch.int64),
        (np.arange(8).reshape(4, 2), "continuous", torch.float32),
        (np.arange(8).reshape(4, 2) - 1, "auto", torch.float32),
        (np.arange(8).reshape(4, 2) - 1, "integers", torch.int64),
        (np.arange(8, dtype="u1").reshape(4, 2), "auto", torch.uint8),
        (np.arange(8, dtype="u1").reshape(4, 2), "integers", torch.int64),
        (np.arange(16).reshape(4, 2, 2), "auto", torch.float32),
        (np.arange(8.0).reshape(4, 2), "auto", torch.float32),
    ],
)
def test_which_inputs_stay_integers(x: Any, inputs: str, dtype: torch.dtype) -> None:
    found = raw(x=x, inputs=Inputs(inputs))
    assert found.x.dtype is dtype
    np.testing.assert_array_equal(found.x.reshape(4, -1), x.reshape(4, -1))


def test_integers_are_asked_of_integers() -> None:
    with pytest.raises(UserError, match="inputs=integers, but x_train is float64"):
        raw(inputs=Inputs.integers)


def test_integers_reach_a_network_as_stored(tmp_path: Path) -> None:
    x = np.arange(20).reshape(5, 4)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(5) % 2, x_test=x + 7, y_test=np.arange(5) % 2)
    data = load(Arrays(path=str(tmp_path / "a.npz")))
    assert torch.equal(data.inputs(data.train, slice(1, 3)), torch.arange(4, 12).view(2, 4))
    assert (data.largest, data.integers, data.shape) == (26, True, (4,))
    numbers = data.continuous()
    assert numbers.largest is None
    mean, std = x.mean(0), x.std(0)
    np.testing.assert_allclose(numbers.inputs(numbers.test, slice(None)), (x + 7 - mean) / std, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ tables

TABLES = {"yacht": "dold_yacht.data", "energy": "energy.data", "concrete": "concrete.data", "airfoil": "airfoil.data"}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("place", ["", "uci"])
def test_a_table_is_read_with_its_last_column_as_the_target(name: str, place: str, tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(9, 4)).round(3)
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    separator = ", " if name == "concrete" else " "
    lines = [separator.join(map(str, row)) for row in table.tolist()]
    (folder / TABLES[name]).write_text("\n".join(lines) + "\n\n")
    options = Options(name=name, source=name, data_dir=str(tmp_path), test_size=3)
    data = load(options)
    assert (data.classes, data.shape, data.targets, len(data.train), len(data.test)) == (None, (3,), 1, 6, 3)
    every = torch.cat([torch.cat([s.x, s.y.float()[:, None]], 1) for s in (data.train, data.test)]).double().numpy()
    np.testing.assert_allclose(np.sort(every, 0), np.sort(table, 0), rtol=1e-6)
    assert data.checksum == checksum(options)
    scaled = data.inputs(data.train, slice(None))
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["1 2 3\n1 2\n", "1 2 x\n1 2 3\n", "", "1\n2\n", "1 2 nan\n1 2 3\n"])
def test_a_table_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "yacht.data").write_text(text)
    with pytest.raises(UserError, match=r"yacht\.data: .*delete it and fetch it again"):
        load(Options(name="yacht", source="yacht", data_dir=str(tmp_path), test_size=1))


def test_a_missing_table_says_where_to_put_it(tmp_path: Path) -> None:
    options = Options(name="yacht", source="yacht", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"yacht\.data not found; looked in .*uci/.*save it as uci/yacht\.data"):
        load(options)
    options.download = True
    with pytest.raises(UserError, match="there is no download of it"):
        load(options)
    assert "dataset.target" in how_to_get("custom")


# --------------------------------------------------------------------------------------------- from code

LOADERS = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

x, y = np.arange(12.0).reshape(6, 2), np.array([0.5, 1, 2, 3, 4, 5])

def as_arrays(scale=1.0):
    return {"x_train": scale * x[:4], "y_train": y[:4], "x_test": scale * x[4:], "y_test": torch.tensor(y[4:])}

def as_pair():
    data = TensorDataset(torch.tensor(x), torch.tensor(y))
    return DataLoader(TensorDataset(*data[:4]), batch_size=3, shuffle=True), (x[4:], y[4:])

def without_test():
    return {"x_train": x, "y_train": y}

def nothing():
    return None

def other_names():
    return {"inputs": x, "labels": y}

CONSTANT = 3
"""


@pytest.fixture
def loaders(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(LOADERS)
    return file


@pytest.mark.parametrize("name", ["as_arrays", "as_pair"])
def test_a_function_returns_the_data(name: str, loaders: Path) -> None:
    data = load(CustomData(target=f"{loaders}:{name}"), "auto")
    np.testing.assert_array_equal(data.train.x, np.arange(8.0).reshape(4, 2))
    assert data.test.y.tolist() == [4, 5]
    assert (data.classes, data.shape) == (None, (2,))


def test_code_and_content_identify_the_data(loaders: Path) -> None:
    target = f"{loaders}:as_arrays"
    first = checksum(CustomData(target=target))
    assert load(CustomData(target=target), "auto").checksum == first
    assert checksum(CustomData(target=target, kwargs={"scale": 2.0})) != first
    loaders.write_text(LOADERS + "\n# an edit\n")
    assert checksum(CustomData(target=target)) != first


def test_a_test_split_may_be_drawn(loaders: Path) -> None:
    data = load(CustomData(target=f"{loaders}:without_test", test_size=2), "auto")
    assert (len(data.train), len(data.test)) == (4, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "returned NoneType: wanted a dictionary of x_train"),
        ("other_names", "no x_train or y_train in it; wanted .* found inputs, labels"),
        ("CONSTANT", "is a int object: point dataset.target"),
        ("as_array", r"did you mean as_arrays\?"),
    ],
)
def test_what_is_no_data_is_refused(name: str, words: str, loaders: Path) -> None:
    with pytest.raises(UserError, match=words):
        load(CustomData(target=f"{loaders}:{name}"), "auto")
    with pytest.raises(UserError, match="custom dataset has no usable target"):
        load(CustomData())


# -------------------------------------------------------------------------------------------- from torch


class Pairs(Dataset[Any]):
    def __init__(self, n: int, ragged: bool = False) -> None:
        self.n, self.ragged = n, ragged

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return torch.full((2 + (self.ragged and i == 1),), float(i)), i % 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((2,), float(i)), i % 3) for i in range(5)])


@pytest.mark.parametrize(
    "train",
    [
        Pairs(5),
        DataLoader(Pairs(5), batch_size=2, shuffle=True),
        DataLoader(Stream(), batch_size=2),
        TensorDataset(torch.arange(5.0)[:, None].expand(5, 2), torch.arange(5) % 3),
        (torch.arange(5.0)[:, None].expand(5, 2), torch.arange(5) % 3),
    ],
    ids=["data set", "loader", "stream", "tensors", "pair"],
)
def test_everything_that_torch_has_gives_the_same_data(train: Any) -> None:
    data = from_torch(train, (torch.ones(3, 2), torch.tensor([0, 1, 2])))
    assert torch.equal(data.inputs(data.train, slice(None)), torch.arange(5.0)[:, None].expand(5, 2))
    assert data.train.y.tolist() == [0, 1, 2, 0, 1]
    assert data.classes == 3
    assert data.checksum == from_torch(Pairs(5), (torch.ones(3, 2), torch.tensor([0, 1, 2]))).checksum


@given(shift=st.floats(-5, 5), scale=st.floats(0.5, 4))
def test_inputs_are_normalised_only_where_asked(shift: float, scale: float) -> None:
    x = shift + scale * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    split = x, torch.arange(30) % 2
    assert torch.equal(from_torch(split, split).inputs(from_torch(split, split).train, slice(None)), x)
    data = from_torch(split, split, normalise=True)
    found = data.inputs(data.train, slice(None)).double()
    torch.testing.assert_close(found.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(0, unbiased=False), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Pairs(3, ragged=True), "its examples are not of one shape"),
        (Pairs(0), "the train split is empty"),
        (Stream(), "is a Stream: give a pair"),
        ([1, 2, 3], "is a list: give a pair"),
        (TensorDataset(torch.ones(3)), "is a tuple: give a pair"),
    ],
)
def test_what_torch_has_that_is_no_data_is_refused(train: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_torch(train, (torch.ones(3, 2), torch.tensor([0, 1, 2])))
