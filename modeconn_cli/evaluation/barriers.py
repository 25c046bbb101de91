"""Loss barriers along a path, by every convention in use, each with a bootstrap interval over the examples.

With L(t) a metric along the path and t=0, t=1 its ends:

    above_line  max over t of L(t) - [(1-t) L(0) + t L(1)]   Entezari et al. 2022
    above_mean  max over t of L(t) - [L(0) + L(1)] / 2       Frankle et al. 2020, Ainsworth et al. 2023 (Git Re-Basin)
    above_max   max over t of L(t) - max[L(0), L(1)]         Garipov et al. 2018, Draxler et al. 2018
    midpoint    L(1/2) - [L(0) + L(1)] / 2
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.families.base import Array

CONVENTIONS = ("above_line", "above_mean", "above_max", "midpoint")


def barriers(t: Array, L: Array) -> dict[str, Array]:
    """Every convention for metrics L (..., T) at rising t (T,) that start at 0 and end at 1.

    ``midpoint`` is interpolated linearly where 1/2 is not among t. The maxima include the ends, so above_line
    and above_max are never negative, and above_mean never less than half the ends' difference.
    """
    start, end = L[..., :1], L[..., -1:]
    after = int(np.searchsorted(t, 0.5))
    before = after if t[after] == 0.5 else after - 1
    share = 0.0 if before == after else (0.5 - t[before]) / (t[after] - t[before])
    middle = (1 - share) * L[..., before] + share * L[..., after]
    mean = (L[..., 0] + L[..., -1]) / 2
    return {
        "above_line": (L - (1 - t) * start - t * end).max(-1),
        "above_mean": L.max(-1) - mean,
        "above_max": L.max(-1) - np.maximum(L[..., 0], L[..., -1]),
        "midpoint": middle - mean,
    }


def resampled_means(per_example: Tensor, resamples: int, seed: int = 0) -> Array:
    """Bootstrap means (resamples, T) of per-example values (T, n): examples redrawn with replacement.

    Every t sees the same redrawn examples, so differences along the path keep their correlation. Resampled
    maxima over t are a little high, as any maximum of noisy values is; intervals of a barrier lean that way.
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


def barrier_intervals(t: Array, L: Array, resampled: Array, confidence: float) -> dict[str, dict[str, float]]:
    """Each convention's value on L (T,) with the percentile interval of its bootstrap resamples (R, T)."""
    values = barriers(t, L)
    spread = barriers(t, resampled)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    out = {}
    for name in CONVENTIONS:
        low, high = np.percentile(spread[name], tails)
        out[name] = {"value": float(values[name]), "low": float(low), "high": float(high)}
    return out


def verdict(barrier: dict[str, float], below: float) -> str:
    """ "yes" when the whole interval lies under the threshold, "no" when none of it does, else "undecided"."""
    if barrier["high"] < below:
        return "yes"
    return "no" if barrier["low"] >= below else "undecided"
