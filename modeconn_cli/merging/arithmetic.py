"""The parent moved by a merged task vector, by how much is found on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.merging.given import Given, Merging, Score

SCALES = tuple(round(0.05 * k, 2) for k in range(1, 21))  # that Ilharco et al. 2023 try, but for 0
MEAN_SCALES = tuple(round(0.1 * k, 1) for k in range(1, 26))  # of a mean of changes: up to where Yadav et al. 2023 try


def moved(given: Given, vector: Tensor, scale: float | None, scales: Sequence[float] = SCALES) -> Merging:
    """w_0 + scale * vector (P,); without a scale, that of ``scales`` with the best validation score.

    Raises:
        UserError: nothing is left of the networks' changes.
    """
    assert given.parent is not None
    if not vector.any():
        raise UserError(
            "nothing is left of what training changed of soup.parent: the networks are the parent itself, or their "
            "changes cancel; give other networks, or another soup."
        )
    if scale is not None:
        return Merging(given.parent + scale * vector, given.evenly, {"scale": scale})
    tried: dict[float, Score] = {}
    for s in scales:
        given.check()
        tried[s] = given.score(given.parent + s * vector, given.evenly)
        given.progress(len(tried), len(scales), f"scale {s}, validation score {tried[s][0]:.4f}")
    best = min(scales, key=lambda s: tried[s])
    return Merging(
        given.parent + best * vector,
        given.evenly,
        {"scale": best, "scores": {str(s): score[0] for s, score in tried.items()}},
    )
