"""Cyclic rates beside the papers' equations, written out here, and which of their steps a network is kept after."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeconn_cli.errors import UserError
from modeconn_cli.training.cycles import FGE, continued
from modeconn_cli.training.recipe import Endpoints, Optimizer, Schedule

BUDGET = Endpoints(epochs=200)


def garipov(i: int, c: int, a1: Fraction, a2: Fraction) -> Fraction:
    """The equation of Garipov et al. 2018, section 4, in exact numbers: t(i) = (mod(i - 1, c) + 1) / c."""
    t = Fraction((i - 1) % c + 1, c)
    return (1 - 2 * t) * a1 + 2 * t * a2 if t <= Fraction(1, 2) else (2 - 2 * t) * a2 + (2 * t - 1) * a1


@given(half=st.integers(1, 12), steps=st.integers(1, 30), data=st.data())
def test_the_triangular_rate_is_the_papers_at_every_step(half: int, steps: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(1, 100))
    high = data.draw(st.integers(low, 1000))
    options = FGE(cycle=2 * half, lr_max=high / 1000, lr_min=low / 1000, epochs=4 * half)
    found = options.cycles("fge", BUDGET, steps, True)
    c = 2 * half * steps
    wanted = [garipov(i, c, Fraction(high, 1000), Fraction(low, 1000)) for i in range(1, 2 * c + 1)]
    assert [found.rate(i) for i in range(1, 2 * c + 1)] == pytest.approx([float(w) for w in wanted], rel=1e-12)
    # Networks are kept where t is one half, and there the rate is lowest.
    assert [*found.kept] == [i for i in range(1, 2 * c + 1) if Fraction((i - 1) % c + 1, c) == Fraction(1, 2)]
    assert all(found.rate(i) == pytest.approx(low / 1000) == pytest.approx(float(min(wanted))) for i in found.kept)


def test_ends_and_middle_of_a_cycle() -> None:
    rate = FGE(cycle=4, lr_max=0.05, lr_min=0.01).cycles("fge", BUDGET, 5, True).rate
    assert rate(10) == pytest.approx(0.01)
    assert rate(20) == pytest.approx(0.05)
    assert rate(21) == rate(1) == pytest.approx(0.05 - 0.04 / 10)


def test_the_training_before_and_after_share_the_budget() -> None:
    found = FGE().cycles("fge", BUDGET, 5, True)
    assert (found.before, found.training.epochs, len(found.kept)) == (160, 40, 20)
    assert FGE(epochs=12).cycles("fge", BUDGET, 5, False).before == 0


def test_the_recipe_goes_on_without_its_schedule() -> None:
    recipe = continued(replace(BUDGET, optimizer=Optimizer.adamw, batch_size=7, warmup_epochs=3.0), 12, 0.3)
    assert (recipe.optimizer, recipe.batch_size, recipe.epochs, recipe.lr) == (Optimizer.adamw, 7, 12, 0.3)
    assert (recipe.schedule, recipe.warmup_epochs) == (Schedule.constant, 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FGE(cycle=3), "fge.cycle=3 is odd"),
        (FGE(lr_max=0.01, lr_min=0.05), "fge.lr_max=0.01 is below fge.lr_min=0.05"),
        (FGE(cycle=60), "fge.cycle=60 is longer than the 40 epochs"),
        (FGE(cycle=30), "keep one network"),
        (FGE(epochs=1), "longer than the 1 epoch that"),
        (FGE(start=0.001), "leaves nothing"),
    ],
)
def test_what_cannot_be_is_refused(options: FGE, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.cycles("fge", BUDGET, 5, True)


def test_the_closed_form_is_no_copy() -> None:
    """Half-way down the first half of a cycle the rate is the mean, whatever the formula's letters."""
    rate = FGE(cycle=2, lr_max=3.0, lr_min=1.0, epochs=4).cycles("fge", BUDGET, 4, True).rate
    assert [rate(i) for i in range(1, 9)] == pytest.approx([2.5, 2, 1.5, 1, 1.5, 2, 2.5, 3])
    assert math.isclose(sum(rate(i) for i in range(1, 9)) / 8, 2)
