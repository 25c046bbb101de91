"""Cyclic rates beside the papers' equations, written out here, and which of their steps a network is kept after."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeconn_cli.errors import UserError
from modeconn_cli.training.cycles import FGE, SWA, SWAG, Snapshot, continued
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
    found = options.plan("fge", BUDGET, steps, True)
    c = 2 * half * steps
    wanted = [garipov(i, c, Fraction(high, 1000), Fraction(low, 1000)) for i in range(1, 2 * c + 1)]
    assert [found.rate(i) for i in range(1, 2 * c + 1)] == pytest.approx([float(w) for w in wanted], rel=1e-12)
    # Networks are kept where t is one half, and there the rate is lowest.
    assert [*found.kept] == [i for i in range(1, 2 * c + 1) if Fraction((i - 1) % c + 1, c) == Fraction(1, 2)]
    assert all(found.rate(i) == pytest.approx(low / 1000) == pytest.approx(float(min(wanted))) for i in found.kept)


def test_ends_and_middle_of_a_cycle() -> None:
    rate = FGE(cycle=4, lr_max=0.05, lr_min=0.01).plan("fge", BUDGET, 5, True).rate
    assert rate(10) == pytest.approx(0.01)
    assert rate(20) == pytest.approx(0.05)
    assert rate(21) == rate(1) == pytest.approx(0.05 - 0.04 / 10)


def test_the_training_before_and_after_share_the_budget() -> None:
    found = FGE().plan("fge", BUDGET, 5, True)
    assert (found.before, found.training.epochs, len(found.kept)) == (160, 40, 20)
    assert FGE(epochs=12).plan("fge", BUDGET, 5, False).before == 0


def test_the_recipe_goes_on_without_its_schedule() -> None:
    recipe = continued(replace(BUDGET, optimizer=Optimizer.adamw, batch_size=7, warmup_epochs=3.0), 12, 0.3)
    assert (recipe.optimizer, recipe.batch_size, recipe.epochs, recipe.lr) == (Optimizer.adamw, 7, 12, 0.3)
    assert (recipe.schedule, recipe.warmup_epochs) == (Schedule.constant, 0.0)


def huang(t: int, T: int, M: int, a0: float) -> float:
    """Equation 2 of Huang et al. 2017."""
    c = math.ceil(T / M)
    return a0 / 2 * (math.cos(math.pi * ((t - 1) % c) / c) + 1)


@given(epochs=st.integers(4, 12), steps=st.integers(2, 30), members=st.integers(2, 4))
def test_the_restarted_rate_is_the_papers_at_every_step(epochs: int, steps: int, members: int) -> None:
    found = Snapshot(members=members, lr=0.2).plan("snapshot", Endpoints(epochs=epochs), steps, False)
    T = epochs * steps
    assert [found.rate(t) for t in range(1, T + 1)] == pytest.approx(
        [huang(t, T, members, 0.2) for t in range(1, T + 1)], rel=1e-12
    )
    # A network is kept before every restart, and at the end.
    restarts = [t for t in range(1, T) if found.rate(t + 1) > found.rate(t)]
    assert [*found.kept] == [*restarts, T]
    assert len(found.kept) == members


def test_snapshots_begin_with_the_endpoints_rate_unless_told() -> None:
    assert Snapshot().plan("snapshot", Endpoints(lr=0.3), 5, False).rate(1) == pytest.approx(0.3)


@given(cycle=st.integers(1, 6), steps=st.integers(1, 20))
def test_the_falling_rate_is_the_papers_at_every_step(cycle: int, steps: int) -> None:
    """Izmailov et al. 2018, section 3.1: (1 - t(i)) a1 + t(i) a2, t(i) = (mod(i - 1, c) + 1) / c."""
    found = SWA(cycle=cycle, lr=0.05, lr_min=0.01, epochs=3 * cycle).plan("swa", BUDGET, steps, True)
    c = cycle * steps
    for i in range(1, 3 * c + 1):
        t = Fraction((i - 1) % c + 1, c)
        assert found.rate(i) == pytest.approx(float((1 - t) * Fraction(5, 100) + t * Fraction(1, 100)), rel=1e-12)
    assert found.kept == (c, 2 * c, 3 * c)


def test_without_a_lowest_rate_it_is_constant() -> None:
    found = SWA(lr=0.02).plan("swa", BUDGET, 7, True)
    assert {round(found.rate(i), 15) for i in range(1, 100)} == {0.02}
    assert (found.before, len(found.kept)) == (150, 50)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Snapshot(members=1001), "1000 steps do not divide into so many cycles"),
        (Snapshot(members=999), "do not divide"),
        (SWA(lr=0.01, lr_min=0.05), "swa.lr=0.01 is below swa.lr_min=0.05"),
        (SWA(cycle=51), "swa.cycle=51 is longer than the 50 epochs"),
        (SWA(epochs=1), "whose average is itself"),
        (SWA(every_step=True, keep=True), "every step"),
        (SWAG(rank=60), "at most 50"),
        (FGE(cycle=3), "fge.cycle=3 is odd"),
        (FGE(lr_max=0.01, lr_min=0.05), "fge.lr_max=0.01 is below fge.lr_min=0.05"),
        (FGE(cycle=60), "fge.cycle=60 is longer than the 40 epochs"),
        (FGE(cycle=30), "keep one network"),
        (FGE(epochs=1), "longer than the 1 epoch that"),
        (FGE(start=0.001), "leaves nothing"),
    ],
)
def test_what_cannot_be_is_refused(options: FGE | Snapshot | SWA | SWAG, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.plan(type(options).__name__.lower(), BUDGET, 5, True)


def test_the_closed_form_is_no_copy() -> None:
    """Half-way down the first half of a cycle the rate is the mean, whatever the formula's letters."""
    rate = FGE(cycle=2, lr_max=3.0, lr_min=1.0, epochs=4).plan("fge", BUDGET, 4, True).rate
    assert [rate(i) for i in range(1, 9)] == pytest.approx([2.5, 2, 1.5, 1, 1.5, 2, 2.5, 3])
    assert math.isclose(sum(rate(i) for i in range(1, 9)) / 8, 2)
