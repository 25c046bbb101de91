"""budgets as a user calls it: rows beside figures of the runs that they are of."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import DIGITS, call, ok, refused
from safetensors.torch import load_file

from modeconn_cli.evaluation import ensembles
from modeconn_cli.stages.budgets import _means
from modeconn_cli.stages.ensemble import FIGURES

SMALL = [
    *DIGITS,
    "endpoints.epochs=4",
    "dataset.validation_size=50",
    "budgets.most=2",
    "fge.start=0.5",
    "snapshot.members=2",
]
SMALL += ["swa.start=0.5", "swag.start=0.5", "swag.rank=2", "swag.samples=3"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


METHODS = ("independent", "snapshot", "fge", "swa", "swag")


def test_every_method_is_compared_at_equal_cost() -> None:
    answer = ok("budgets", *SMALL, "pipeline.replicates=[1]", "budgets.most=3", "fge.epochs=4", "--json")
    (own,) = [Path(s["directory"]) for s in answer.json["stages"] if s["stage"] == "budgets"]
    with open(own / "budgets.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 + 1
    by = {(r["method"], r["budgets"]): r for r in rows}
    assert [by[m, "2"]["members"] for m in METHODS] == ["2", "4", "4", "2", "6"]
    assert [by[m, "2"]["epochs"] for m in METHODS] == ["8", "8", "12", "8", "8"]
    assert [by["fit-curve", "3"][k] for k in ("members", "epochs")] == ["5", "9"]

    # The first two of replicate 1 are seeds 3 and 4, which no other replicate has; the curve begins and ends there.
    kept = {
        Path(s["directory"]).parent.name: load_file(Path(s["directory"]) / "predictions.safetensors")
        for s in answer.json["stages"]
        if s["stage"] == "predict"
    }
    two = [v for k, v in sorted(kept.items()) if v["test"].dim() == 2 and ("-s3-" in k or "-s4-" in k)]
    L = torch.stack([v["test"] for v in two])
    row = by["independent", "2"]
    assert float(row["error"]) == pytest.approx(100 * ensembles.error(ensembles.averaged(L), two[0]["test.y"]))
    assert float(row["nll"]) == pytest.approx(ensembles.nll(ensembles.averaged(L), two[0]["test.y"]))
    (curve,) = [v["test"] for k, v in kept.items() if v["test"].shape[0] == 5]
    assert torch.equal(curve[[0, -1]], L)
    # What the comparison is made of is not shown beside it.
    assert [r["stage"] for r in answer.json["results"] if not r["part"]] == ["budgets"]
    # The ordinary training is one and the same for all that go on from a share of it.
    assert len({s["directory"] for s in answer.json["stages"] if s["stage"] == "train-endpoints"}) == 3


def test_intervals_are_over_replicates() -> None:
    rows = [{"method": "a", "budgets": 1, "epochs": 4, "members": 1, "error": e, "nll": 0.5} for e in (1.0, 2.0)]
    (mean,) = _means([{**r, "replicate": i} for i, r in enumerate(rows)], FIGURES[:2])
    assert (mean["error"], mean["n"]) == (1.5, 2)
    # Student's t with one degree of freedom
    assert mean["error_high"] - 1.5 == pytest.approx(12.706204736 * np.std([1, 2], ddof=1) / 2**0.5)


def test_what_cannot_be_compared_is_refused() -> None:
    assert "no method 'nothing'; there are independent" in refused("budgets", *SMALL, "budgets.methods=[nothing]")
    assert "drop endpoints.seeds" in refused("budgets", *SMALL, "endpoints.seeds=[0]")


def test_a_comparison_of_nothing_is_refused() -> None:
    answer = call("budgets", *SMALL, "budgets.methods=[fit-curve]", "budgets.most=2")
    assert answer.code == 2
    assert "nothing of it fits in 2 budgets" in answer.err
