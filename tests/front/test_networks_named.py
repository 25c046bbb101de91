"""Networks after a command's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeconn_cli.errors import UserError
from modeconn_cli.front.overrides import naming_networks


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/evaluate/digits-mlp-s0-1-0123456789/v1").mkdir(parents=True)
    (tmp_path / "weights").touch()


@pytest.mark.parametrize(
    "word",
    [
        "a.pt",
        "b.safetensors",
        "weights",
        "RUN#2",
        "evaluate/digits@t=0.3",
        "0123@epoch=2",
        "0123",
        "evaluate/digits-mlp-s0-1",
        "out/evaluate/digits-mlp-s0-1-0123456789/v1",
    ],
)
def test_what_names_a_network_is_one(word: str) -> None:
    assert naming_networks([word, "seed=1"], "out") == [f"endpoints.from=['{word}']", "seed=1"]


@pytest.mark.parametrize(
    "word",
    ["seed=1", "resnet20", "~curve.bends", "endpoints.from=[a@t=1]", "dataset.path=a.pt", "dataset@other=mnist"],
)
def test_what_is_an_override_stays_one(word: str) -> None:
    assert naming_networks([word], "out") == [word]


def test_networks_are_named_in_one_way() -> None:
    assert naming_networks(["a.pt", "seed=1", "b.pt"], "out") == ["endpoints.from=['a.pt','b.pt']", "seed=1"]
    with pytest.raises(UserError, match=r"a\.pt names an endpoint, and endpoints\.seeds=\[0\] names others"):
        naming_networks(["a.pt", "endpoints.seeds=[0]"], "out")
