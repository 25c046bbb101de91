"""What several classifiers say together: errors, calibration, and where their uncertainty lies.

Predictions are log-probabilities, for a probability that float32 rounds to 0 still has one: L (M, n, C) of M members on
n examples of C classes, or l (n, C) of one classifier. Labels y are (n,) integers. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv:1706.04599) have it
Array = NDArray[np.float64]


def averaged(L_mnc: Tensor) -> Tensor:
    """The log of the members' mean probability, (n, C): the ensemble's prediction."""
    return torch.logsumexp(L_mnc.double(), 0) - math.log(len(L_mnc))


def error(l_nc: Tensor, y: Tensor) -> float:
    """The share of examples whose most likely class is not theirs."""
    return float((l_nc.argmax(1) != y).double().mean())


def nll(l_nc: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood, in nats."""
    return -float(l_nc.double()[torch.arange(len(y)), y].mean())


def brier(l_nc: Tensor, y: Tensor) -> float:
    """Mean squared distance of the probabilities to the label's unit vector, summed over classes: 0 to 2.

    Brier 1950. (Of two classes, some halve it.)
    """
    off = l_nc.double().exp()
    off[torch.arange(len(y)), y] -= 1
    return float(off.square().sum(1).mean())


def calibration_error(l_nc: Tensor, y: Tensor, bins: int = BINS, equal_mass: bool = False) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of the bin that each is in.

    Bins of confidence (the highest probability) are of equal width, (0, 1/B], (1/B, 2/B], ... (Guo et al. 2017), or of
    as equal numbers of examples as can be, in order of confidence (Nixon et al. 2019, arXiv:1904.01685).
    """
    confidence, predicted = (v.numpy() for v in l_nc.double().exp().max(1))
    right = (predicted == y.numpy()).astype(float)
    if equal_mass:
        parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    else:
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        parts = [np.flatnonzero(place == b) for b in range(bins)]
    return float(sum(abs(right[p].sum() - confidence[p].sum()) for p in parts if len(p)) / len(y))


def temperature(l_nc: Tensor, y: Tensor) -> float:
    """The T > 0 for which softmax(l / T) has the lowest nll, to be fitted on validation examples.

    With s = 1 / T, the nll is convex: the root of its derivative is bracketed in log T. Log-probabilities are logits up
    to a constant of each example, which softmax ignores.
    """
    from scipy.optimize import brentq

    l_nc = l_nc.double()
    own = l_nc[torch.arange(len(y)), y]

    def slope(log_s: float) -> float:
        """Of the nll by s."""
        p = (math.exp(log_s) * l_nc).softmax(1)
        return float((torch.where(p > 0, p * l_nc, 0.0).sum(1) - own).mean())

    low, high = -math.log(1e4), math.log(1e4)
    if slope(low) >= 0:  # worse than chance: the flatter, the better
        return math.exp(-low)
    if slope(high) <= 0:  # all right: the sharper, the better
        return math.exp(-high)
    return math.exp(-brentq(slope, low, high, xtol=1e-10))


def tempered(l_nc: Tensor, T: float) -> Tensor:
    """log softmax(l / T), (n, C)."""
    return (l_nc.double() / T).log_softmax(1)


def disagreement(L_mnc: Tensor) -> Array:
    """(M, M): the share of examples on which two members' most likely classes differ."""
    said = L_mnc.argmax(2)
    return (said[:, None] != said[None]).double().mean(2).numpy()


def divergence(L_mnc: Tensor) -> Array:
    """(M, M): KL(p_i || p_j) in nats, the mean over examples."""
    rows = L_mnc.double()
    return np.array([[float(_divergence(a, b).mean()) for b in rows] for a in rows])


def _divergence(l_nc: Tensor, m_nc: Tensor) -> Tensor:
    """KL of every example, (..., n); infinite where the second rules out what the first does not."""
    p = l_nc.exp()
    return torch.where(p == 0, 0.0, p * (l_nc - m_nc)).sum(-1)


def cosine(L_mnc: Tensor) -> Array:
    """(M, M): the cosine between two members' probabilities, the mean over examples."""
    p = torch.nn.functional.normalize(L_mnc.double().exp(), dim=2)
    return torch.einsum("anc,bnc->ab", p, p).div(p.shape[1]).numpy()


def least_alike(L_mnc: Tensor, y: Tensor, size: int) -> list[int]:
    """Which ``size`` of M members differ most, in order of choice: the one of lowest nll, then one by one the member
    whose mean :func:`cosine` to the chosen ones is lowest."""
    chosen, near = [min(range(len(L_mnc)), key=lambda m: nll(L_mnc[m], y))], cosine(L_mnc)
    while len(chosen) < size:
        left = [m for m in range(len(L_mnc)) if m not in chosen]
        chosen.append(min(left, key=lambda m: float(near[m, chosen].mean())))
    return chosen


def pairs_mean(matrix: Array) -> float:
    """The mean over pairs of different members; NaN of one member."""
    m = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (m * (m - 1))) if m > 1 else math.nan


def entropy(l_nc: Tensor) -> Tensor:
    """(..., n) of (..., n, C), in nats."""
    l_nc = l_nc.double()
    return -torch.where(torch.isneginf(l_nc), 0.0, l_nc.exp() * l_nc).sum(-1)


@dataclass(frozen=True)
class Uncertainty:
    """Of each example, (n,), in nats: total = aleatoric + epistemic.

    total: entropy of the mean prediction. aleatoric: the members' mean entropy. epistemic: the mutual information of
    the prediction and the member, which is what the members disagree about (Depeweg et al. 2018, arXiv:1710.07283).
    """

    total: Array
    aleatoric: Array
    epistemic: Array


def uncertainty(L_mnc: Tensor) -> Uncertainty:
    together = averaged(L_mnc)
    aleatoric = entropy(L_mnc).mean(0)
    apart = _divergence(L_mnc.double(), together).mean(0)
    return Uncertainty(entropy(together).numpy(), aleatoric.numpy(), apart.clamp(min=0).numpy())


def spread(U_mnd: Tensor) -> Uncertainty:
    """Of numbers rather than classes, from means and variances (M, n, T, 2): variances, the mean over targets.

    total: of the members' equal mixture. aleatoric: the members' mean variance. epistemic: the variance of their means.
    The law of total variance (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4).
    """
    mean, variance = U_mnd.double().unbind(3)
    aleatoric = variance.mean(0).mean(1)
    epistemic = mean.var(0, correction=0).mean(1)
    return Uncertainty((aleatoric + epistemic).numpy(), aleatoric.numpy(), epistemic.numpy())


def flips(said_mn: Tensor) -> NDArray[np.int64]:
    """(n,): how often what is said of an example changes from a member to the next."""
    found: NDArray[np.int64] = (said_mn[1:] != said_mn[:-1]).sum(0).numpy()
    return found


def auroc(score: Array, positive: NDArray[np.bool_]) -> float:
    """The probability that a positive's score is above a negative's, ties counted half; NaN where a side is empty.

    By ranks (Mann and Whitney 1947).
    """
    from scipy.stats import rankdata

    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return math.nan
    return float((rankdata(score)[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def risk_coverage(uncertain: Array, wrong: NDArray[Any]) -> tuple[Array, float]:
    """The mean of ``wrong``, an error or any loss, among the k least uncertain examples for k = 1 .. n.

    And its mean over k, the area under the curve.
    Of examples alike in uncertainty every order counts the same: each has the mean of all of them. Geifman and
    El-Yaniv 2017 (arXiv:1705.08500).
    """
    _, place, count = np.unique(uncertain, return_inverse=True, return_counts=True)
    rate = np.bincount(place, wrong.astype(float)) / count
    errors = np.cumsum(np.repeat(rate, count))
    curve = errors / np.arange(1, len(wrong) + 1)
    return curve, float(curve.mean())


def divided(budget: int, share: Array, least: int = 0, most: int | None = None) -> NDArray[np.int64]:
    """A whole number for every example, in proportion to its share, within least .. most, of exactly this sum.

    The proportional amounts are clipped at both bounds with the factor that keeps the sum; what rounding leaves goes
    to the largest remainders, and among equals to the first.

    Raises:
        ValueError: no such numbers exist, or a share is negative or not finite.
    """
    n, high = len(share), budget if most is None else most
    if not np.isfinite(share).all() or (share < 0).any():
        raise ValueError("shares must be finite and not negative")
    if not n * least <= budget <= n * high:
        raise ValueError(f"{n} numbers from {least} to {high} sum to {n * least} to {n * high}, not to {budget}")
    share = share if share.max(initial=0.0) > 0 else np.ones(n)
    share = share / share.max()

    def amounts(factor: float) -> Array:
        found: Array = np.clip(factor * share, least, high)
        return found

    # The sum rises with the factor, in straight lines between those at which a number leaves a bound.
    some = share[share > high * 1e-300]
    turns = np.unique(np.concatenate([[0.0], least / some, high / some]))
    sums = np.array([amounts(f).sum() for f in turns])
    exact = amounts(float(np.interp(budget, sums, turns)))
    whole = np.floor(exact + 1e-9).astype(np.int64)
    # Examples with no share at all are raised last, when every other is at its bound.
    order = np.lexsort((np.arange(n), -(exact - whole), share == 0))
    while left := int(budget - whole.sum()):
        raised = order[whole[order] < high][:left]
        whole[raised] += 1
    return whole
