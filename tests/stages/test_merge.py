"""rebasin of several networks as a stage: the mean of the matched."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from cli_helpers import DIGITS, folders, no_pictures, ok, refused
from safetensors.torch import load_file
from symmetric_networks import (
    State,
)


@pytest.fixture
def elsewhere(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    no_pictures(monkeypatch)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What asks for three wide networks, which are trained."""
    wide = ["architecture.width=64", "endpoints.epochs=15", "dataset.train_size=600", "endpoints.seeds=[0,1,2]"]
    others = [o for o in DIGITS if not any(o.startswith(w.partition("=")[0]) for w in wide)]
    words = [*others, *wide, f"runtime.output_dir={tmp_path_factory.mktemp('three')}"]
    ok("train-endpoints", *words, "-q")
    return words


@pytest.mark.parametrize("method", ["merge_many", "c2m3"])
def test_three_networks_are_merged(elsewhere: None, three: list[str], method: str) -> None:
    request = ["rebasin", *three, f"rebasin={method}", "rebasin.restarts=1"]
    answer = ok(*request, "--json")
    folder = folders(answer)["rebasin"]
    table = pd.read_csv(folder / "merge.csv").set_index("network")
    assert table.loc["mean of the matched", "train_nll"] < table.loc["mean of the networks as they are", "train_nll"]
    ends = [load_file(f"{r['directory']}/checkpoint.safetensors") for r in answer.json["stages"][:3]]
    moves = [{}, *(load_file(folder / f"permutation-{k}.safetensors") for k in (2, 3))]
    total: State = {}
    for state, move in zip(ends, moves, strict=True):
        for name, value in state.items():
            for dim in range(value.dim()):
                value = value.index_select(dim, move[f"{name}:{dim}"]) if f"{name}:{dim}" in move else value
            total[name] = total.get(name, 0) + value / 3
    merged = load_file(folder / "checkpoint.safetensors")
    assert all(torch.allclose(merged[k], total[k], atol=1e-6) for k in merged)
    (found,) = answer.json["merged"]
    assert found["cycle_error"]["this"] == 0
    assert found["certificate"]["difference"] < 1e-12
    assert "Round three networks" in ok(*request).out


def test_batch_statistics_of_merged_networks_can_be_reset(elsewhere: None) -> None:
    quick = [o for o in DIGITS if "width" not in o and "train_size" not in o]
    small = ["dataset.train_size=100", "architecture=resnet20", "architecture.width=0.25", "architecture.depth=8"]
    answer = ok("rebasin", *quick, *small, "rebasin=merge_many", "rebasin.restarts=0", "--json")
    assert [r["network"] for r in answer.json["merged"][0]["merged"]] == [
        "mean of the networks as they are",
        "mean of the matched",
        "matched + reset",
        "matched + REPAIR",
        "matched + RESCALE",
    ]


def test_what_cannot_be_asked_of_many_is_refused(elsewhere: None) -> None:
    assert "use rebasin=merge_many or rebasin=c2m3" in refused(
        "rebasin", *DIGITS, "rebasin=weight", "endpoints.seeds=[0,1,2]"
    )
    assert "two or more" in refused("rebasin", *DIGITS, "rebasin=c2m3", "endpoints.seeds=[0]")
    assert "a path has two ends" in refused("interpolate", *DIGITS, "rebasin=merge_many")
