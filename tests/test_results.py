"""Results read again: intervals are questions to the scores that were kept, and cost no forward pass."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import SPIRALS, Answer, compose, folders, no_pictures, ok, statuses, tree
from safetensors.torch import load_file

from modeconn_cli.evaluation import measured as measured_room
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.measured import SPLITS, Measured, Question
from modeconn_cli.results import Result, Table, read_summary
from modeconn_cli.runs.directory import Run
from modeconn_cli.runs.find import Found
from modeconn_cli.tasks.base import Column, Criterion
from modeconn_cli.tasks.classify import COLUMNS
from modeconn_cli.work.plan import make_plan
from modeconn_cli.work.reporting import Silent
from modeconn_cli.work.stage import Stage, execute

ASKED = ["interpolation.confidence=0.5", "interpolation.bootstrap=77", "interpolation.connected_below=40"]
ASKED += ["interpolation.verdict_odds=9"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by a split's name whenever a network is evaluated on it."""
    seen: list[str] = []
    score = Evaluator.score

    def counted(self: Evaluator, split: Any) -> Any:
        seen.append(split.name)
        return score(self, split)

    monkeypatch.setattr(Evaluator, "score", counted)
    return seen


def found(answer: Answer) -> tuple[Any, Any]:
    return answer.json["barriers"], answer.json["verdicts"]


def test_another_question_is_answered_from_the_kept_scores_as_a_fresh_run_would(passes: list[str]) -> None:
    first = ok("interpolate", *SPIRALS, "--json")
    assert len(passes) > 0
    passes.clear()
    before = tree(Path("outputs"))
    again = ok("interpolate", *SPIRALS, *ASKED, "interpolation.batch_size=7", "--json")
    assert passes == []
    assert {status for _, status in statuses(again)} == {"cached"}
    assert folders(again) == folders(first)
    assert tree(Path("outputs")) == before
    fresh = ok("interpolate", *SPIRALS, *ASKED, "runtime.output_dir=fresh", "--json")
    assert len(passes) > 0
    assert found(again) == found(fresh)
    assert found(again) != found(first)
    assert {v["confidence"] for v in found(again)[1]} == {0.5}
    assert {v["below"] for v in found(again)[1]} == {40.0}
    assert {v["odds"] for v in found(again)[1]} == {9.0}
    # What nobody asks anything of says what the run was first asked for.
    (run,) = Path("outputs/interpolate").glob("*/v1")
    shown = ok("runs", "show", str(run), "--json").json["summary"]
    assert (shown["intervals"]["confidence"], shown["verdict"]["below"]) == (0.95, 2.0)
    # Intervals that were made in another way are made again from the scores, where anything is asked.
    summary = json.loads((run / "summary.json").read_text())
    old = {**summary, "intervals": {**summary["intervals"], "method": "percentile bootstrap over examples"}}
    old["barriers"] = {m: {c: {"value": 1.0, "low": 0.0, "high": 9.0} for c in v} for m, v in old["barriers"].items()}
    (run / "summary.json").write_text(json.dumps(old))
    assert read_summary(run)["barriers"] == old["barriers"]
    now = read_summary(run, Question(20, 0.95, Criterion("error", "above_mean", 2.0), 1.5))
    assert {k: now[k] for k in ("barriers", "verdict")} == {k: summary[k] for k in ("barriers", "verdict")}


def test_intervals_of_a_mean_of_networks_are_asked_again_too(passes: list[str]) -> None:
    words = ["rebasin", *SPIRALS, "endpoints.seeds=[0,1,2]", "rebasin=merge_many", "--json"]
    first = ok(*words)
    passes.clear()
    again = ok(*words, *ASKED)
    assert passes == []
    assert {status for _, status in statuses(again)} == {"cached"}
    fresh = ok(*words, *ASKED, "runtime.output_dir=fresh")
    assert again.json["merged"] == fresh.json["merged"] != first.json["merged"]
    (row,) = (r for r in first.json["merged"][0]["merged"] if r["network"] == "mean of the matched")
    assert row["test_error"] == folder_metrics(first)["test_error"]


def folder_metrics(answer: Answer) -> dict[str, float]:
    metrics: dict[str, float] = Result.read(folders(answer)["rebasin"]).metrics
    return metrics


def test_the_kept_scores_are_those_behind_path_csv() -> None:
    folder = folders(ok("interpolate", *SPIRALS, "--json"))["interpolate"]
    table, kept = pd.read_csv(folder / "path.csv"), load_file(folder / "scores.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    assert {*kept} == {"t", *(f"{s}.{c}" for s in SPLITS for c in ("nll", "error"))}
    assert kept["t"].tolist() == table["t"].tolist()
    for split in SPLITS:
        assert kept[f"{split}.nll"].shape == (len(table), summary["splits"][split]["examples"])
        np.testing.assert_allclose(kept[f"{split}.nll"].double().mean(1), table[f"{split}_nll"], rtol=1e-12)
        np.testing.assert_allclose(100 * kept[f"{split}.error"].double().mean(1), table[f"{split}_error"], rtol=1e-12)
    size = sum(v.numel() * v.element_size() for v in kept.values())
    assert summary["scores"] == {"kept": True, "bytes": size, "most": 64 * 2**20}


def test_scores_that_are_too_many_are_not_kept_and_another_question_says_so(
    monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    monkeypatch.setattr("modeconn_cli.work.measuring.KEPT_BYTES", 1000)
    first = ok("interpolate", *SPIRALS, "--json")
    folder = folders(first)["interpolate"]
    assert not (folder / "scores.safetensors").exists()
    assert json.loads((folder / "summary.json").read_text())["scores"]["kept"] is False
    passes.clear()
    again = ok("interpolate", *SPIRALS, *ASKED)
    assert passes == []
    assert "kept no scores, so its intervals are its own (confidence 0.95, 20 resamples); --force" in again.err
    assert found(ok("interpolate", *SPIRALS, *ASKED, "--json"))[0] == found(first)[0]
    assert "against 40" in again.out or "below 40" in again.out  # a threshold takes no scores


def test_means_and_their_errors_by_hand() -> None:
    """Two examples at three points, on both splits alike."""
    nll = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 1.0]])
    wrong = torch.tensor([[True, False], [True, True], [False, False]])
    by_split = {s: {"nll": nll, "error": wrong} for s in SPLITS}
    measured = Measured(np.array([0.0, 0.5, 1.0]), np.array([1.0, 2.0, 3.0]), by_split, COLUMNS, 0.2)
    means, errors = measured.means(), measured.standard_errors()
    assert list(means) == measured_room.metric_names(["nll", "error"]) == list(errors)
    for split in SPLITS:
        np.testing.assert_allclose(means[f"{split}_nll"], [2.0, 2.0, 0.5])
        np.testing.assert_allclose(means[f"{split}_loss"], [2.1, 2.4, 1.4])
        np.testing.assert_allclose(means[f"{split}_error"], [50.0, 100.0, 0.0])
        np.testing.assert_allclose(errors[f"{split}_loss"], [1.0, 0.0, 0.5])
        np.testing.assert_allclose(errors[f"{split}_error"], [50.0, 0.0, 0.0])


def test_a_standard_error_divides_by_one_less_than_there_are() -> None:
    """Four examples, so that n and n - 1 give figures that no square root of a small number hides."""
    wrong = torch.tensor([[True, False, False, False], [True, True, False, False]])
    by_split = {s: {"nll": torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 4.0]]), "error": wrong} for s in SPLITS}
    errors = Measured(np.array([0.0, 1.0]), np.ones(2), by_split, COLUMNS, 0.0).standard_errors()
    for split in SPLITS:
        # squares about the means 3 and 1 sum to 14 and 12, over 3 and then 4
        np.testing.assert_allclose(errors[f"{split}_nll"], [np.sqrt(14 / 3 / 4), 1.0])
        np.testing.assert_allclose(errors[f"{split}_error"], [25.0, 100 * np.sqrt(1 / 3 / 4)])


class Distance(Stage):
    """A stage that no room of the package knows: how far a path's points are from its nearer end."""

    name = "distance"

    def __init__(self, path: Stage) -> None:
        super().__init__(path.context, [path])

    @property
    def label(self) -> str:
        return self.upstream()[0].label

    def fields(self) -> dict[str, Any]:
        return {}

    def compute(self, run: Run) -> Result:
        length = pd.read_csv(self.upstream()[0].result.folder / "path.csv")["length"]
        nearer = np.minimum(length, length.max() - length)
        columns = [Column("point", "Point", digits=0), Column("distance", "Distance", unit="mm", digits=3)]
        rows = [{"point": i, "distance": float(d)} for i, d in enumerate(nearer)]
        picture = base64.b64decode("iVBORw0KGgo=")
        with run.writing("distance.png") as file:
            file.write_bytes(picture)
        return Result(
            "distance to the nearer end",
            {"mean_distance": float(nearer.mean())},
            [Column("mean_distance", "Mean distance", unit="mm", digits=3)],
            [Table("distance.csv", "Along the path", columns, rows)],
            pictures=["distance.png"],
        )


def run_distance(*overrides: str) -> tuple[Run, float]:
    plan = make_plan("interpolate", compose(*SPIRALS, *overrides), Silent())
    plan.execute([])
    (path,) = (s for s in plan.stages if s.makes == "path")
    run = execute(Distance(path), force=False)
    return run, Result.read(run.folder).metrics["mean_distance"]


def test_what_a_stage_from_outside_found_is_shown_in_every_room() -> None:
    found = [run_distance(f"seed={seed}") for seed in (0, 1)]
    (run, value), values = found[0], [v for _, v in found]
    back = Result.read(run.folder)
    assert back.title == "distance to the nearer end"
    (table,) = back.tables
    assert [r["distance"] for r in table.rows] == pytest.approx([0.0, table.rows[1]["distance"], 0.0])
    assert (table.columns[1].unit, table.columns[1].heading) == ("mm", "Distance (mm)")
    # gather: by name, and beside paths whose own metrics are others
    (row,) = ok("gather", "--metric=mean_distance", "--json").json["rows"]
    assert (row["path"], row["n"]) == ("distance to the nearer end", 2)
    assert row["metrics"]["mean_distance"]["mean"] == pytest.approx(np.mean(values))
    every = ok("gather", "--json").json["rows"]
    assert {r["path"]: [*r["metrics"]] for r in every} == {
        "segment": ["train_loss.above_mean", "test_error.above_mean"],
        "distance to the nearer end": ["mean_distance"],
    }
    assert f"{np.mean(values):.3f}" in ok("gather", "--format=markdown").out
    # runs list and show
    assert f"mean distance {value:.3f} mm" in ok("runs", "list", "distance").out
    shown = ok("runs", "show", str(run.folder)).out
    assert f"Mean distance (mm) {value:.3f}" in shown
    assert "Along the path" in shown
    # report: a section with figures, table and picture
    for words in ([], [str(run.folder)]):
        ok("report", *words, "-o", "page.html")
        html = Path("page.html").read_text(encoding="utf-8")
        assert "<h2>mlp on two_spirals, distance to the nearer end</h2>" in html
        assert f'<data value="{value!r}">{value:.3f}</data>' in html
        assert 'src="data:image/png;base64,iVBORw0KGgo="' in html
        assert "img-src data:" in html
        assert ("Along the paths" in html) == (not words)


def test_a_run_from_before_kinds_were_recorded_is_known_by_its_files() -> None:
    ok("fit-curve", *SPIRALS)
    kinds = {}
    for folder in sorted(p.parent for p in Path("outputs").rglob("DONE")):
        file = folder / "provenance.json"
        content = json.loads(file.read_text())
        kinds[folder] = content.pop("kind"), {*content.pop("groups")}
        file.write_text(json.dumps(content))
    assert {k for k, _ in kinds.values()} == {"endpoint", "curve", "path", "picture"}
    for folder, (kind, groups) in kinds.items():
        assert Found(folder).kind == kind
        assert {*Found(folder).groups} == groups
