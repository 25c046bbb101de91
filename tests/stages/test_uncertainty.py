"""uncertainty as a user calls it: its rows beside the definitions, from the predictions that were kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import DIGITS, folders, no_pictures, ok, refused
from safetensors.torch import load_file

from modeconn_cli.data.dataset import Data
from modeconn_cli.tasks.options import Likelihood
from modeconn_cli.tasks.regress import Regress

NORMS = ["architecture.norm=batch", "endpoints.epochs=4", "curve.epochs=1", *(o for o in DIGITS if "epochs" not in o)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a curve between networks with BatchNorm was measured, and that run."""
    root = tmp_path_factory.mktemp("uncertainty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        no_pictures(patch)
        return root, str(folders(ok("fit-curve", *NORMS, "--json"))["evaluate"])


def test_every_row_is_the_definition(lab: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = lab
    monkeypatch.chdir(root)
    answer = ok("uncertainty", run, "uncertainty.points=4", "uncertainty.budget=777", "uncertainty.max=5", "--json")
    where = folders(answer)
    kept = load_file(where["predict"] / "predictions.safetensors")
    p, y = kept["test"].double().exp().numpy(), kept["test.y"].numpy()
    assert p.shape == (4, len(y), 10)
    rows = pd.read_csv(where["uncertainty"] / "uncertainty.csv")
    assert [*rows.columns] == [
        *("id", "label", "prediction", "confidence", "total", "aleatoric", "epistemic", "flips", "budget")
    ]
    assert [*rows.id] == [*range(len(y))]
    assert [*rows.label] == y.tolist()
    mean = p.mean(0)
    assert [*rows.prediction] == mean.argmax(1).tolist()
    np.testing.assert_allclose(rows.confidence, mean.max(1))
    np.testing.assert_allclose(rows.total, -(mean * np.log(mean)).sum(1), rtol=1e-6)
    np.testing.assert_allclose(rows.aleatoric, -(p * np.log(p)).sum(2).mean(0), rtol=1e-6)
    np.testing.assert_allclose(rows.total, rows.aleatoric + rows.epistemic, atol=1e-6)
    said = p.argmax(2)
    assert [*rows.flips] == [int((said[1:, i] != said[:-1, i]).sum()) for i in range(len(y))]
    assert rows.budget.sum() == 777
    assert rows.budget.max() <= 5
    more, less = rows.nlargest(20, "total").budget, rows.nsmallest(20, "total").budget
    assert more.min() >= less.max()

    wrong = (mean.argmax(1) != y)[np.argsort(rows.total, kind="stable")]
    area = 100 * np.mean([wrong[: k + 1].mean() for k in range(len(y))])
    (found,) = answer.json["results"]
    assert found["metrics"]["aurc_total"] == pytest.approx(area)
    risk, coverage = (t["rows"] for t in found["tables"])
    assert [r["count"] for r in risk] == [4, 1]
    assert risk[1]["aurc_epistemic"] == ""  # one network disagrees with none
    assert coverage[9]["networks along the path"] == pytest.approx(100 * wrong[: len(y) // 2].mean())
    assert coverage[-1]["coverage"] == 100
    assert {"risk.png", "images.png"} <= {f.name for f in where["uncertainty"].iterdir()}
    assert "AURC by total" in ok("report", run, "-o", "page.html").out or Path("page.html").exists()


def test_networks_are_those_that_the_path_was_measured_with(
    lab: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of norms too: at each t of path.csv the kept predictions have its error and likelihood."""
    root, run = lab
    monkeypatch.chdir(root)
    answer = ok("uncertainty", run, "uncertainty.points=3", "uncertainty.images=0", "--json")
    kept = load_file(folders(answer)["predict"] / "predictions.safetensors")
    table = pd.read_csv(Path(run, "path.csv"))
    assert [*table.t] == kept["t"].tolist() == [0, 0.5, 1]
    y = kept["test.y"]
    for row, L in zip(table.itertuples(), kept["test"].double(), strict=True):
        assert row.test_nll == pytest.approx(-float(L[torch.arange(len(y)), y].mean()), rel=1e-5)
        assert row.test_error == pytest.approx(100 * float((L.argmax(1) != y).double().mean()))


def test_another_question_costs_no_forward_pass(lab: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = lab
    monkeypatch.chdir(root)
    asked = ["uncertainty", run, "uncertainty.points=3", "uncertainty.images=0", "--json"]
    first = ok(*asked)
    again = ok(*asked, "uncertainty.by=epistemic", "uncertainty.budget=400", "uncertainty.min=1")
    assert [(r["stage"], r["status"]) for r in again.json["stages"]] == [("predict", "cached"), ("uncertainty", "run")]
    rows = pd.read_csv(folders(again)["uncertainty"] / "uncertainty.csv")
    assert rows.budget.sum() == 400
    assert rows.budget.min() >= 1
    without = ok(*asked, "uncertainty.keep_predictions=false")
    assert [r["stage"] for r in without.json["stages"]] == ["uncertainty"]
    one, other = (folders(a)["uncertainty"] / "uncertainty.csv" for a in (first, without))
    assert one != other
    assert one.read_bytes() == other.read_bytes()
    for answer in (first, without):
        groups = json.loads((folders(answer)["uncertainty"] / "provenance.json").read_text())["groups"]
        assert {"dataset", "architecture", "endpoints", "curve", "interpolation", "uncertainty"} <= {*groups}
    planned = ok(*asked, "uncertainty.by=aleatoric", "--dry-run").json["stages"]
    assert [r["status"] for r in planned] == ["cached", "run"]


def test_independent_networks_stand_beside_the_path(lab: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = lab
    monkeypatch.chdir(root)
    ends = [str(p) for p in sorted(root.glob("outputs/train-endpoints/*/v1"))][:2]
    short = [str(Path(e).relative_to(root)) for e in ends]
    answer = ok("uncertainty", run, *short, "uncertainty.points=2", "uncertainty.images=0", "--json")
    risk = answer.json["results"][0]["tables"][0]["rows"]
    assert [r["count"] for r in risk] == [2, 1, 2]
    # Two points of the path are its ends, which these are.
    assert risk[2]["aurc_total"] == pytest.approx(risk[0]["aurc_total"])


def test_what_cannot_be_asked_is_refused(lab: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = lab
    monkeypatch.chdir(root)
    assert refused("uncertainty") == "name the path whose networks are asked: modeconn uncertainty RUN."
    end = str(next(root.glob("outputs/train-endpoints/*/v1")).relative_to(root))
    assert "is no path of networks" in refused("uncertainty", end)
    assert "is no path of networks" in refused("uncertainty", f"{run}@t=0.5")
    line = refused("uncertainty", run, "uncertainty.budget=10", "uncertainty.min=1")
    assert "uncertainty.budget=10: 360 inputs get from 360 to 3600 in all" in line
    assert "uncertainty.max=1 is less than uncertainty.min=2" in refused(
        "uncertainty", run, "uncertainty.min=2", "uncertainty.max=1"
    )
    monkeypatch.setattr("modeconn_cli.stages.uncertainty.KEPT_BYTES", 1000)
    assert "are kept at most: ask fewer uncertainty.points" in refused("uncertainty", run, "uncertainty.points=7")


def test_of_numbers_it_is_variance_in_their_own_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 3)).astype("float32")
    y = (50 + 20 * x[:, 0] + random.normal(size=80)).astype("float32")
    np.savez("numbers.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    data = ["dataset=arrays", "dataset.path=numbers.npz", "task=regress", "task.likelihood=gaussian"]
    quick = ["architecture.width=8", "endpoints.epochs=3", "interpolation.points=3", "interpolation.bootstrap=20"]
    path = str(folders(ok("interpolate", *data, *quick, "--json"))["interpolate"])
    where = folders(ok("uncertainty", path, "uncertainty.points=3", "uncertainty.budget=40", "--json"))
    kept = load_file(where["predict"] / "predictions.safetensors")["test"].double().numpy()
    assert kept.shape == (3, 20, 1, 2)
    rows = pd.read_csv(where["uncertainty"] / "uncertainty.csv")
    np.testing.assert_allclose(rows.label, y[60:], rtol=1e-4)
    np.testing.assert_allclose(rows.prediction, kept[..., 0, 0].mean(0))
    np.testing.assert_allclose(rows.aleatoric, kept[..., 0, 1].mean(0))
    np.testing.assert_allclose(rows.epistemic, kept[..., 0, 0].var(0))
    np.testing.assert_allclose(rows.deviation**2, rows.total)
    assert rows.budget.sum() == 40
    summary = json.loads((where["uncertainty"] / "summary.json").read_text())
    assert summary["metrics"]["risk"] == pytest.approx(
        float(((kept[..., 0, 0].mean(0) - y[60:]) ** 2).mean()), rel=1e-4
    )
    table = pd.read_csv(Path(path, "path.csv"))
    own = ((kept[:, :, 0, 0] - y[60:]) ** 2).mean(1)
    np.testing.assert_allclose(own, table[table.searched == 0].test_squared_error, rtol=1e-4)


def test_moments_are_in_the_datas_unit(make_data: object) -> None:
    data: Data = make_data(n=20)  # type: ignore[operator]
    from dataclasses import replace

    y = 100 + 7 * torch.randn(20, 2, dtype=torch.float64)
    split = replace(data.train, y=y)
    task = Regress.of(replace(data, train=split, test=split, classes=None), Likelihood.gaussian)
    output = torch.randn(5, 4, dtype=torch.float64)
    mean, std = y.mean(0), y.std(0, unbiased=False)
    found = task.moments(output).double()
    torch.testing.assert_close(found[..., 0], mean + std * output[:, :2], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found[..., 1], std**2 * output[:, 2:].exp(), rtol=1e-6, atol=1e-5)
