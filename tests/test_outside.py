"""What docs/extending.md adds from a folder outside the package is everywhere that the package's own things are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import ROOT, processes
from safetensors.torch import load_file

PAGE = ROOT / "docs" / "extending.md"
SMALL = [
    "architecture.width=6",
    "endpoints.epochs=2",
    "curve.epochs=1",
    "interpolation.points=5",
    "interpolation.search_max=0",
]
MINE = ["dataset=waves", "task=huber", "curve=arc", "curve.turn=0.5", *SMALL]


def files() -> dict[str, str]:
    """The page's files by their paths in the folder: a line with a path, then a block."""
    found = re.findall(r"^`([\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outside")
    for name, text in files().items():
        file = place / "plugins" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return place


def modeconn(lab: Path, *words: str, code: int = 0, pictures: bool = False) -> str:
    """A process of its own, for plugins are imported once."""
    env = {"MODECONN_PLUGINS": str(lab / "plugins"), "COLUMNS": "200"}
    answer = processes().run(words, lab, env=env, pictures=pictures)
    assert answer.code == code, answer.err
    return answer.out if code == 0 else answer.err


def test_each_example_is_short() -> None:
    assert {*files()} == {
        "arc.py", "huber.py", "waves.py", "luck.py", "distance.py",
        "conf/curve/arc.yaml", "conf/task/huber.yaml", "conf/dataset/waves.yaml", "conf/rebasin/luck.yaml",
        "conf/distance/default.yaml",
    }  # fmt: skip
    assert all(len(text.splitlines()) < 40 for text in files().values())


def test_all_four_run_and_are_cached_planned_gathered_and_reported(lab: Path) -> None:
    planned = json.loads(modeconn(lab, "distance", *MINE, "--dry-run", "--json"))
    assert [r["stage"] for r in planned["stages"]][-1] == "distance"
    assert not (lab / "outputs").exists()

    answer = json.loads(modeconn(lab, "distance", *MINE, "--json"))
    assert {r["status"] for r in answer["stages"]} == {"run"}
    folders = {r["stage"]: Path(lab, r["directory"]) for r in answer["stages"]}
    W = load_file(folders["fit-curve"] / "checkpoint.safetensors")
    rows = [torch.cat([v.flatten() for k, v in sorted(W.items()) if k.startswith(f"{i}.")]).double() for i in range(3)]
    t = np.linspace(0, 1, 101)
    angle = np.pi / 4 * (2 * t - 1)
    middle = (np.cos(angle) - np.cos(np.pi / 4)) / (1 - np.cos(np.pi / 4))
    side = np.sin(angle) / np.sin(np.pi / 4)
    c = torch.as_tensor(np.stack([(1 - middle - side) / 2, middle, (1 - middle + side) / 2], 1))
    wanted = float((c @ torch.stack(rows) - rows[0]).norm(dim=1).mean())
    summary = json.loads((folders["distance"] / "summary.json").read_text())
    assert summary["metrics"]["mean_distance"] == pytest.approx(wanted, rel=1e-5)

    other = json.loads(modeconn(lab, "distance", *MINE, "distance.to_end=true", "--json"))
    assert [r["status"] for r in other["stages"]].count("run") == 1
    again = json.loads(modeconn(lab, "distance", *MINE, "--json"))
    assert {r["status"] for r in again["stages"]} == {"cached"}
    assert "mean distance" in modeconn(lab, "distance", *MINE)

    gathered = json.loads(modeconn(lab, "gather", "--metric", "mean_distance", "--json"))["rows"]
    assert {row["distance.to_end"] for row in gathered} == {False, True}
    modeconn(lab, "report")
    page = (lab / "outputs" / "report.html").read_text()
    assert "mean distance" in page
    assert "arc curve" in page


def test_the_pages_own_commands_run(lab: Path) -> None:
    lines = re.findall(r"^modeconn (.*)$", PAGE.read_text(), re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["fit-curve", "distance", "gather"]
    for line in lines:
        modeconn(lab, *line.split(), *([] if line.startswith("gather") else SMALL), pictures=True)


SCRIPT = f"""
import json
import pandas as pd
import modeconn_cli as mc

runs = mc.run("distance", {MINE})
ends = [r for r in runs if r.kind == "endpoint"]
decay = {{"endpoints.weight_decay": 5e-4, "curve.weight_decay": 5e-4}}
small = {{"turn": 0.5, "epochs": 1, "points": 5, "search_max": 0}}
found = mc.fit_curve(ends[0].at(), ends[1].state_dict(), "waves", task="huber", kind="arc", **small, **decay)
(curve,) = [r for r in mc.run("evaluate", {MINE}).paths if r.title == "arc curve"]
pd.testing.assert_frame_equal(found.table, curve.table, check_exact=True)
print(json.dumps([runs[-1].summary["metrics"], found.title]))
"""


def test_all_four_run_from_python(lab: Path) -> None:
    env = {**os.environ, "MODECONN_PLUGINS": str(lab / "plugins"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=lab, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(modeconn(lab, "distance", *MINE, "--json"))
    assert {r["status"] for r in answer["stages"]} == {"cached"}
    (folder,) = [Path(lab, r["directory"]) for r in answer["stages"] if r["stage"] == "distance"]
    assert json.loads(done.stdout) == [json.loads((folder / "summary.json").read_text())["metrics"], "arc curve"]


def test_they_show_in_help_configuration_and_completion(lab: Path) -> None:
    assert re.search(r"distance\s+Mean distance along a path", modeconn(lab, "--help"))
    printed = modeconn(lab, "distance", *MINE, "--cfg", "job")
    assert "turn: 0.5" in printed
    assert "to_end: false" in printed
    assert modeconn(lab, "_complete", "modeconn dist").split() == ["distance"]
    assert "curve=arc" in modeconn(lab, "_complete", "modeconn fit-curve curve=").split()
    assert modeconn(lab, "_complete", "modeconn fit-curve curve=arc curve.tu").split() == ["curve.turn="]
    offered = modeconn(lab, "_complete", "modeconn distance distance.to_end=").split()
    assert offered == ["distance.to_end=true", "distance.to_end=false"]
    assert {"dataset=waves"} <= {*modeconn(lab, "_complete", "modeconn distance dataset=").split()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["curve=arc", "curve.turn=3"], "curve.turn=3.0 is out of range: it must be more than 0 and less than 2."),
        (["distance.to_end=middle"], "distance.to_end=middle: not one of true, false"),
        (["curve=arch"], "did you mean curve=arc?"),
    ],
)
def test_mistakes_are_explained_in_one_line(words: list[str], said: str, lab: Path) -> None:
    complaint = modeconn(lab, "distance", "dataset=waves", *words, code=2)
    assert len(complaint.splitlines()) == 1
    assert said in complaint


def test_a_plugin_that_cannot_be_imported_is_named(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "broken.py").write_text("import nowhere_to_be_found\n")
    complaint = modeconn(tmp_path, "--help", code=2)
    assert "broken.py cannot be imported (ModuleNotFoundError" in complaint
    assert len(complaint.splitlines()) == 1


def test_a_matching_from_outside_aligns_and_is_identified_by_its_own_options(lab: Path) -> None:
    words = ["interpolate", "dataset=waves", "task=huber", *SMALL, "rebasin=luck"]
    answer = json.loads(modeconn(lab, *words, "rebasin.tries=3", "--json"))
    (entry,) = answer["aligned"]
    assert entry["method"] == "luck"
    assert entry["objective_after"] >= entry["objective_before"]
    assert entry["certificate"]["difference"] < 1e-12
    (folder,) = [Path(lab, r["directory"]) for r in answer["stages"] if r["stage"] == "rebasin"]
    fields = json.loads((folder / "provenance.json").read_text())["identity"]["fields"]
    assert fields == {"method": "luck", "tries": 3}
    assert modeconn(lab, "_complete", "modeconn rebasin rebasin=luck rebasin.tr").split() == ["rebasin.tries="]
    offered = modeconn(lab, "_complete", "modeconn rebasin rebasin=").split()
    assert {"rebasin=luck", "rebasin=weight"} <= {*offered}


def test_a_path_by_target_needs_no_registration(lab: Path) -> None:
    by_target = [
        "curve=custom",
        "curve.target=plugins/arc.py:Arc",
        "curve.kwargs.turn=0.5",
        "dataset=waves",
        "task=huber",
    ]
    answer = json.loads(modeconn(lab, "evaluate", *by_target, *SMALL, "--json"))
    named = json.loads(modeconn(lab, "evaluate", *MINE, "--json"))
    tables = [
        next(Path(lab, r["directory"], "path.csv").read_bytes() for r in a["stages"] if r["stage"] == "evaluate")
        for a in (answer, named)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("body", ["return np.ones((2, 3))", "return np.hstack([u, u, 1 - 2 * u])", "return 1 / 0"])
def test_what_is_no_path_is_refused(body: str, tmp_path: Path) -> None:
    lines = ["import numpy as np", "from modeconn_cli.families.base import Family", "", "", "class Bad(Family):"]
    lines += ["    vertices = 3", "", "    def coefficients(self, u):", "        u = np.asarray(u)", f"        {body}"]
    (tmp_path / "bad.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "plugins").mkdir()
    complaint = modeconn(tmp_path, "fit-curve", "curve=custom", "curve.target=bad.py:Bad", code=2)
    assert len(complaint.splitlines()) == 1
    assert "bad.py:Bad" in complaint
    assert not (tmp_path / "outputs").exists()
