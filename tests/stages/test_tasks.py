"""Tasks and inputs other than images and classes through the command line, against figures worked out beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import QUICK, folders, no_pictures, ok
from safetensors.torch import load_file
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


NUMBERS = ["dataset=arrays", "dataset.path=mine.npz", "architecture.width=4", "architecture.depth=1", *QUICK]


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
    """Two inputs and two targets, of units far apart, in mine.npz."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = np.stack([300 + 40 * x[:, 0], 0.01 * x[:, 1]], 1) + 1e-3 * random.normal(size=(60, 2))
    found = {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}
    np.savez("mine.npz", **found)
    return found


def answers(file: Path, data: dict[str, np.ndarray]) -> np.ndarray:
    """Of the network in a checkpoint on the test inputs, in float64: one hidden layer, ReLU."""
    by_shape = {tuple(v.shape): v.double().numpy() for v in load_file(file).values()}
    x = (data["x_test"] - data["x_train"].mean(0)) / data["x_train"].std(0)
    hidden = np.maximum(x @ by_shape[4, 2].T + by_shape[4,], 0)
    return hidden @ by_shape[2, 4].T + by_shape[2,]


def measured(answer: object, start: Path) -> pd.Series:
    """The first row of path.csv."""
    table = pd.read_csv(folders(answer)["interpolate"] / "path.csv")  # type: ignore[arg-type]
    return table.iloc[0]


def test_regression_is_scored_in_the_targets_unit(numbers: dict[str, np.ndarray]) -> None:
    answer = ok("interpolate", *NUMBERS, "task=regress", "task.unit=kg", "endpoints.weight_decay=0", "--json")
    start = Path(next(r["directory"] for r in answer.json["stages"] if r["stage"] == "train-endpoints"))
    mean, std = numbers["y_train"].mean(0), numbers["y_train"].std(0)
    residual = numbers["y_test"] - (mean + std * answers(start / "checkpoint.safetensors", numbers))
    row = measured(answer, start)
    assert row["test_mse"] == pytest.approx((residual / std).__pow__(2).mean(), rel=1e-4)
    assert row["test_loss"] == pytest.approx(row["test_mse"])
    assert row["test_absolute_error"] == pytest.approx(np.abs(residual).mean(), rel=1e-4)
    assert row["test_squared_error"] == pytest.approx((residual**2).mean(), rel=1e-4)
    assert row["test_unexplained"] == pytest.approx(100 * ((residual / std) ** 2).mean(), rel=1e-4)
    (verdict,) = answer.json["verdicts"]
    assert (verdict["metric"], verdict["below"]) == ("test_unexplained", 2.0)
    assert "test-unexplained-variance barrier" in verdict["sentence"]


LOSS = """
import torch


class Pinball:
    columns = ["pinball"]

    def __init__(self, quantile=0.5):
        self.quantile = quantile

    def scores(self, output, batch):
        off = batch.y - output
        return {"pinball": torch.maximum(self.quantile * off, (self.quantile - 1) * off).mean(1)}

    def loss(self, output, batch):
        return self.scores(output, batch)["pinball"].mean()
"""


def test_an_objective_of_ones_own_is_trained_on_and_scored(numbers: dict[str, np.ndarray]) -> None:
    Path("loss.py").write_text(LOSS)
    custom = [*NUMBERS, "task=custom", "task.target=loss.py:Pinball", "endpoints.weight_decay=0", "--json"]
    answer = ok("interpolate", *custom, "task.kwargs.quantile=0.9")
    start = Path(next(r["directory"] for r in answer.json["stages"] if r["stage"] == "train-endpoints"))
    off = numbers["y_test"] - answers(start / "checkpoint.safetensors", numbers)
    row = measured(answer, start)
    assert row["test_pinball"] == pytest.approx(np.where(off > 0, 0.9 * off, -0.1 * off).mean(), rel=1e-4)
    assert answer.json["verdicts"][0]["metric"] == "test_pinball"
    other = ok("interpolate", *custom)
    assert folders(other)["interpolate"] != folders(answer)["interpolate"]
    rows = ok("gather", "--json").json["rows"]
    assert {(r["path"], r["task.kwargs.quantile"], r["n"]) for r in rows} == {("segment", 0.9, 1), ("segment", "", 1)}


TOKENS = """
from torch import nn


def net():
    return nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(15, 6), nn.ReLU(), nn.Linear(6, 3))
"""


@pytest.mark.parametrize("method", ["weight", "activation", "straight_through"])
def test_networks_of_token_ids_are_aligned(method: str) -> None:
    """A permuted copy is brought back; ids go into the embedding as they are."""
    Path("nets.py").write_text(TOKENS)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 7, size=(60, 3)), np.arange(60) % 3
    np.savez("ids.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(15, 6), nn.ReLU(), nn.Linear(6, 3))
    a = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save(a, "a.pt")
    torch.save(shuffled(a), "b.pt")
    words = ["dataset=arrays", "dataset.path=ids.npz", "architecture=custom", "architecture.target=nets.py:net"]
    ends = ["endpoints.checkpoints=[a.pt,b.pt]", f"rebasin={method}", "rebasin.steps=2"]
    folder = folders(ok("rebasin", *words, *QUICK, *ends, "--json"))["rebasin"]
    aligned = load_file(folder / "checkpoint.safetensors")
    assert all(torch.equal(aligned[k], a[k]) for k in a)
    summary = json.loads((folder / "summary.json").read_text())
    assert sorted(g["size"] for g in summary["groups"]) == [5, 6]  # embedding dimensions, and hidden units
    assert summary["certificate"]["difference"] < 1e-12
    with torch.no_grad():
        wrong = (net.eval()(torch.from_numpy(x[40:])).argmax(1).numpy() != y[40:]).mean()
    assert summary["metrics"]["test_error"] == pytest.approx(100 * wrong)


def shuffled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function: dimensions of the embedding in another order at all three places, and hidden units."""
    inner, hidden = torch.randperm(5), torch.randperm(6)
    places = (torch.arange(3)[:, None] * 5 + inner).flatten()
    return {
        "0.weight": state["0.weight"][:, inner],
        "2.weight": state["2.weight"][:, places][hidden],
        "2.bias": state["2.bias"][hidden],
        "4.weight": state["4.weight"][:, hidden],
        "4.bias": state["4.bias"],
    }
