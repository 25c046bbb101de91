"""The linear assignment problem, and dual prices that make it quick where little has changed."""

from __future__ import annotations

import numpy as np


def assign(gain: np.ndarray) -> np.ndarray:
    """For each row of (n, n) the column of the assignment with the largest total.

    >>> assign(np.array([[1.0, 3.0], [2.0, 1.0]])).tolist()
    [1, 0]
    """
    return assign_cheapest(-gain)


def assign_cheapest(cost: np.ndarray) -> np.ndarray:
    """For each row of (n, n) the column of the assignment with the smallest total."""
    from scipy.optimize import linear_sum_assignment

    columns: np.ndarray = linear_sum_assignment(cost)[1]
    return columns


def dual_prices(gain: np.ndarray, prices: np.ndarray, rounds: int = 3, rows: int = 256) -> np.ndarray:
    """Prices (n,) of columns, near to those at which every row would take the column of its own number.

    They are the dual variables of the assignment problem, which taking them off its columns does not change; the rounds
    are Bellman-Ford's, from other prices on. Where the diagonal is nearly the best assignment they save most of the
    time that one takes.

    Args:
        gain: (n, n) what each row gains by each column.
        prices: (n,) to begin with.
        rows: how many are looked at in one go, for which memory is taken.
    """
    own = np.diag(gain)
    for _ in range(rounds):
        ahead = prices - own
        parts = [(gain[k : k + rows] + ahead[k : k + rows, None]).max(0) for k in range(0, len(gain), rows)]
        prices = np.max(parts, axis=0)
    found: np.ndarray = prices - prices.mean()
    return found
