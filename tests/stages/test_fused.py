"""endpoints.fuse: paths between the networks without norms that compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import DIGITS, folders, no_pictures, ok, refused
from safetensors.torch import load_file, save_file
from torch import nn

from modeconn_cli.models import build as models

NORMED = [*DIGITS, "architecture.norm=batch", "architecture.depth=2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


def plain(state):
    """A perceptron without norms with the tensors of a fused one."""
    layers = [nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10)]
    net = nn.Sequential(nn.Flatten(), *layers)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net.eval()


def test_trained_networks_are_fused_matched_and_joined_as_plain_ones() -> None:
    answer = ok("rebasin", *NORMED, "endpoints.fuse=true", "rebasin=activation", "--json")
    stages = [(s["stage"], Path(s["directory"])) for s in answer.json["stages"]]
    trained = [f for name, f in stages if name == "train-endpoints"]
    without = [f for name, f in stages if name == "fuse"]
    assert (len(trained), len(without)) == (2, 2)
    x = torch.randn(5, 1, 8, 8)
    for whole, made in zip(trained, without, strict=True):
        before, after = (load_file(f / "checkpoint.safetensors") for f in (whole, made))
        net = models.build("mlp", (1, 8, 8), 10, width=8, depth=2, norm="batch").eval()
        net.load_state_dict(before)
        order = ["hidden.0.weight", "hidden.0.bias", "hidden.3.weight", "hidden.3.bias", "head.weight", "head.bias"]
        assert sorted(after) == sorted(order)
        torch.testing.assert_close(plain({k: after[k] for k in order})(x), net(x), rtol=1e-4, atol=1e-5)
        summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, made)]
        assert summaries[1]["certificate"]["difference"] < 1e-12 < summaries[1]["certificate"]["control"]
        assert summaries[1]["folded"] == [["hidden.0", "hidden.1"], ["hidden.3", "hidden.4"]]
        assert summaries[0]["metrics"] == pytest.approx(summaries[1]["metrics"], rel=1e-4, abs=0.6)
    # No norm is left, so REPAIR is measured and nothing is reset; the ends are trained once for both.
    paths = {b["path"] for b in answer.json["barriers"]}
    assert paths == {"segment", "aligned segment", "aligned segment + REPAIR", "aligned segment + RESCALE"}
    again = ok("interpolate", *NORMED, "--json")
    assert {s["status"] for s in again.json["stages"] if s["stage"] == "train-endpoints"} == {"cached"}
    curve = ok("fit-curve", *NORMED, "endpoints.fuse=true", "--json")
    assert curve.json["verdicts"]
    exported = ok("export", str(without[0]), "-o", "plain.pt")
    assert exported.code == 0
    assert torch.load("plain.pt", weights_only=True).keys() == load_file(without[0] / "checkpoint.safetensors").keys()


def test_networks_from_files_are_fused_too() -> None:
    torch.manual_seed(0)
    for name in "ab":
        net = models.build("mlp", (1, 8, 8), 10, width=8, depth=2, norm="batch")
        save_file(net.state_dict(), f"{name}.safetensors")
    files = "endpoints.checkpoints=[a.safetensors,b.safetensors]"
    answer = ok("interpolate", *NORMED, files, "endpoints.fuse=true", "--json")
    assert [s["stage"] for s in answer.json["stages"]].count("fuse") == 2
    assert (folders(answer)["fuse"] / "DONE").is_file()


def test_a_network_without_a_norm_to_fold_is_refused() -> None:
    line = refused("interpolate", *DIGITS, "endpoints.fuse=true")
    assert "this network has none that can be: it has no norm. Go without it." in line
    assert not Path("outputs").exists()
    line = refused("interpolate", *DIGITS, "architecture.norm=layer", "endpoints.fuse=true")
    assert "hidden.1, hidden.4, hidden.7: its statistics are those of its input" in line
