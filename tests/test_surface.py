"""A family over two coordinates, from outside: trained, measured on its own grid, and shown wherever paths are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import SPIRALS, folders, ok, refused
from safetensors.torch import load_file

import modeconn_cli as mc
from modeconn_cli.errors import UserError
from modeconn_cli.families.base import Family, coefficients_at, end_coordinates
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.custom import check_ends
from modeconn_cli.families.geometry import distances
from modeconn_cli.report.plots import save
from modeconn_cli.report.tables import read_path

SHEET = """import numpy as np
from modeconn_cli.families.base import Family


class Sheet(Family):
    vertices, coordinates = 3, ("a", "b")

    def coefficients(self, u_td):
        a, b = np.asarray(u_td).T
        return np.stack([(1 - a) * (1 - b), b, a * (1 - b)], axis=1)

    def anchors(self, u_td):
        a = np.asarray(u_td)[:, 0]
        return np.stack([1 - a, a], axis=1)

    def grid(self, points):
        return np.array([[a, b] for b in (0.0, 0.5) for a in np.linspace(0, 1, points)])
"""
CURVE = ["curve=custom", "curve.target=sheet.py:Sheet", *SPIRALS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surface")
    (folder / "sheet.py").write_text(SHEET)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place / folders(ok("fit-curve", *CURVE, "--json"))["evaluate"]


def test_every_point_of_its_grid_is_a_row(run: Path) -> None:
    table, summary = pd.read_csv(run / "path.csv"), json.loads((run / "summary.json").read_text())
    assert [*table][:4] == ["a", "b", "length", "l2"]
    assert table[["a", "b"]].values.tolist() == [[0, 0], [0, 0.5], [0.5, 0], [0.5, 0.5], [1, 0.5], [1, 0]]
    assert table["searched"].tolist() == [0] * 6
    W = load_file(next(Path("outputs/fit-curve").glob("*/v1/checkpoint.safetensors")))
    rows = [torch.cat([v.flatten() for k, v in sorted(W.items()) if k.startswith(f"{i}.")]).double() for i in range(3)]
    for _, row in table.iterrows():
        a, b = row["a"], row["b"]
        w = (1 - a) * (1 - b) * rows[0] + b * rows[1] + a * (1 - b) * rows[2]
        assert row["l2"] == pytest.approx(float(w.norm()), rel=1e-6)
        assert row["length"] == pytest.approx(float((w - rows[0]).norm()), rel=1e-6, abs=1e-9)
    assert summary["coordinates"] == ["a", "b"]
    assert (summary["grid_points"], summary["maximum"]["searched_between_grid_points"]) == (6, False)
    highest = table.loc[table["train_loss"].idxmax()]
    assert [summary["maximum"][k] for k in "ab"] == [highest["a"], highest["b"]]
    error, found = table["test_error"].to_numpy(), summary["barriers"]["test_error"]
    ends, a = error[[0, -1]], table["a"].to_numpy()
    wanted = {
        "above_line": (error - (1 - a) * ends[0] - a * ends[1]).max(),
        "above_mean": error.max() - ends.mean(),
        "above_max": error.max() - ends.max(),
    }
    assert {k: v["value"] for k, v in found.items()} == pytest.approx(wanted)


def test_another_question_and_every_room_take_it(run: Path, place: Path) -> None:
    again = ok("evaluate", *CURVE, "interpolation.confidence=0.5")
    assert "midpoint" in again.out
    assert "–" in again.out
    assert "evaluate" in ok("runs", "list").out
    assert "above_mean" in ok("runs", "show", str(run)).out
    assert ok("gather", "--json").json["rows"]
    ok("report", "-o", "page.html")
    assert "Sheet curve is a surface over a, b" in (place / "page.html").read_text()
    ok("plot", str(run), "-o", "alone.svg")
    drawn = (place / "alone.svg").read_text()
    assert "Sheet curve" in drawn
    assert "Position along the path" in drawn  # of the segment between the same ends
    save([read_path(run)], "Sheet", {"svg": place / "one.svg"})
    assert "Position along the path" not in (place / "one.svg").read_text()
    loaded = mc.load(run)
    assert loaded.table["b"].max() == 0.5
    for ask in (loaded.plot, lambda: loaded.at(0.5)):
        with pytest.raises(UserError, match="surface"):
            ask()


def test_a_midpoint_is_no_criterion_for_it() -> None:
    assert "has none" in refused("fit-curve", *CURVE, "task.verdict_convention=midpoint", "curve.epochs=2")


def sheet() -> Family:
    names: dict[str, type[Family]] = {}
    exec(SHEET, names)
    return names["Sheet"]()


def test_ends_are_found_at_corners_and_taken_exactly() -> None:
    assert end_coordinates(sheet()).tolist() == [[0, 0], [1, 0]]
    assert end_coordinates(Bezier(2)).tolist() == end_coordinates(Chain(1)).tolist() == [[0], [1]]
    assert coefficients_at(sheet(), (1.0, 0.0)).tolist() == [0, 0, 1]
    assert coefficients_at(sheet(), (0.5, 0.5)).tolist() == [0.25, 0.5, 0.25]
    W = np.random.default_rng(0).normal(size=(3, 7))
    rows = [W[0], W[1] - W[0], W[2] - W[0]]
    u = np.array([[0, 0], [0.3, 0.6], [1, 0]])
    away, norm = distances(sheet(), np.array([[p @ q for q in rows] for p in rows]), u)
    points = sheet().coefficients(u) @ W
    np.testing.assert_allclose(away, np.linalg.norm(points - W[0], axis=1), atol=1e-12)
    np.testing.assert_allclose(norm, np.linalg.norm(points, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coordinates": ("a", "a")}, "different names"),
        ({"coordinates": ("a", "length")}, "none of them length"),
        ({"coordinates": ()}, "coordinates (none)"),
        ({"coefficients": lambda u: np.full((len(u), 3), 1 / 3)}, "first control point is at no corner"),
        ({"anchors": lambda u: np.ones((len(u), 2))}, "anchors have shape"),
        ({"anchors": lambda u: np.ones((len(u), 3)) / 3}, "must be (6, 2)"),
    ],
)
def test_what_is_no_surface_is_refused(changed: dict[str, object], said: str) -> None:
    family = sheet()
    vars(family).update(changed)
    with pytest.raises(UserError) as refusal:
        check_ends(family, "Sheet")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
