"""Intervals of counted columns, errors say, where there is next to nothing to resample.

A bootstrap redraws what was seen. Where no example errs at any point of a path, or every example changes alike, all its
resamples are the same, and an interval of them has no width however few the examples are; where a handful change, it is
too narrow. What the examples do tell is how often something that was seen k times of n can happen: the bounds of
Clopper and Pearson (1934), which for none of n at 95% is about 3/n.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from modeconn_cli.evaluation.barriers import barriers, by_counting, over_line
from modeconn_cli.families.base import Array

FEW = 10  # examples unlike the rest are too few to resample
LEAST = 20  # examples of a split that a verdict takes: of fewer, resamples of any column say little


def is_counted(values: Tensor) -> bool:
    """Whether scores are all 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def are_few(counts: Array) -> bool:
    """Whether of examples of several kinds, (P,) of each, those not of the commonest are too few to resample."""
    return bool(counts.sum() - counts.max() < FEW)


def with_counts(
    found: Mapping[str, dict[str, float]],
    t: Array,
    values: Tensor,
    scale: float,
    confidence: float,
    surface: bool = False,
) -> dict[str, dict[str, float]]:
    """Barriers' intervals, widened by counting where fewer than FEW examples change along the path unlike the rest.

    Args:
        found: by convention, as :func:`~modeconn_cli.evaluation.barriers.barrier_intervals` gives it.
        t: (T,) as there; values: (T, n) counted scores; scale: of a score of 1 in the column's unit.

    An example rises at t by what its own score lies there above its ends, as the convention takes them. A widened
    barrier has ``rises`` and ``falls``, sums over examples at the t where most rise, and ``each``, what one of
    its ``examples`` weighs, for :func:`~modeconn_cli.evaluation.barriers.by_counting`.
    """
    rows, counts = _alike(values)
    still = (rows == rows[:, :1]).all(1)  # always right or always wrong, which a barrier cannot tell apart
    if not are_few(np.append(counts[~still], counts[still].sum())):
        return dict(found)
    starts, ends = rows[:, :1], rows[:, -1:]
    higher = starts if counts @ (starts - ends) >= 0 else ends
    above = {
        "above_line": over_line(t, rows),
        "above_mean": rows - (starts + ends) / 2,
        "above_max": rows - higher,
    }
    if not surface:
        above["midpoint"] = barriers(t, rows)["midpoint"][:, None]
    return {name: widened(found[name], above[name], counts, scale, confidence, name != "midpoint") for name in found}


def widened(
    interval: Mapping[str, float], above: Array, counts: Array, scale: float, confidence: float, cut: bool = False
) -> dict[str, float]:
    """One interval, by how far (P, T) examples of P kinds, ``counts`` (P,) of each, rise: at the t where that is most.

    cut: it is of a maximum, which is never negative.
    """
    n = int(counts.sum())
    rises, falls = (counts @ np.maximum(sign * above, 0) for sign in (1, -1))
    at = int(np.lexsort((rises, rises - falls))[-1])
    k = float(rises[at])
    wide = {**interval, "rises": k, "falls": float(falls[at]), "examples": n, "each": scale / n}
    # Where none or all rise, a maximum's bound has no other side to leave half of what is not covered to.
    sides = 1 if cut and k in (0, n) else 2
    bounds = by_counting(wide, sides / (1 - confidence) - 1)
    low = max(bounds["low"], 0.0) if cut else bounds["low"]
    wide |= {"low": min(low, interval["low"]), "high": max(bounds["high"], interval["high"])}
    if "se" in interval:
        spread = np.sqrt((k + 0.5) * (n - k + 0.5) / (n + 2)) / (n + 1)  # of a share, by Jeffreys' posterior
        wide["se"] = max(interval["se"], float(spread) * scale)
    return wide


def _alike(values: Tensor) -> tuple[Array, Array]:
    """The kinds of examples that (T, n) scores of 0 and 1 tell apart, (P, T), and how many there are of each (P,)."""
    wrong = values.numpy().T != 0
    _, first, counts = np.unique(np.packbits(wrong, axis=1), axis=0, return_index=True, return_counts=True)
    return wrong[first].astype(np.float64), counts.astype(np.float64)
