"""A network that learnt normalised numbers, rewritten to answer in their unit; and what is said of targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cli_helpers import call, no_pictures, ok, refused
from torch import nn

from modeconn_cli.errors import UserError
from modeconn_cli.networks import read_metadata
from modeconn_cli.results import Metrics, targets_line
from modeconn_cli.tasks.base import Column
from modeconn_cli.tasks.unit import in_unit


class Net(nn.Module):
    """Its last layer is declared first, and a layer that could be taken for it declared last."""

    def __init__(self, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(outputs, outputs, bias=bias), nn.Linear(3, outputs)

    def forward(self, x):
        return {"logits": self.last(torch.tanh(self.first(x)))}


def scale(mean, std, log_variances=False):
    return {"mean": mean, "std": std, "unit": "", "log_variances": log_variances}


@pytest.mark.parametrize(("mean", "std"), [([5.0], [0.25]), ([1e3, -2.0], [40.0, 1e-3])])
def test_answers_are_scaled_and_shifted(mean, std):
    torch.manual_seed(0)
    net, x = Net(len(mean)), torch.randn(7, 3)
    changed = in_unit(net, net.state_dict(), scale(mean, std), x)
    z = net(x)["logits"]
    net.load_state_dict(changed)
    wanted = torch.tensor(mean) + torch.tensor(std) * z
    torch.testing.assert_close(net(x)["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_log_variances_are_of_numbers_in_their_unit():
    torch.manual_seed(0)
    net, x = Net(4), torch.randn(7, 3)
    mean, std = torch.tensor([5.0, 1.0]), torch.tensor([0.25, 30.0])
    changed = in_unit(net, net.state_dict(), scale(mean.tolist(), std.tolist(), True), x)
    z = net(x)["logits"]
    net.load_state_dict(changed)
    y = net(x)["logits"]
    torch.testing.assert_close(y[:, :2], mean + std * z[:, :2])
    # The deviation of std * z is std times that of z.
    torch.testing.assert_close((y[:, 2:] / 2).exp(), std * (z[:, 2:] / 2).exp())


@pytest.mark.parametrize("net", [nn.Sequential(nn.Linear(3, 1), nn.Tanh()), Net(1, bias=False)])
def test_a_network_without_a_last_linear_layer_is_refused(net):
    with pytest.raises(UserError, match="no linear layer"):
        in_unit(net, net.state_dict(), scale([5.0], [2.0]), torch.randn(4, 3))


@pytest.fixture
def yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """mine.npz, in the working directory: targets far from 0 of some size; the test inputs."""
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2)).astype(np.float32)
    y = 300 + 40 * x[:, 0] + random.normal(size=60)
    np.savez("mine.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return x[40:]


WORDS = ["dataset=arrays", "dataset.path=mine.npz", "architecture.width=4", "architecture.depth=1"]
WORDS += ["endpoints.epochs=3", "endpoints.seeds=[0]", "task=regress", "task.unit=kg"]


def test_an_exported_network_says_its_unit_or_answers_in_it(yields: np.ndarray) -> None:
    answer = ok("train-endpoints", *WORDS, "--json").json
    (folder,) = [Path(r["directory"]) for r in answer["stages"]]
    y = np.load("mine.npz")["y_train"]
    targets = json.loads((folder / "summary.json").read_text())["task"]["targets"]
    assert targets["mean"] == pytest.approx([y.mean()])
    assert targets["std"] == pytest.approx([y.std()])
    assert answer["task"]["targets"] == targets

    said = call("export", str(folder), "-o", "z.safetensors")
    assert said.code == 0
    assert f"mean {y.mean():.6g} kg" in said.line
    assert read_metadata(Path("z.safetensors")) == {"targets": targets}
    assert call("export", str(folder), "-o", "kg.safetensors", "--in-unit").err == ""
    assert f"std {y.std():.6g} kg" in ok("runs", "show", str(folder)).out

    def answers(file: str) -> torch.Tensor:
        net = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        state = [v.double() for v in safetensors.torch.load_file(file).values()]
        net.load_state_dict(dict(zip(net.state_dict(), _in_order(state), strict=True)))
        x = np.load("mine.npz")
        normal = (x["x_test"] - x["x_train"].mean(0)) / x["x_train"].std(0)
        return net(torch.from_numpy(normal).double())

    torch.testing.assert_close(
        answers("kg.safetensors"), y.mean() + y.std() * answers("z.safetensors"), rtol=1e-5, atol=0
    )


def _in_order(state: list[torch.Tensor]) -> list[torch.Tensor]:
    """Weight (4, 2), bias (4,), weight (1, 4), bias (1,), whatever they are called."""
    by_shape = {tuple(v.shape): v for v in state}
    return [by_shape[s] for s in ((4, 2), (4,), (1, 4), (1,))]


def test_what_learnt_no_numbers_has_no_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), "a.pt")
    assert "--in-unit" in refused("export", "a.pt", "-o", "b.pt", "--in-unit")
    assert not Path("b.pt").exists()


def test_classes_are_named_where_they_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "[red]", "green")
    np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = [*WORDS[:4], "interpolation.points=3", "interpolation.search_max=0", "endpoints.epochs=1"]
    answer = ok("interpolate", *words, "--json").json
    assert answer["task"]["classes"] == ["[red]", "green"]
    folder = next(r["directory"] for r in answer["stages"] if r["stage"] == "interpolate")
    assert "classes: [red], green" in ok("runs", "show", folder).out
    ok("report")
    assert "Classes: [red], green." in Path("outputs/report.html").read_text()


def test_many_classes_are_counted() -> None:
    line = targets_line({"task": {"classes": [f"c{i}" for i in range(30)]}})
    assert line.startswith("classes: c0, c1,")
    assert line.endswith("c19 and 10 more")
    assert targets_line({"task": {"targets": scale([0.0], [1.0])}}) == targets_line({}) == ""


def test_a_barrier_is_called_by_its_columns_title() -> None:
    columns = [Column("mse", "mean squared error"), Column("unexplained", "unexplained variance"), Column("top_5", "")]
    metrics = Metrics(columns, "unexplained", "above_mean")
    found = [metrics.words(m) for m in ("test_unexplained", "train_loss", "test_mse", "test_top_5")]
    assert found == ["test-unexplained-variance", "train-loss", "test-mean-squared-error", "test-top-5"]
