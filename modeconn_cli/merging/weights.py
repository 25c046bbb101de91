"""Averages of networks w = sum_i a_i w_i, sum a = 1: which weights a, and how they are found on a validation split.

Weights are convex, a >= 0, or affine, of any sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modeconn_cli.merging.given import Given, Merging
from modeconn_cli.merging.vectors import wide

Array = NDArray[np.float64]
ALIKE = 1e-10  # of all squared errors: differences between networks that are rounding


def uniform(given: Given) -> Merging:
    """The mean."""
    return given.weighted(np.array(given.evenly))


def greedy(given: Given) -> Merging:
    """The mean of those that do not make it worse (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Networks are taken in the order of their validation score, equal ones in that of their loss; one stays in where the
    mean with it scores no worse than without.
    """
    alone, n = given.alone(), len(given.points)
    order = sorted(range(n), key=lambda i: alone[i])
    kept, best = order[:1], alone[order[0]][0]
    for step, i in enumerate(order[1:]):
        given.check()
        weights = np.zeros(n)
        weights[[*kept, i]] = 1 / (len(kept) + 1)
        score, _ = given.score(given.average(weights), weights.tolist())
        if score <= best:
            kept, best = [*kept, i], score
        given.progress(step + 2, n, f"{len(kept)} in, validation score {best:.4f}")
    weights = np.zeros(n)
    weights[kept] = 1 / len(kept)
    return given.weighted(weights, order=[given.names[i] for i in order], kept=[given.names[i] for i in kept])


def least_squares(given: Given, affine: bool) -> Merging:
    """Weights for which the average of the networks' *answers* has the least squared error on the validation split.

    Stacked regressions (Breiman 1996), whose weights are then used on the networks themselves: solved is
    min_a |sum_i a_i f_i(x) - y|^2, for f the class probabilities or the predicted numbers. For a network that is linear
    in its weights these are the best ones under squared error; for others, as good as averaging answers and averaging
    weights are the same.
    """
    E_nd = given.residuals().double().flatten(1)
    gram = (E_nd @ E_nd.T).cpu().numpy()
    return given.weighted(best_affine(gram) if affine else best_convex(gram))


def best_convex(gram: Array) -> Array:
    """The a >= 0, sum a = 1, of the least a' G a, for G (N, N) positive semidefinite.

    min over x >= 0 of x' G x + (1' x - 1)^2 is, at x = s a for a fixed a, q / (1 + q) with q = a' G a, which rises with
    q: so the best x has the direction of the best a, and non-negative least squares finds it.
    """
    from scipy.optimize import nnls

    n = len(gram)
    scale = float(np.trace(gram)) / n
    values, vectors = np.linalg.eigh(gram / scale if scale > 0 else gram)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    x, _ = nnls(np.vstack([root, np.ones(n)]), np.append(np.zeros(n), 1.0))
    found: Array = x / x.sum()
    return found


def best_affine(gram: Array) -> Array:
    """The a, sum a = 1, of the least a' G a; of several, or nearly, the one closest to even."""
    n = len(gram)
    # a = 1/n + Q z, Q an orthonormal basis of the vectors of sum zero.
    basis = np.linalg.svd(np.ones((1, n)))[2][1:].T
    even = np.full(n, 1 / n)
    values, vectors = np.linalg.eigh(basis.T @ gram @ basis)
    told = values > ALIKE * np.trace(gram)
    z = vectors[:, told] / values[told] @ vectors[:, told].T @ (-basis.T @ gram @ even)
    found: Array = even + basis @ z
    return found


def learned(given: Given, affine: bool, steps: int, lr: float) -> Merging:
    """Weights that gradient descent finds on the validation loss of the average itself: a learned soup.

    min_a L(sum_i a_i w_i) (Wortsman et al. 2022, section I), by Adam from the mean on: a = softmax(b), or 1/n + b less
    its mean where weights are affine. dL/da_i = g . w_i, with g the gradient at the average; statistics of norms are
    re-estimated at every step and held while g is taken. The weights of the lowest loss that was seen are kept, so none
    is worse on the validation split than the mean.
    """
    n = len(given.points)
    b, m, v = np.zeros(n), np.zeros(n), np.zeros(n)
    found: list[tuple[float, Array]] = []
    for step in range(steps + 1):
        given.check()
        a = _affine(b) if affine else _softmax(b)
        loss, g = given.gradient(given.average(a), _shares(a))
        found.append((loss, a))
        if step == steps:
            break
        da = np.array([float(wide(g) @ wide(w)) for w in given.points])
        db = da - da.mean() if affine else a * (da - a @ da)
        m, v = 0.9 * m + 0.1 * db, 0.999 * v + 0.001 * db**2
        b = b - lr * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-12)
        given.progress(step + 1, steps, f"validation loss {loss:.4f}")
    losses = [loss for loss, _ in found]
    best = int(np.nanargmin(losses))
    return given.weighted(found[best][1], validation_loss=[losses[0], losses[best]], step=best)


def _softmax(b: Array) -> Array:
    e = np.exp(b - b.max())
    found: Array = e / e.sum()
    return found


def _affine(b: Array) -> Array:
    found: Array = 1 / len(b) + b - b.mean()
    return found


def _shares(a: Array) -> list[float]:
    kept = np.clip(a, 0, None)
    return [float(x) for x in kept / kept.sum()]
