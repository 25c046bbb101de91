"""What tables and lines say: of what there is, and of what it is about."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from modeconn_cli.errors import UserError
from modeconn_cli.front.browse import only_one_uses
from modeconn_cli.front.terminal import barrier_table, endpoint_table
from modeconn_cli.nearest import nearest_words
from modeconn_cli.report.formats import as_table, by_kind
from modeconn_cli.report.made import done_by
from modeconn_cli.report.plots import PathResult
from modeconn_cli.report.tables import heading
from modeconn_cli.results import Metrics
from modeconn_cli.runs.directory import require_writable
from modeconn_cli.runs.find import Found


@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_losses_have_weight_decay_where_there_is_some(decay: float) -> None:
    barrier = {"value": 1.0, "low": 0.5, "high": 1.5}
    row = {"metric": "train_loss", "path": "segment", "weight_decay": decay, "start": 1.0, "end": 1.0, "max": 2.0}
    title = str(barrier_table([{**row, "above_mean": barrier}], Metrics.of({})).title)
    assert ("weight-decay" in title) == bool(decay)
    assert ("weight decay" in Metrics.of({"weight_decay": decay}).heading("train_loss")) == bool(decay)


def test_endpoints_from_files_are_called_as_somebody_called_them() -> None:
    rows = [
        {"name": "arrays-custom-file", "from": "a.pt", "test_error": 1.0},
        {"name": "arrays-custom-files-weight", "from": "b.pt aligned", "test_error": 1.0},
        {"name": "digits-mlp-s0", "from": "seed 0", "test_error": 1.0},
    ]
    assert [*endpoint_table(rows, Metrics.of({})).columns[0].cells] == ["a.pt", "b.pt aligned", "digits-mlp-s0"]


def test_a_page_says_read_of_what_was_read(tmp_path: Path) -> None:
    folder = tmp_path / "train-endpoints" / "arrays-custom-file-12" / "v1"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text('{"kind": "endpoint"}')
    (folder / "summary.json").write_text('{"file": "there/a.pt", "name": "a.pt"}')
    assert done_by(Found(folder)) == "reading a.pt"
    (folder / "summary.json").write_text('{"seed": 0}')
    assert done_by(Found(folder)) == "train-endpoints"


@pytest.mark.parametrize(
    ("methods", "end"),
    [
        ([None], "seed 0 and seed 1"),
        ([None, "weight"], ", aligned by weight matching where the path says so"),
        (["weight", "weight"], ", aligned by weight matching"),
    ],
)
def test_a_picture_says_aligned_of_what_is(methods: list[str | None], end: str) -> None:
    task = {"architecture": "mlp", "dataset": "digits", "endpoints": "seed 0 and seed 1"}
    paths = [PathResult("segment", pd.DataFrame(), {"task": task, "aligned_by": m}) for m in methods]
    assert heading(paths).endswith(end)


def gathered(path: str, **more: object) -> dict[str, object]:
    figure = {"mean": 1.0, "std": 0.1, "n": 2, "low": 0.5, "high": 1.5}
    names = more.pop("metrics")
    assert isinstance(names, list)
    row = {"path": path, "n": 2, "metrics": dict.fromkeys(names, figure), "digits": dict.fromkeys(names, 2)}
    return {**row, "shared_endpoints": False, "runs": [], **more}


def test_a_table_has_the_settings_and_metrics_of_its_kind() -> None:
    rows = [
        gathered("segment", metrics=["test_error.above_mean"], **{"curve.bends": ""}),
        gathered("2 networks", metrics=["error", "ece"], **{"curve.bends": ""}),
        gathered("Bezier curve", metrics=["test_error.above_mean"], **{"curve.bends": 1}),
    ]
    paths, ensembles = by_kind(rows)
    heads, cells = as_table(paths)
    assert heads == ["path", "curve.bends", "n", "test_error.above_mean", "std", "interval"]
    assert [line[0] for line in cells] == ["segment", "Bezier curve"]
    assert as_table(ensembles)[0] == ["path", "n", "error", "std", "interval", "ece", "std", "interval"]


def test_settings_of_a_group_that_one_run_alone_uses_are_told_from_those_that_differ() -> None:
    first = {"interpolation.points": 5, "endpoints.lr": 0.1}
    second = {"interpolation.points": 9, "endpoints.lr": 0.1, "endpoints.eps": 1, "curve.bends": 1, "seed": 0}
    assert only_one_uses([first, second]) == {"curve.bends": 1, "seed": 1}
    assert only_one_uses([second, first]) == {"curve.bends": 0, "seed": 0}


def test_where_nothing_can_be_written_is_seen_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    require_writable(tmp_path / "not" / "there" / "yet")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"^cannot write .*: .*runtime.output_dir=DIR"):
            require_writable(place)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="Permission denied"):
        require_writable(tmp_path / "not")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("wrong", "right", "wanted"),
    [
        ("resnet21", ["resnet110", "resnet20", "resnet32"], "resnet20"),
        ("resnet50", ["resnet110", "resnet20", "resnet56"], "resnet56"),
        ("VGG17_bn", ["vgg16", "vgg16_bn", "vgg11_bn"], "vgg16_bn"),
        ("wrn28x9", ["wrn28x10", "wrn16x4"], "wrn28x10"),
        ("resnt20", ["resnet110", "resnet20"], "resnet20"),
    ],
)
def test_of_words_that_differ_in_a_number_the_nearest_number_is_meant(
    wrong: str, right: list[str], wanted: str
) -> None:
    assert nearest_words(wrong, right, n=2)[0] == wanted
