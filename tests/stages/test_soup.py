"""soup as a user calls it: merged networks beside what is made of the same checkpoints by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import DIGITS, folders, no_pictures, ok, refused
from safetensors.torch import load_file

SMALL = [*DIGITS, "dataset.validation_size=60"]
PAIR = ["endpoints.seeds=[0,1]", "endpoints.lr=0.05"]


def flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([v.flatten() for _, v in sorted(state.items())]).double().numpy()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Where two networks trained on from a third were merged in every way; the answer, and their parent."""
    root = tmp_path_factory.mktemp("soup")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        no_pictures(patch)
        parent = str(folders(ok("train-endpoints", *SMALL, "endpoints.seeds=[7]", "--json"))["train-endpoints"])
        answer = ok("soup", "soup=all", *SMALL, *PAIR, f"endpoints.init_from={parent}", "soup.steps=3", "--json")
    return root, answer.json, parent


def test_every_way_makes_its_network(lab: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, answer, parent = lab
    monkeypatch.chdir(root)
    rows = answer["stages"]
    a, b = (
        flat(load_file(f"{r['directory']}/checkpoint.safetensors")) for r in rows if r["name"].endswith(("s0", "s1"))
    )
    w0 = flat(load_file(f"{parent}/checkpoint.safetensors"))
    notes = [json.loads(Path(r["directory"], "summary.json").read_text()) for r in rows if r["stage"] == "soup"]
    found = {
        note["method"]: (flat(load_file(f"{r['directory']}/checkpoint.safetensors")), note["merging"])
        for note, r in zip(notes, [r for r in rows if r["stage"] == "soup"], strict=True)
    }
    averages = ["uniform", "greedy", "least_squares", "learned"]
    assert [*found] == [*averages, "task_arithmetic", "ties", "dare", "slerp"]
    for method in averages:
        w, note = found[method]
        assert sum(note["weights"]) == pytest.approx(1)
        assert min(note["weights"]) >= 0
        np.testing.assert_allclose(w, note["weights"][0] * a + note["weights"][1] * b, atol=1e-6)
    np.testing.assert_allclose(found["uniform"][0], (a + b) / 2, atol=1e-6)
    w, note = found["task_arithmetic"]
    np.testing.assert_allclose(w, w0 + note["scale"] * (a - w0 + b - w0), atol=1e-6)
    assert note["scores"][str(note["scale"])] == min(note["scores"].values())
    w, note = found["ties"]
    kept = [np.where(abs(v) >= np.sort(abs(v))[-int(np.ceil(0.2 * v.size))], v, 0) for v in (a - w0, b - w0)]
    sign = np.sign(kept[0] + kept[1])
    agree = [np.sign(v) == sign for v in kept]
    mean = sum(np.where(s, v, 0) for s, v in zip(agree, kept, strict=True)) / np.maximum(sum(agree) * (sign != 0), 1)
    np.testing.assert_allclose(w, w0 + note["scale"] * mean, atol=1e-6)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    np.testing.assert_allclose(found["slerp"][0], np.sin(angle / 2) / np.sin(angle) * (a + b), atol=1e-6)


def test_one_table_has_every_soup(lab: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, answer, _ = lab
    monkeypatch.chdir(root)
    folder = next(Path(r["directory"]) for r in answer["stages"] if r["stage"] == "soups")
    table = pd.read_csv(folder / "soups.csv").set_index("soup")
    assert len(table) == 8
    own = [e["test_error"] for e in answer["endpoints"] if e["from"] in ("seed 0", "seed 1")]
    for row in table.itertuples():
        assert row.above_mean == pytest.approx(row.test_error - np.mean(own))
        assert row.above_best == pytest.approx(row.test_error - min(own))
    greedy = table.loc["greedy soup"]
    beside = pd.read_csv(next(folder.parents[2].glob("soup/*greedy*/v1/soup.csv"))).set_index("network")
    assert greedy.validation_error <= beside.loc[["seed 0", "seed 1"], "validation_error"].min()
    assert "Every soup of these networks" in ok("report", "--json").out or (root / "outputs" / "report.html").exists()
    gathered = ok("gather", "outputs/soup/*", "--metric", "barrier", "--json").json["rows"]
    assert {row["soup.method"] for row in gathered} >= {"uniform", "ties", "slerp"}
    assert {row["path"] for row in gathered} >= {"TIES of 2 networks", "SLERP of 2 networks"}


def test_a_soup_is_an_endpoint_by_reference(
    lab: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The barrier between it and a network is that of the segment which is measured between the two."""
    root, answer, _ = lab
    monkeypatch.chdir(root)
    soup = next(r["directory"] for r in answer["stages"] if "task_arithmetic" in r["name"])
    other = next(r["directory"] for r in answer["stages"] if r["name"].endswith("s1"))
    measured = ok("interpolate", *SMALL, f"endpoints.from=[{soup},{other}]", "interpolation.points=5", "--json").json
    lines = pd.read_csv(Path(soup, "lines.csv")).set_index("network")
    wanted = next(r for r in measured["barriers"] if r["metric"] == "test_error")["above_mean"]["value"]
    assert lines.loc["seed 1", "barrier"] == pytest.approx(wanted)
    assert [*lines.index] == ["seed 7", "seed 0", "seed 1"]
    assert (
        lines["barrier"].max() == next(r for r in answer["results"] if "task arith" in r["title"])["metrics"]["barrier"]
    )
    named = [e["from"] for e in measured["endpoints"]]
    assert named == ["task arithmetic of seed 0, seed 1", "seed 1"]


def test_after_re_basin_the_matched_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    quick = ["rebasin.restarts=0", "endpoints.seeds=[0,1,2]", "--json"]
    answer = ok("soup", *DIGITS, "rebasin=merge_many", *quick)
    mean, soup = (load_file(folders(answer)[s] / "checkpoint.safetensors") for s in ("rebasin", "soup"))
    for name, value in mean.items():
        torch.testing.assert_close(soup[name], value)
    pairwise = ok("soup", *DIGITS, "rebasin=weight", *quick)
    aligned = [r["directory"] for r in pairwise.json["stages"] if r["stage"] in ("train-endpoints", "rebasin")]
    first, *moved = [load_file(f"{d}/checkpoint.safetensors") for d in (aligned[0], *aligned[3:])]
    assert len(moved) == 2
    soup = load_file(folders(pairwise)["soup"] / "checkpoint.safetensors")
    for name, value in first.items():
        torch.testing.assert_close(soup[name], (value + moved[0][name] + moved[1][name]) / 3)


def test_norms_are_estimated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["dataset.train_size=60", "architecture=mlp", "architecture.width=8", "architecture.norm=batch"]
    answer = ok("soup", *small, "endpoints.epochs=1", "soup=slerp", "soup.points=2", "--json")
    ends = [load_file(f"{r['directory']}/checkpoint.safetensors") for r in answer.json["stages"][:2]]
    soup = load_file(folders(answer)["soup"] / "checkpoint.safetensors")
    name = next(k for k in soup if k.endswith("running_var"))
    assert not torch.allclose(soup[name], (ends[0][name] + ends[1][name]) / 2, rtol=1e-3)


def test_what_cannot_be_merged_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "soup=uniform needs two networks, and 1 is given" in refused("soup", *DIGITS, "endpoints.seeds=[0]")
    assert "soup=all: a soup needs two networks" in refused("soup", "soup=all", *DIGITS, "endpoints.seeds=[0]")
    for way, does in {"greedy": "sorts and chooses networks", "learned": "finds its weights"}.items():
        line = refused("soup", *DIGITS, f"soup={way}")
        assert f"soup={way} {does} on the validation split, and there is none: set dataset.validation_size" in line
    line = refused("soup", *DIGITS, "soup=ties")
    assert "merges what training changed of a common parent, and none is given" in line
    assert "merges 2 networks, and 3 are given" in refused("soup", *DIGITS, "soup=slerp", "endpoints.seeds=[0,1,2]")
    assert "no way 'stew'; there are uniform, greedy" in refused("soup", *DIGITS, "soup=all", "soup.methods=[stew]")
    assert not (tmp_path / "outputs").exists()

    own = ok("train-endpoints", *DIGITS, "endpoints.seeds=[0,1]", "--json").json["stages"]
    first, second = (r["directory"] for r in own)
    other = folders(ok("train-endpoints", *DIGITS, "architecture.width=4", "endpoints.seeds=[0]", "--json"))
    mixed = f"endpoints.from=[{first},{other['train-endpoints']}]"
    assert "has shape" in refused("soup", *DIGITS, mixed)
    assert "hold the same network" in refused("soup", *DIGITS, f"endpoints.from=[{first},{first}]")
    pair = f"endpoints.from=[{first},{second}]"
    line = refused("soup", *DIGITS, pair, "soup=ties", f"soup.parent={other['train-endpoints']}")
    assert "has shape" in line
    line = refused("soup", *DIGITS, "soup=ties", pair, f"soup.parent={first}")
    assert line == "two of the networks to be merged are the same one: drop one, or give another."
