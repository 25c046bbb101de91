"""What may act on an axis, and what is refused."""

from __future__ import annotations

import itertools

import pytest

from modeconn_cli.symmetry.axes import Action, Leaf, fixed
from modeconn_cli.symmetry.equations import (
    concatenation,
    leaves,
    limit,
    unify,
)
from modeconn_cli.symmetry.groups import symmetry_of


def test_what_may_act_on_one_index_set_is_the_least_that_any_of_its_axes_allows() -> None:
    for one, two in itertools.product(Action, Action):
        a, b = Leaf(6, one), Leaf(6, two)
        unify(a, b)
        assert [leaf.action for leaf in leaves(a)] == [min(one, two)]
    whole, parts = Leaf(6, Action.signed), [Leaf(2, Action.invertible), Leaf(4)]
    unify(whole, concatenation([*parts]))
    assert [leaf.action for leaf in leaves(whole)] == [Action.signed, Action.permutation]
    limit(whole, Action.permutation)
    assert [leaf.action for leaf in leaves(whole)] == [Action.permutation] * 2


@pytest.mark.parametrize("action", Action)
def test_only_permutations_are_acted_by_and_more_is_refused(action: Action) -> None:
    axes = {"w": [Leaf(3, action), fixed(2)]}
    if action > Action.permutation:
        with pytest.raises(ValueError, match=rf"w\[0\] has the action {action.name}"):
            symmetry_of({**axes})
    else:
        assert [g.action for g in symmetry_of({**axes}).groups] == [action] * (action is Action.permutation)
