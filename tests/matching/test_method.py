"""Methods as choices: what each can be told, what identifies it, and a function of one's own as one."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from cli_helpers import DIGITS, compose, folders, no_pictures, ok, refused
from torch import nn

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.matching.given import Given
from modeconn_cli.matching.options import Method, Pairwise, Together, methods
from modeconn_cli.symmetry.graph import trace


def test_methods_are_told_apart_by_what_they_permute() -> None:
    assert methods(Pairwise) == ["weight", "activation", "straight_through", "sinkhorn", "custom"]
    assert methods(Together) == ["merge_many", "c2m3"]


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["rebasin=weight"], {}),
        (["rebasin.method=weight", "rebasin.restarts=3", "rebasin.temperature=2"], {"restarts": 3}),
        (["rebasin=activation", "rebasin.similarity=least_squares", "rebasin.seed=1"], {"similarity": "least_squares"}),
        (
            ["rebasin=sinkhorn", "rebasin.between=l2", "rebasin.sweeps=7", "rebasin.lr=0.1"],
            {"between": "l2", "lr": 0.1},
        ),
        (
            ["rebasin=c2m3", "rebasin.steps=7", "rebasin.seed=2"],
            {"seed": 2, "later_starts": "the best, one network anew"},
        ),
    ],
)
def test_a_method_is_identified_by_its_own_options(words: list[str], own: dict[str, object]) -> None:
    method = compose(*words).rebasin
    assert isinstance(method, Method)
    assert method.own() == own
    given = {w.partition(".")[2].partition("=")[0] for w in words if "." in w} - {"method"}
    assert {*method.aside} == given - {f.name for f in fields(method)}


def test_options_set_for_another_method_count_where_it_is_chosen_after_all() -> None:
    none = compose("rebasin.restarts=3", "rebasin.temperature=2").rebasin
    weight = settings.rechosen(none, "rebasin", "weight")
    assert (weight.method, weight.restarts, weight.aside) == ("weight", 3, {"temperature": 2.0})
    sinkhorn = settings.rechosen(weight, "rebasin", "sinkhorn")
    assert (sinkhorn.method, sinkhorn.temperature, sinkhorn.aside) == ("sinkhorn", 2.0, {"restarts": 3})


def two_layers() -> Given:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    states = [{k: torch.randn_like(v) for k, v in module.state_dict().items()} for _ in range(2)]
    none: dict[str, None] = dict.fromkeys(("task", "host", "device", "network"))
    return Given(trace(module, torch.randn(2, 3)), module, 2, states, **none)  # type: ignore[arg-type]


def test_what_was_found_is_told_by_the_inner_product() -> None:
    given = two_layers()
    a, b = given.states
    order = [2, 0, 3, 1]
    found = given.matching([order])  # type: ignore[list-item]
    assert found.before == pytest.approx(sum(float((a[k].double() * b[k].double()).sum()) for k in a))
    moved = {
        "0.weight": b["0.weight"][order],
        "0.bias": b["0.bias"][order],
        "2.weight": b["2.weight"][:, order],
        "2.bias": b["2.bias"],
    }
    assert found.after == pytest.approx(sum(float((a[k].double() * moved[k].double()).sum()) for k in a))


@pytest.mark.parametrize("wrong", [[], [[0, 1, 2]], [[0, 1, 2, 2]], [[1, 2, 3, 4]], [[0, 1, 2, 3], [0]]])
def test_what_is_no_permutation_of_the_groups_is_refused(wrong: list[list[int]]) -> None:
    with pytest.raises(UserError, match="permutation"):
        two_layers().matching(wrong)  # type: ignore[arg-type]


BACKWARDS = """
def backwards(given, times=1):
    order = [range(g.size) for g in given.symmetry.groups]
    return [[*reversed(o)] if times % 2 else [*o] for o in order]
"""


def test_a_function_of_ones_own_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    (tmp_path / "mine.py").write_text(BACKWARDS)
    custom = ["rebasin", *DIGITS, "rebasin=custom", "rebasin.target=mine.py:backwards"]
    answer = ok(*custom, "--json")
    summary = json.loads((folders(answer)["rebasin"] / "summary.json").read_text())
    assert [g["moved"] for g in summary["groups"]] == [g["size"] // 2 * 2 for g in summary["groups"]]
    assert summary["certificate"]["difference"] < 1e-12
    again = ok(*custom, "rebasin.kwargs.times=2", "--json")
    assert folders(again)["rebasin"] != folders(answer)["rebasin"]
    assert "nowhere.py" in refused(*custom, "rebasin.target=nowhere.py:backwards")


def test_what_a_function_of_ones_own_gives_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("def short(given):\n    return [[0, 1]]\n\n\ndef none(given):\n    pass\n")
    for name in ("short", "none"):
        options = compose("rebasin=custom", f"rebasin.target=wrong.py:{name}").rebasin
        assert isinstance(options, Pairwise)
        with pytest.raises(UserError, match=f"wrong.py:{name}"):
            options.match(two_layers())
