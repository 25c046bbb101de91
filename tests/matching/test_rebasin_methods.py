"""Permutations by gradient and of many networks, against brute force and explicit gradients."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cli_helpers import DIGITS, folders, no_pictures, ok, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import tree_all, tree_map

from modeconn_cli.matching import learned
from modeconn_cli.matching.learned import mix, sinkhorn, sinkhorn_matching, straight_through
from modeconn_cli.matching.many import composed, cycle_consistent, cycle_error, merge_many, pairs_of, undone
from modeconn_cli.matching.weight import Matching, weight_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry

State = dict[str, Tensor]


def tiny(case: int, n: int = 2) -> tuple[Symmetry, list[State]]:
    torch.manual_seed(case)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(n)]
    return trace(nets[0], torch.randn(2, 3)), [dict(net.state_dict()) for net in nets]


def shuffled(symmetry: Symmetry, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(g.size, generator=generator) for g in symmetry.groups]


def inner(a: State, b: State) -> float:
    return float(sum((a[n].double() * b[n].double()).sum() for n in a))


# ---------------------------------------------------------------------------------------------------- Sinkhorn


@given(st.integers(1, 7), st.integers(0, 10**6), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_the_limit_is_doubly_stochastic_and_its_implicit_gradient_that_of_every_round(
    n: int, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (size * torch.randn(n, n, dtype=torch.float64, generator=generator)).requires_grad_()
    weight = torch.randn(n, n, dtype=torch.float64, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "MARGIN", 1e-14)
        patch.setattr(learned, "MOST_ROUNDS", 20000)
        columns = torch.randn(1, n, dtype=torch.float64, generator=generator)  # whatever one begins with
        p = sinkhorn(x, columns=columns)
        (implicit,) = torch.autograd.grad((p * weight).sum(), x)
    explicit = sinkhorn(x, unrolled=2000)
    (expected,) = torch.autograd.grad((explicit * weight).sum(), x)
    assert torch.allclose(p.sum(0), torch.ones(n, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(p.sum(1), torch.ones(n, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(p, explicit, atol=1e-7)
    assert torch.allclose(implicit, expected, atol=1e-6)


@pytest.mark.parametrize("unrolled", [None, 20])
def test_trained_matrices_find_a_planted_permutation(unrolled: int | None) -> None:
    torch.manual_seed(0)
    module = models.build("mlp", (16,), 4, width=12, depth=2)
    symmetry = trace(module, torch.randn(2, 16))
    a = {k: v.detach().clone() for k, v in module.named_parameters()}
    b = symmetry.permute(a, shuffled(symmetry, 1))
    found = sinkhorn_matching(symmetry, a, b, None, lambda s: -inner(a, s), steps=100, lr=0.1, unrolled=unrolled)
    back = symmetry.permute(b, found.permutations)
    assert all(torch.equal(back[k], a[k]) for k in a)
    assert found.measure == "midpoint loss"


def test_a_mixture_by_permutation_matrices_permutes() -> None:
    torch.manual_seed(0)
    module = models.build("vit", (3, 8, 8), 4, dim=12, heads=3, depth=1)
    symmetry = trace(module, torch.randn(2, 3, 8, 8))
    state = {k: v.detach().double() for k, v in module.named_parameters()}
    permutations = shuffled(symmetry, 3)
    matrices = {
        g.leaf: torch.eye(g.size, dtype=torch.float64)[p] for g, p in zip(symmetry.groups, permutations, strict=True)
    }
    by_matrix, by_index = mix(symmetry, state, matrices), symmetry.permute(state, permutations)
    assert all(torch.equal(by_matrix[k], by_index[k]) for k in state)


# ------------------------------------------------------------------------------------------------- stopped


class Stopped(Exception):  # noqa: N818
    """What a signal raises."""


class Kept:
    """A memory as a run directory has it, through torch.save."""

    due = True

    def __init__(self) -> None:
        self.file: bytes | None = None

    def begun(self) -> dict[str, Any] | None:
        return None if self.file is None else torch.load(io.BytesIO(self.file), weights_only=True)

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.file = buffer.getvalue()


@pytest.mark.parametrize("method", ["weight", "straight_through", "sinkhorn", "merge_many", "cycle_consistent"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_search_that_is_stopped_goes_on_to_the_same_end(method: str, share: float) -> None:
    symmetry, (a, b, c) = tiny(3, 3)
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def loss(state: State, step: int) -> Tensor:
        some = torch.randint(40, (8,), generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(torch.func.functional_call(module, state, (x[some],)), y[some])

    def check(state: State) -> float:
        return float(F.cross_entropy(torch.func.functional_call(module, state, (x,)), y))

    steps = {"steps": 40, "lr": 0.05, "check_every": 7}
    search: Callable[..., Any] = {
        "weight": lambda **k: weight_matching(symmetry, a, b, list(a), restarts=12, **k),
        "straight_through": lambda **k: straight_through(symmetry, a, b, loss, check, **steps, **k),
        "sinkhorn": lambda **k: sinkhorn_matching(symmetry, a, b, loss, check, everywhere=True, **steps, **k),
        "merge_many": lambda **k: merge_many(symmetry, [a, b, c], list(a), restarts=9, **k),
        "cycle_consistent": lambda **k: cycle_consistent(symmetry, [a, b, c], list(a), restarts=4, **k),
    }[method]
    calls, last = 0, -1

    def watch(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise Stopped

    whole, every = search(watch=watch), calls
    calls, last, memory = 0, int(share * every), Kept()
    with pytest.raises(Stopped):
        search(watch=watch, memory=memory)
    calls, last = 0, -1
    again = search(watch=watch, memory=memory)
    assert calls < every  # it did not begin again
    found = [vars(r) if isinstance(r, Matching) else r for r in (whole, again)]
    assert tree_all(bool, tree_map(_same, *found))


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


# -------------------------------------------------------------------------------------------- straight through


def test_training_lowers_the_midpoint_below_what_weights_alone_find() -> None:
    x, y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = models.build("mlp", (8,), 4, width=16, depth=2)
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
        states.append({k: v.detach().clone() for k, v in module.named_parameters()})
    symmetry = trace(module, x[:2])

    def loss(parameters: learned.Parameters, step: int = 0) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(module, dict(parameters), (x,)), y)

    def check(parameters: learned.Parameters) -> float:
        return float(loss(parameters))

    a, b = states
    found = straight_through(symmetry, a, b, loss, check, steps=60, lr=1e-2, check_every=5)
    moved = symmetry.permute(b, found.permutations)
    assert check({n: (a[n] + moved[n]) / 2 for n in a}) == pytest.approx(min(found.objective))
    assert min(found.objective) < 0.98 * found.objective[0]  # which is weight matching's
    soft = sinkhorn_matching(symmetry, a, b, loss, check, steps=150, lr=0.1)
    assert min(soft.objective) < check({n: (a[n] + b[n]) / 2 for n in a})


# ------------------------------------------------------------------------------------------------ many networks


@pytest.mark.parametrize("method", [merge_many, cycle_consistent])
def test_many_are_matched_as_brute_force_would(method: type(merge_many)) -> None:  # type: ignore[valid-type]
    every = [torch.tensor(p) for p in itertools.permutations(range(4))]
    optimal, cases = 0, 6
    for case in range(cases):
        symmetry, (a, b) = tiny(case)
        best = max(inner(a, symmetry.permute(b, [p, q])) for p in every for q in every)
        permutations, objective = method(symmetry, [a, b], list(a), restarts=6)
        assert all(torch.equal(p, torch.arange(4)) for p in permutations[0])
        reached = inner(a, symmetry.permute(b, permutations[1]))
        assert reached == pytest.approx(objective[-1], abs=1e-4)
        optimal += reached > best - 1e-5
    assert optimal >= 0.8 * cases


@pytest.mark.parametrize("method", [merge_many, cycle_consistent])
@pytest.mark.parametrize("family", ["mlp", "vit"])
def test_planted_permutations_of_many_are_undone(method: type(merge_many), family: str) -> None:  # type: ignore[valid-type]
    torch.manual_seed(0)
    options: dict[str, object] = {"mlp": {"width": 24}, "vit": {"dim": 12, "heads": 2, "depth": 1}}[family]
    module = models.build(family, (3, 8, 8), 4, **options)
    symmetry = trace(module, torch.randn(2, 3, 8, 8))
    state = {k: v.detach() + 0.05 * torch.rand_like(v) for k, v in module.named_parameters()}
    states = [state, *(symmetry.permute(state, shuffled(symmetry, seed)) for seed in (1, 2, 3))]
    permutations, objective = method(symmetry, states, list(state), restarts=1)
    for s, p in zip(states, permutations, strict=True):
        back = symmetry.permute(s, p)
        assert all(torch.equal(back[k], state[k]) for k in state)
    assert objective[-1] == pytest.approx(6 * inner(state, state), rel=1e-5)
    assert cycle_error(symmetry, pairs_of(symmetry, permutations), 4) == 0


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_permutations_compose_and_are_undone_as_their_actions_are(seed: int) -> None:
    symmetry, state = _vit()
    first, second = shuffled(symmetry, seed), shuffled(symmetry, seed + 1)
    both = symmetry.permute(state, composed(symmetry, first, second))
    one_by_one = symmetry.permute(symmetry.permute(state, first), second)
    assert all(torch.equal(both[k], one_by_one[k]) for k in state)
    back = symmetry.permute(one_by_one, undone(symmetry, symmetry.identity(), second))
    again = symmetry.permute(state, first)
    assert all(torch.equal(back[k], again[k]) for k in state)


_made: list[tuple[Symmetry, State]] = []


def _vit() -> tuple[Symmetry, State]:
    if not _made:
        torch.manual_seed(0)
        module = models.build("vit", (3, 8, 8), 4, dim=12, heads=3, depth=1)
        _made.append((trace(module, torch.randn(2, 3, 8, 8)), {k: v.detach() for k, v in module.named_parameters()}))
    return _made[0]


def test_pairs_matched_apart_need_not_agree() -> None:
    symmetry, _ = tiny(0)
    turn = [torch.tensor([1, 2, 3, 0]), torch.arange(4)]
    same = symmetry.identity()
    assert cycle_error(symmetry, {(0, 1): turn, (1, 2): same, (0, 2): same}, 3) == 0.5
    assert cycle_error(symmetry, {(0, 1): turn, (1, 2): same, (0, 2): turn}, 3) == 0


# ------------------------------------------------------------------------------------------------------- stages


@pytest.fixture
def elsewhere(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    no_pictures(monkeypatch)


@pytest.mark.parametrize("method", ["straight_through", "sinkhorn"])
def test_trained_methods_as_a_stage(elsewhere: None, method: str) -> None:
    answer = ok("rebasin", *DIGITS, f"rebasin={method}", "rebasin.steps=25", "--json")
    summary = json.loads((folders(answer)["rebasin"] / "summary.json").read_text())
    assert summary["objective_is"] == "midpoint loss"
    assert summary["certificate"]["difference"] < 1e-12
    segment, aligned = (
        next(b["midpoint"]["value"] for b in answer.json["barriers"] if (b["path"], b["metric"]) == (p, "train_loss"))
        for p in ("segment", "aligned segment")
    )
    assert aligned < segment
    again = ok("rebasin", *DIGITS, f"rebasin={method}", "rebasin.steps=25", "rebasin.restarts=7", "--json")
    assert {s["status"] for s in again.json["stages"]} == {"cached"}  # restarts are no part of these methods


@pytest.mark.parametrize("method", ["merge_many", "c2m3"])
def test_three_networks_are_merged(elsewhere: None, method: str) -> None:
    wide = [
        "architecture.width=64",
        "endpoints.epochs=15",
        *[o for o in DIGITS if "width" not in o and "epochs" not in o],
    ]
    request = ["rebasin", *wide, "dataset.train_size=600", f"rebasin={method}", "endpoints.seeds=[0,1,2]"]
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
