"""One damaged run is shown as damaged and breaks no command that looks at all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_helpers import SPIRALS, call, no_pictures, ok, refused

HARMS = [  # scripts/torture.py does each of them to each file
    ("summary.json", "truncated"),
    ("provenance.json", "garbage"),
    ("config.yaml", "flipped"),
    ("path.csv", "zeroed"),
    ("scores.safetensors", "flipped"),
    ("DONE", "a list"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments with their endpoints; the second is the one that is damaged."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        for seed in (0, 1):
            ok("interpolate", *SPIRALS, f"seed={seed}", f"runtime.output_dir={place}", "-q")
    shutil.rmtree(place / "plot")  # which would need the segment
    return place


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of the second segment's directory, among copies of all."""
    shutil.copytree(finished, tmp_path / "outputs")
    (folder,) = (tmp_path / "outputs").glob("interpolate/*-s2-3-*/v1")
    return folder


def harm(file: Path, how: str) -> None:
    content = file.read_bytes()
    half = len(content) // 2
    changed = {
        "truncated": content[:half],
        "zeroed": bytes(len(content)),
        "garbage": bytes(range(256)) * (len(content) // 256 + 1),
        "a list": b"[]",
        "flipped": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
    }
    file.write_bytes(changed[how])


@pytest.mark.parametrize(("name", "how"), HARMS)
def test_it_is_shown_as_damaged_and_the_others_are_taken(
    name: str, how: str, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(damaged.parents[3])
    harm(damaged / name, how)
    listed = {r["name"]: r["status"] for r in ok("runs", "list", "interpolate", "--json").json["runs"]}
    assert sorted(s == "done" for s in listed.values()) == [False, True]
    assert name in next(s for s in listed.values() if s != "done")
    assert name in " ".join(ok("runs", "list").out.split())
    gathered = ok("gather", "--json")
    assert name in gathered.line
    assert "left out" in gathered.line
    assert [row["n"] for row in gathered.json["rows"]] == [1]
    assert damaged.parent.name in ok("report", "-o", "all.html").line
    assert Path("all.html").stat().st_size > 10_000
    (going,) = ok("runs", "gc", "--dry-run", "--json").json["runs"]
    assert Path(going["directory"]) == damaged.relative_to(Path.cwd())
    assert damaged.exists()
    assert name in ok("runs", "show", str(damaged)).out
    assert ok("runs", "show", str(damaged), "--json").json["status"] != "done"
    for command in (["report", str(damaged), "-o", "one.html"], ["plot", str(damaged), "-o", "a.png"]):
        assert call(*command).code in (1, 2)
    assert (
        f"{name} is" in refused("runs", "compare", *(str(p) for p in damaged.parents[1].glob("*/v1"))) or name == "DONE"
    )


def test_a_run_without_sums_that_lacks_what_it_should_have_is_left_out_too(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions left runs, and a summary of the same size that says nothing."""
    monkeypatch.chdir(damaged.parents[3])
    done = json.loads((damaged / "DONE").read_text())
    del done["sha256"]
    (damaged / "DONE").write_text(json.dumps(done))
    assert len(ok("gather", "--json").json["rows"]) >= 1
    summary = damaged / "summary.json"
    summary.write_text('{"path": 3}'.ljust(summary.stat().st_size))
    assert "left out" in ok("gather", "--json").line
    assert "left out" in ok("report").line
    assert ok("runs", "list").code == ok("runs", "show", str(damaged)).code == 0


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_report_has_no_curve_of_a_training_whose_table_was_changed(
    content: bytes, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(damaged.parents[3])
    (endpoint,) = Path("outputs").glob("train-endpoints/*-s3-*/v1")
    (endpoint / "metrics.csv").write_bytes(content)
    assert "metrics.csv is missing or was changed" in ok("report").err
