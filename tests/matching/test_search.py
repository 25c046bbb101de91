"""A search that is stopped goes on to the same end."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import (
    State,
    tiny,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_all, tree_map

from modeconn_cli.matching.many import cycle_consistent, merge_many
from modeconn_cli.matching.search import Matching
from modeconn_cli.matching.sinkhorn import sinkhorn_matching
from modeconn_cli.matching.straight_through import straight_through
from modeconn_cli.matching.weight import weight_matching


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
