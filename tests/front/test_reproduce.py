"""Published tables run again, and the direct question: are these two checkpoints connected?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import QUICK, call, no_pictures, ok, refused, statuses, tree

from modeconn_cli.front import reproduce
from modeconn_cli.front.terminal import show_reproduction
from modeconn_cli.report.tables import connection
from modeconn_cli.results import Metrics

TABLES = reproduce.tables()
LEVELS = [(name, scale) for name, table in TABLES.items() for scale in table.scales]
SMOKE = [name for name, table in TABLES.items() if table.landed]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODECONN_DATA", raising=False)
    no_pictures(monkeypatch)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that run a table at smoke scale, in a directory where it is computed once."""
    return ["--scale", "smoke", f"runtime.output_dir={tmp_path_factory.mktemp('smoke')}"]


# --------------------------------------------------------------------------------------------------- reproduce


@pytest.mark.parametrize(("name", "scale"), LEVELS, ids=[f"{n} {s}" for n, s in LEVELS])
def test_every_table_composes_at_every_scale_and_names_published_rows(name: str, scale: str) -> None:
    table = TABLES[name]
    published = {(c["dataset"], c["architecture"]) for c in table.published}
    assert published
    methods = {c["method"] for c in table.published}
    assert methods == {m for m, entry in table.content["methods"].items() if "beside" not in entry}
    assert {entry["beside"] for entry in table.content["methods"].values() if "beside" in entry} <= methods
    assert {c["metric"] for c in table.published} == {*table.content["metrics"]}
    for row in table.content["scales"][scale]["rows"]:
        assert (row["dataset"], row["architecture"]) in published
    apart = reproduce.differences(table, scale, [])
    assert bool(apart) == (scale != "full")
    if table.landed:
        # Every row with one method, and every method with one row.
        level = table.content["scales"][scale]
        one_row = {scale: {**level, "rows": level["rows"][:1]}}
        one_method = {m: table.content["methods"][m] for m in table.landed[-1:]}
        for part in ({"methods": one_method}, {"scales": {**table.content["scales"], **one_row}}):
            found = reproduce.parts(reproduce.Table(table.name, {**table.content, **part}), scale, [])
            assert found
            assert all(f.fills for f in found)
    else:
        assert "can be run yet" in refused("reproduce", name, "--scale", scale)


def test_full_scale_rows_are_all_that_was_published_on_data_that_is_supported() -> None:
    for table in TABLES.values():
        rows = {(r["dataset"], r["architecture"]) for r in table.content["scales"]["full"]["rows"]}
        published = {(c["dataset"], c["architecture"]) for c in table.published}
        left_out = {(d, a) for d, a in published - rows if d not in ("imagenet", "mnist")}
        assert left_out <= {("cifar10", "resnet18")}, table.name


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_reproductions(name: str, smoke: list[str]) -> None:
    answer = ok("reproduce", name, *smoke, "--json")
    cells = answer.json["cells"]
    assert answer.json["differs"]
    assert {c["difference"] for c in cells} == {None}
    for c in cells:
        assert (c["ours"] is None) == (c["needs"] is not None)
    again = ok("reproduce", name, *smoke, "--json").json
    assert again["cells"] == cells
    assert {s["status"] for job in again["jobs"] for s in job["stages"]} == {"cached"}
    text = ok("reproduce", name, *smoke, "-q").out
    assert "not a reproduction" in text
    assert "endpoints.epochs=" in text


def test_cells_are_what_the_files_say(smoke: list[str]) -> None:
    answer = ok("reproduce", "garipov2018-curves", *smoke, "--json").json
    found = {(c["method"], c["metric"], c["statistic"]): c["ours"] for c in answer["cells"]}
    for method, kind in (("bezier", "Bezier"), ("polychain", "polygonal")):
        (folder,) = [
            s["directory"]
            for job in answer["jobs"]
            for s in job["stages"]
            if s["stage"] == "evaluate"
            and json.loads(Path(s["directory"], "summary.json").read_text())["path"].startswith(kind)
        ]
        path = pd.read_csv(Path(folder) / "path.csv")
        for metric, column in (("train_loss", "train_loss"), ("test_error_pct", "test_error")):
            assert found[method, metric, "min"] == path[column].min()
            assert found[method, metric, "max"] == path[column].max()
            ends = [path[column].iloc[0], path[column].iloc[-1]]
            assert found["endpoints", metric, "min"] == min(ends)
            assert found["endpoints", metric, "max"] == max(ends)


def test_accuracies_midpoints_and_means_over_replicates(smoke: list[str]) -> None:
    answer = ok("reproduce", "jordan2022-repair-datasets", *smoke, "--json").json
    found = {(c["method"], c["metric"], c["statistic"]): c for c in answer["cells"]}
    folders = [Path(s["directory"]) for s in answer["jobs"][0]["stages"] if s["stage"] == "interpolate"]
    paths = [pd.read_csv(f / "path.csv").set_index("t") for f in folders]
    assert len(paths) == 2
    middle = [100 - p["test_error"].loc[0.5] for p in paths]
    cell = found["naive", "test_accuracy_pct", "midpoint"]
    assert cell["ours"] == pytest.approx(sum(middle) / 2)
    assert cell["std"] == pytest.approx(abs(middle[0] - middle[1]) / 2**0.5)
    second = [p["train_nll"].loc[1.0] for p in paths]
    assert found["endpoint", "train_nll", "second"]["ours"] == pytest.approx(sum(second) / 2)
    assert found["naive", "test_accuracy_pct", "midpoint"]["published"] == 10.0


def test_a_faithful_run_gives_differences_and_unverified_figures_are_marked(
    smoke: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLES["garipov2018-curves"]
    answer = ok("reproduce", table.name, *smoke, "--json").json
    parts = reproduce.parts(table, "smoke", [])
    for part, job in zip(parts, answer["jobs"], strict=True):
        reproduce.note_directories(part, job["stages"])
    for cell in reproduce.cells(table, "smoke", parts, faithful=True):
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["published"])
    frankle = TABLES["frankle2020-instability"]
    cells = reproduce.cells(frankle, "full", [], faithful=True)
    assert {c["verified"] for c in cells} == {False}
    show_reproduction(frankle.content, "full", {}, cells)
    said = capsys.readouterr().out
    assert said.count("(unverified)") == len(cells)
    assert "needs instability" in said


def test_what_is_not_run_stays_empty_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    table = TABLES["garipov2018-curves"]
    assert {c["ours"] for c in reproduce.cells(table, "full", [], faithful=True)} == {None}
    text = ok("reproduce", table.name, "--scale", "smoke", "--dry-run").out
    assert "never computed" in text
    assert tree(tmp_path) == {}


def test_a_failing_job_leaves_its_cells_empty() -> None:
    answer = call("reproduce", "garipov2018-curves", "curve.lr=1e20", "--scale", "smoke", "--json")
    assert answer.code == 1
    assert {c["method"] for c in answer.json["cells"] if c["ours"] is None} == {"bezier", "polychain"}
    assert any("curve.lr=1e+20" in change for row in answer.json["differs"].values() for change in row)


def test_unknown_tables_and_scales_are_named() -> None:
    assert "did you mean garipov2018-curves?" in refused("reproduce", "garipov2018-curve")
    assert "choose from full, smoke" in refused("reproduce", "izmailov2018-swa", "--scale", "small")
    listed = ok("reproduce", "--list", "--json").json["tables"]
    assert {t["name"] for t in listed} == {*TABLES}
    for name in TABLES:
        assert name in ok("reproduce", "--list").out


def test_a_missing_data_set_is_said_before_anything_runs(tmp_path: Path) -> None:
    answer = call("reproduce", "garipov2018-curves", "--scale", "full", "dataset.data_dir=nowhere", "--json")
    assert answer.code == 2
    assert "cifar" in answer.err
    assert tree(tmp_path) == {}


# ----------------------------------------------------------------------------------------------------- connect

NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Words of a connect command on two trained checkpoints whose names try the quoting."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 4)) * 2
    y = rng.integers(0, 3, 400)
    x = (centres[y] + rng.normal(size=(400, 4))).astype(np.float32)
    np.savez(tmp_path / "my data.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    (tmp_path / "nets.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    for seed, name in enumerate(("a, it's=1.pt", "b.pt")):
        torch.manual_seed(seed)
        net = space["Net"]()
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(torch.tensor(x[:300])), torch.tensor(y[:300])).backward()
            optimizer.step()
        torch.save(net.state_dict(), tmp_path / name)
    return ["connect", "a, it's=1.pt", "b.pt", "--model", "nets.py:Net", "--data", "my data.npz", *QUICK[2:]]


def test_connect_answers_in_a_sentence_a_table_and_a_picture(two: list[str]) -> None:
    answer = ok(*two, "--json").json
    kinds = [v["path"] for v in answer["verdicts"]]
    assert answer["verdict"]["answer"] in (
        *("linearly connected", "connected after alignment", "connected by a curve", "not connected", "undecided"),
    )
    assert "above_mean" in answer["verdict"]["sentence"]
    assert "95% interval" in answer["verdict"]["sentence"]
    assert kinds[0] == "segment"
    assert answer["plot"]
    text = ok(*two).out
    assert text.rstrip().endswith(answer["verdict"]["sentence"])
    for column in ("train_loss", "train_nll"):  # weight decay is no part of the question
        line = next(r for r in answer["stages"] if r["stage"] == "interpolate")
        path = pd.read_csv(Path(line["directory"], "path.csv"))
        assert (path[column] == path["train_nll"]).all()


def test_connect_fits_a_curve_only_where_it_is_needed_or_asked_for(two: list[str]) -> None:
    easy = ok(*two, "interpolation.connected_below=99", "--json")
    assert easy.json["verdict"]["answer"] == "linearly connected"
    assert "fit-curve" not in dict(statuses(easy))
    asked = ok(*two, "interpolation.connected_below=99", "--curve", "curve.epochs=1", "--json")
    assert "fit-curve" in dict(statuses(asked))
    hard = ok(*two, "interpolation.connected_below=1e-9", "--no-curve", "--json")
    assert hard.json["verdict"]["answer"] in ("not connected", "undecided")
    assert [v["path"] for v in hard.json["verdicts"]] == ["segment", "aligned segment"]
    assert "fit-curve" not in dict(statuses(hard))


def test_connect_takes_arrays_as_they_are_and_doubts_networks_at_chance(two: list[str], tmp_path: Path) -> None:
    arrays = dict(np.load(tmp_path / "my data.npz"))
    answer = ok(*two, "--no-curve", "--json")
    assert answer.err == ""
    space: dict[str, Any] = {}
    exec(NET, space)
    net = space["Net"]()
    net.load_state_dict(torch.load(tmp_path / "b.pt"))
    wrong = net(torch.tensor(arrays["x_test"])).argmax(1).numpy() != arrays["y_test"]
    assert answer.json["endpoints"][1]["test_error"] == pytest.approx(100 * wrong.mean())
    np.savez(tmp_path / "my data.npz", **{**arrays, "x_test": arrays["x_test"] * 0 + 30})
    assert "little better than one answer" in ok(*two, "--no-curve", "-q").out


def test_connect_answers_though_its_curve_fails(two: list[str]) -> None:
    answer = call(*two, "--curve", "curve.lr=1e30", "interpolation.connected_below=1e-9", "--json")
    assert answer.code == 1
    assert [v["path"] for v in answer.json["verdicts"]] == ["segment", "aligned segment"]
    assert "learning rate" in answer.err


def test_connect_names_what_is_wrong(two: list[str], tmp_path: Path) -> None:
    before = tree(tmp_path)
    assert "no file c.pt" in refused("connect", "c.pt", *two[2:])
    assert "hold the same network" in refused(*two[:1], "b.pt", "b.pt", *two[3:])
    assert "--model nets" in refused(*two[:3], "--model", "nets", *two[5:])
    assert "no such file" in refused(*two[:5], "--data", "their.npz")
    assert "lacks hidden.0.weight" in refused(*two[:3], "--model", "mlp", *two[5:])
    assert tree(tmp_path) == before


VERDICT = {"value": 1.0, "low": 0.5, "high": 1.5, "below": 2.0, "convention": "above_mean", "confidence": 0.95}
VERDICT |= {"metric": "test_error"}


@pytest.mark.parametrize(
    ("segment", "curve", "answer", "said"),
    [
        ("yes", None, "linearly connected", "are linearly connected"),
        ("yes", "no", "linearly connected", "are linearly connected"),
        ("no", None, "not connected", "no path that was tried"),
        ("no", "no", "not connected", "no path that was tried"),
        ("no", "yes", "connected by a curve", "are not linearly connected, but the Bezier curve joins them"),
        ("no", "undecided", "undecided", "are not linearly connected, and whether the Bezier curve"),
        ("undecided", None, "undecided", "is undecided"),
        ("undecided", "yes", "connected by a curve", "is undecided, but the Bezier curve joins them"),
        ("undecided", "no", "undecided", "whether a and b are linearly connected is undecided"),
        ("no", "aligned yes", "connected after alignment", "but after alignment they are"),
        ("no", "aligned undecided", "undecided", "whether the aligned segment joins them"),
    ],
)
def test_every_pair_of_verdicts_has_its_answer(segment: str, curve: str | None, answer: str, said: str) -> None:
    verdicts = [{**VERDICT, "path": "segment", "connected": segment}]
    if curve:
        path = "aligned segment" if "aligned" in curve else "Bezier curve, 1 bend"
        verdicts.append({**VERDICT, "path": path, "connected": curve.removeprefix("aligned ")})
    found, sentence = connection(verdicts, "a", "b", Metrics.of({}))
    assert found == answer
    assert said in sentence
