"""Further starts begin elsewhere than the first, and find more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from symmetric_networks import tiny
from torch import Tensor

from modeconn_cli.matching import many
from modeconn_cli.matching import weight as weight_module
from modeconn_cli.matching.many import cycle_consistent, merge_many
from modeconn_cli.matching.problem import WeightProblem


class Seen:
    """Keeps every start that was found, and begins anew."""

    due = False

    def __init__(self) -> None:
        self.found: list[Any] = []

    def begun(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        self.found = list(state["found"])


@pytest.mark.parametrize(("method", "plain"), [(merge_many, 1), (cycle_consistent, 2)])
def test_further_starts_of_many_begin_at_other_networks(method: Any, plain: int) -> None:
    symmetry, states = tiny(5, 3)
    seen = Seen()
    permutations, objective = method(symmetry, states, list(states[0]), restarts=4, memory=seen)
    begun = [objective[0] for _, objective in seen.found]
    assert len(begun) == 5
    assert len({round(b, 6) for b in begun[plain - 1 :]}) == len(begun) - plain + 1
    assert objective[-1] == max(o[-1] for _, o in seen.found)
    again, _ = method(symmetry, states, list(states[0]), restarts=4)
    assert all(torch.equal(p, q) for a, b in zip(permutations, again, strict=True) for p, q in zip(a, b, strict=True))
    other = Seen()
    method(symmetry, states, list(states[0]), restarts=4, seed=1, memory=other)
    assert begun[plain:] != [objective[0] for _, objective in other.found][plain:]


def test_what_begins_at_the_best_so_far_is_there_but_for_one_network() -> None:
    rng = np.random.default_rng(0)
    best = [[torch.from_numpy(rng.permutation(n)) for n in (9, 5)] for _ in range(3)]
    taken: list[int] = []
    drawn = set()
    for _ in range(40):
        begun = many._one_taken_out(best, rng)
        assert all(torch.allclose(m.sum(d), torch.ones(len(m))) for each in begun for m in each for d in (0, 1))
        at = [
            [torch.equal(m, torch.eye(len(m))[p]) for m, p in zip(*x, strict=True)]
            for x in zip(begun, best, strict=True)
        ]
        (away,) = [i for i, each in enumerate(at) if each != [True, True]]
        assert at[away] == [False, False]
        for m in begun[away]:
            assert float(m.min()) == pytest.approx(0.95 / len(m))
            assert float(m.max()) == pytest.approx(0.05 + 0.95 / len(m))
        taken.append(away)
        drawn.add(str([m.tolist() for m in begun[away]]))
    assert sorted(set(taken)) == [0, 1, 2]
    assert len(drawn) == 40


def test_further_starts_of_weight_matching_shuffle_most_groups() -> None:
    symmetry, (a, b) = tiny(0, 2)
    shuffles: list[tuple[int, list[int]]] = []

    class Recording(WeightProblem):
        def move(self, group: int, relative: Tensor) -> None:
            shuffles.append((group, relative.tolist()))
            super().move(group, relative)

    made: list[Sequence[Any]] = []
    for seed in range(6):
        shuffles.clear()
        weight_module._perturb(Recording(symmetry, a, b, list(a)), np.random.default_rng(seed))
        first = dict(reversed(shuffles))  # of each group its first move, before it is given its best
        assert len(first) >= 2
        made.append(sorted(first.items()))
    assert sum(any(p != sorted(p) for _, p in each) for each in made) >= 5
    assert len({str(each) for each in made}) >= 5
