"""Assignments and their dual prices."""

from __future__ import annotations

import numpy as np
import pytest

from modeconn_cli.matching.assignment import assign, dual_prices


def test_prices_do_not_change_what_is_assigned() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 30, 300):
        cost = rng.normal(size=(n, n)) + 3 * np.eye(n)
        best = assign(cost)
        prices = dual_prices(cost, rng.normal(size=n), rounds=5, rows=64)
        assert cost[range(n), assign(cost - prices)].sum() == pytest.approx(cost[range(n), best].sum(), abs=1e-9)
    # Where every row takes its own number and rounds suffice, they prove it: no row would rather have another column.
    cost = rng.normal(size=(40, 40)) + 12 * np.eye(40)
    prices = dual_prices(cost, np.zeros(40), rounds=40)
    assert ((cost - prices).max(1) - np.diag(cost - prices)).max() <= 1e-9
