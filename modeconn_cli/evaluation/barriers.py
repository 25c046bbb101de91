"""Loss barriers along a path, by every convention in use, each with a bootstrap interval over the examples.

With L(t) a metric along the path and t=0, t=1 its ends:

    above_line  max over t of L(t) - [(1-t) L(0) + t L(1)]   Entezari et al. 2022
    above_mean  max over t of L(t) - [L(0) + L(1)] / 2       Frankle et al. 2020, Ainsworth et al. 2023 (Git Re-Basin)
    above_max   max over t of L(t) - max[L(0), L(1)]         Garipov et al. 2018, Draxler et al. 2018
    midpoint    L(1/2) - [L(0) + L(1)] / 2

A maximum of measured values is too high on average, most where the path is flat: the highest of many points is the one
that its noise favours. So t is chosen with one copy of the path and read off another whose noise is independent. From L
with noise of covariance S/n, draw w of that covariance: L + w and L - w are two such copies (the normal case of data
fission, Leiner et al. 2023, arXiv:2112.11079; as halving the examples would give, but averaged over many w and with all
of them). Here w are the bootstrap's own deviations, so that how points of a path move together is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from modeconn_cli.families.base import Array

CONVENTIONS = ("above_line", "above_mean", "above_max", "midpoint")
# A t that is chosen by one noisy copy lies beside a peak as often as on it, so what is read there is a little low; the
# plain maximum is high. A fifth of the way from one to the other covers flat and peaked paths alike, as
# scripts/coverage.py measures.
TOWARDS_MAXIMUM = 0.2
COPIES = 16  # pairs of copies, L + w and L - w, behind each resample's estimate
CHUNK = 1 << 21  # numbers that are worked on at once


def barriers(t: Array, L: Array, surface: bool = False) -> dict[str, Array]:
    """Every convention for metrics L (..., T) at rising t (T,) that start at 0 and end at 1.

    Of a ``surface``, t are the points' shares of the second end, in any order but for the ends, which are first and
    last; it has no midpoint. ``midpoint`` is interpolated linearly where 1/2 is not among t. The maxima include the
    ends, so above_line and above_max are never negative, and above_mean never less than half the ends' difference.

    >>> found = barriers(np.array([0.0, 0.5, 1.0]), np.array([1.0, 4.0, 2.0]))
    >>> {name: float(value) for name, value in found.items()}
    {'above_line': 2.5, 'above_mean': 2.5, 'above_max': 2.0, 'midpoint': 2.5}
    """
    mean = (L[..., 0] + L[..., -1]) / 2
    found = {
        "above_line": over_line(t, L).max(-1),
        "above_mean": L.max(-1) - mean,
        "above_max": L.max(-1) - np.maximum(L[..., 0], L[..., -1]),
    }
    if surface:
        return found
    after = int(np.searchsorted(t, 0.5))
    before = after if t[after] == 0.5 else after - 1
    share = 0.0 if before == after else (0.5 - t[before]) / (t[after] - t[before])
    return {**found, "midpoint": (1 - share) * L[..., before] + share * L[..., after] - mean}


def resampled_means(per_example: Tensor, resamples: int, seed: int = 0) -> Array:
    """Bootstrap means (resamples, T) of per-example values (T, n): examples redrawn with replacement.

    Every t sees the same redrawn examples, so differences along the path keep their correlation.
    """
    values = per_example.double()
    n = values.shape[1]
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, 4_000_000 // n)
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = torch.randint(n, (rows, n), generator=generator)
        drawn += n * torch.arange(rows)[:, None]
        counts = torch.bincount(drawn.view(-1), minlength=rows * n).view(rows, n)
        means.append(counts.double() @ values.T / n)
    return torch.cat(means).numpy()


def barrier_intervals(
    t: Array, L: Array, resampled: Array, confidence: float, surface: bool = False
) -> dict[str, dict[str, float]]:
    """Each convention's barrier on L (T,), from bootstrap means (R, T) of L; t and ``surface`` as for :func:`barriers`.

    value: the plain maximum, as papers report it; corrected: without its bias; se: the standard error of that; low,
    high: an interval for the barrier of the examples' distribution. It holds both. Barriers that include the ends are
    never negative, and neither is their interval.
    """
    noise = resampled - L
    copies = min(COPIES, len(noise) // 2)
    others = resampled[copies:]
    values, estimates = barriers(t, L, surface), _by_copies(t, L[None], noise)
    highest, spread = barriers(t, others, surface), _by_copies(t, others, noise[:copies])
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    out = {}
    for name, share in dict.fromkeys(estimates, TOWARDS_MAXIMUM).items():
        value, corrected = float(values[name]), float(estimates[name][0])
        around = (1 - share) * spread[name] + share * highest[name]
        low, high = (1 - share) * corrected + share * value + np.percentile(around - around.mean(), tails)
        corrected = min(max(corrected, 0.0), value)
        out[name] = _barrier(value, corrected, spread[name], min(max(low, 0.0), corrected), max(high, value))
    if surface:
        return out
    # Nothing is chosen at 1/2.
    middles, value = barriers(t, resampled)["midpoint"], float(values["midpoint"])
    low, high = np.percentile(middles, tails)
    return out | {"midpoint": _barrier(value, value, middles, min(low, value), max(high, value))}


def _barrier(value: float, corrected: float, spread: Array, low: float, high: float) -> dict[str, float]:
    found = {"value": value, "corrected": corrected, "se": spread.std(ddof=1), "low": low, "high": high}
    return {k: float(v) for k, v in found.items()}


def _by_copies(t: Array, L: Array, noise: Array) -> dict[str, Array]:
    """By convention, means (J,) over noise w (I, T) of the barrier of L - w (J, T) where L + w has it, and of L + w
    where L - w has it."""
    w = np.concatenate([noise, -noise])
    rows = max(1, CHUNK // w.size)
    parts = [_at_chosen(t, part, w) for part in np.split(L, range(rows, len(L), rows))]
    return {name: np.concatenate([part[name].mean(1) for part in parts]) for name in parts[0]}


def _at_chosen(t: Array, L: Array, w: Array) -> dict[str, Array]:
    """By convention, (J, I): the barrier of L - w, L (J, T) and w (I, T), at the t and the end that L + w has it at."""

    def highest(L: Array, w: Array) -> Array:
        at = (L[:, None] + w).argmax(-1)
        return np.take_along_axis(L, at, 1) - w[np.arange(len(w)), at]

    starts, ends = (L[:, None, k] - w[:, k] for k in (0, -1))
    start_chosen = L[:, None, 0] + w[:, 0] >= L[:, None, -1] + w[:, -1]
    top = highest(L, w)
    return {
        "above_line": highest(over_line(t, L), over_line(t, w)),
        "above_mean": top - (starts + ends) / 2,
        "above_max": top - np.where(start_chosen, starts, ends),
    }


def over_line(t: Array, L: Array) -> Array:
    """L (..., T) above the line through its ends."""
    over: Array = L - (1 - t) * L[..., :1] - t * L[..., -1:]
    return over


def share_bounds(k: float, n: int, odds: float) -> tuple[float, float]:
    """The least and the largest share of which k of n examples, k perhaps in parts, are what is seen, at these odds
    each: were it beyond, so many, or so few, would be seen less than once in ``1 + odds`` times.

    >>> [round(300 * bound, 2) for bound in share_bounds(0, 300, 19)]
    [0.0, 2.98]
    """
    beyond = 1 / (1 + odds)
    low = float(betaincinv(k, n - k + 1, beyond)) if k > 0 else 0.0
    return low, float(betaincinv(k + 1, n - k, 1 - beyond)) if k < n else 1.0


def by_counting(barrier: Mapping[str, float], odds: float) -> dict[str, float]:
    """``low`` and ``high`` of a widened barrier, each of them right at ``odds`` to one.

    As far as the examples that rise may be too many or too few, or those that fall: one of them at a time.
    """
    n, each = int(barrier["examples"]), barrier["each"]
    (k, least, most), (lost, least_lost, most_lost) = (
        (barrier[name], *(n * share for share in share_bounds(barrier[name], n, odds))) for name in ("rises", "falls")
    )
    return {"low": each * min(least - lost, k - most_lost), "high": each * max(most - lost, k - least_lost)}


def verdict_bounds(barrier: Mapping[str, float], odds: float) -> dict[str, float]:
    """``low`` and ``high`` of a barrier by its standard error, each of them right at ``odds`` to one.

    Of one that was widened by counting (:mod:`modeconn_cli.evaluation.rare`), those of the counts where they are wider;
    of one from before it was corrected, its interval.
    """
    if "corrected" not in barrier:
        return {k: barrier[k] for k in ("low", "high")}
    half = NormalDist().inv_cdf(odds / (1 + odds)) * barrier["se"]
    bounds = {"low": barrier["corrected"] - half, "high": barrier["corrected"] + half}
    if "rises" in barrier:
        counted = by_counting(barrier, odds)
        bounds = {"low": min(bounds["low"], counted["low"]), "high": max(bounds["high"], counted["high"])}
    return bounds


def verdict(barrier: Mapping[str, float], below: float) -> str:
    """ "yes" when the whole interval lies under the threshold, "no" when none of it does, else "undecided"."""
    if barrier["high"] < below:
        return "yes"
    return "no" if barrier["low"] >= below else "undecided"
