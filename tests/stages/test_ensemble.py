"""ensemble as a user calls it: figures beside sums written out from the members' own outputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import DIGITS, folders, ok, refused
from safetensors.torch import load_file

from modeconn_cli.evaluation.ensembles import least_alike
from modeconn_cli.stages.ensemble import sets_of
from modeconn_cli.stages.predicted import judged_splits


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ensemble")


THREE = ["ensemble", *DIGITS, "endpoints.seeds=[0,1,2]", "dataset.validation_size=50", "endpoints.epochs=5"]


def test_predictions_are_averaged_and_asked_again_without_a_forward_pass(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    answer = ok(*THREE, "--json")
    kept = [
        load_file(f"{r['directory']}/predictions.safetensors") for r in answer.json["stages"] if r["stage"] == "predict"
    ]
    assert len(kept) == 3
    p = np.mean([k["test"].double().exp().numpy() for k in kept], 0)
    y = kept[0]["test.y"].numpy()
    assert p.shape == (len(y), 10)
    (found,) = answer.json["results"]
    assert found["metrics"]["error"] == pytest.approx(100 * np.mean(p.argmax(1) != y))
    assert found["metrics"]["nll"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    assert found["metrics"]["brier"] == pytest.approx(((p - np.eye(10)[y]) ** 2).sum(1).mean())
    assert found["metrics"]["nll_tempered"] > 0
    with open(folders(answer)["ensemble"] / "growth.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(r["members"], r["sets"]) for r in rows] == [("1", "3"), ("2", "3"), ("3", "1")]
    alone = [-k["test"].double()[torch.arange(len(y)), k["test.y"]].mean() for k in kept]
    assert float(rows[0]["nll"]) == pytest.approx(float(np.mean(alone)))
    endpoints = json.loads((folders(answer)["train-endpoints"] / "summary.json").read_text())
    assert endpoints["metrics"]["test_nll"] == pytest.approx(float(alone[-1]), rel=1e-5)

    again = ok(*THREE, "ensemble.bins=300", "--json")
    assert [r["stage"] for r in again.json["stages"] if r["status"] == "run"] == ["ensemble"]
    assert again.json["results"][0]["metrics"]["ece"] != found["metrics"]["ece"]
    shown = ok(*THREE).out
    assert "AUROC, epistemic" in shown
    assert "growth.png" in shown


def test_points_of_a_path_are_members(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    segment = folders(ok("interpolate", *DIGITS, "--json"))["interpolate"]
    members = ",".join(f"{segment}@t={t}" for t in (0, 0.5, 1))
    answer = ok("ensemble", *DIGITS, f"endpoints.from=[{members}]", "--json")
    assert len(answer.json["results"][0]["tables"][1]["rows"]) == 3


def test_of_a_whole_path_points_are_members(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    held = [*DIGITS, "dataset.validation_size=50"]
    path = folders(ok("interpolate", *held, "--json"))["interpolate"]
    run = f"interpolate/{path.parent.name}"
    answer = ok("ensemble", run, *held, "ensemble.points=3", "--json")
    (evenly,) = answer.json["results"]
    assert [m["member"] for m in evenly["tables"][1]["rows"]] == ["seed 0", "segment at t=0.5", "seed 1"]

    least = ok("ensemble", run, *held, "ensemble.points=2", "ensemble.members=least_alike", "ensemble.candidates=5")
    assert "2-members" in least.out
    assert "is a path of many networks: say how many" in refused("ensemble", run, *held)
    assert "and none is named" in refused("ensemble", *held, "ensemble.points=3")
    assert "chooses on a validation split" in refused("ensemble", run, *DIGITS, "ensemble.members=least_alike")


def test_least_alike_members_are_those_of_lowest_cosine() -> None:
    p = torch.tensor([[0.9, 0.1], [0.89, 0.11], [0.5, 0.5], [0.2, 0.8]]).log()[:, None]
    assert least_alike(p, torch.tensor([0]), 3) == [0, 3, 1]
    assert least_alike(p, torch.tensor([1]), 2) == [3, 0]


def test_uncertainty_tells_other_data_apart(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    x = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8)).astype("uint8")
    np.savez(lab / "noise.npz", x_train=x, y_train=np.arange(60) % 10)
    np.savez(lab / "larger.npz", x_train=np.pad(x, [(0, 0), (0, 0), (4, 4), (4, 4)]), y_train=np.arange(60) % 10)
    answer = ok(*THREE, "ensemble.ood=noise.npz", "--json")
    kept = [
        load_file(f"{r['directory']}/predictions.safetensors") for r in answer.json["stages"] if r["stage"] == "predict"
    ]
    p, q = (np.mean([k[s].double().exp().numpy() for k in kept if s in k], 0) for s in ("test", "noise.npz"))
    assert len(q) == 60
    here, there = (-(v * np.log(v)).sum(1) for v in (p, q))
    above = np.mean(there[:, None] > here) + np.mean(there[:, None] == here) / 2
    assert answer.json["results"][0]["metrics"]["ood_total"] == pytest.approx(above)
    assert "its examples are 1x16x16 where the networks take 1x8x8" in refused(*THREE, "ensemble.ood=larger.npz")
    assert "no such data set and no such file" in refused(*THREE, "ensemble.ood=nothing")
    assert "networks were trained on" in refused(*THREE, "ensemble.ood=digits")


def test_what_makes_no_ensemble_is_refused_before_training(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    assert "needs two members, and 1 is given" in refused("ensemble", *DIGITS, "endpoints.seeds=[0]")
    x, y = np.zeros((20, 3), "float32"), np.linspace(0, 1, 20, dtype="float32")
    np.savez(lab / "numbers.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert "averages class probabilities" in refused("ensemble", "dataset=arrays", "dataset.path=numbers.npz")


def test_a_validation_split_that_is_reported_is_asked_once() -> None:
    split = SimpleNamespace(name="validation")
    task: Any = SimpleNamespace(data=SimpleNamespace(validation=split, test=split))
    assert judged_splits(task) == [split]


def test_sets_of_members_are_all_or_some_and_different() -> None:
    assert sets_of(4, 2, 6) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    some = sets_of(9, 4, 20)
    assert len({*some}) == len(some) == 20
    assert some == sets_of(9, 4, 20)


def test_of_very_many_sets_all_may_be_drawn() -> None:
    assert max(max(s) for s in sets_of(30, 15, 20)) > 20
    assert any(0 not in s for s in sets_of(30, 15, 20))


NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.seen = {"classes": 10}
    def get_extra_state(self):
        return self.seen
    def set_extra_state(self, state):
        self.seen = {"classes": state["classes"]}
"""


def test_members_may_have_extra_state(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    (lab / "net.py").write_text(NET)
    own = ["dataset.train_size=200", "endpoints.epochs=1", "architecture=custom", "architecture.target=net.py:Net"]
    answer = ok("ensemble", *own, "--json")
    assert len(answer.json["results"][0]["tables"][1]["rows"]) == 2
