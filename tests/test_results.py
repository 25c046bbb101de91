"""Results read again: intervals are questions to the scores that were kept, and cost no forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import SPIRALS, Answer, folders, no_pictures, ok, statuses, tree
from safetensors.torch import load_file

from modeconn_cli.evaluation import measured as measured_room
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.measured import SPLITS, Measured
from modeconn_cli.tasks.classify import COLUMNS

ASKED = ["interpolation.confidence=0.5", "interpolation.bootstrap=77", "interpolation.connected_below=40"]


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
    # What nobody asks anything of says what the run was first asked for.
    (run,) = Path("outputs/interpolate").glob("*/v1")
    shown = ok("runs", "show", str(run), "--json").json["summary"]
    assert (shown["intervals"]["confidence"], shown["verdict"]["below"]) == (0.95, 2.0)


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
