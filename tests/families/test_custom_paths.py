"""What is taken for a path, and what is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from modeconn_cli.errors import UserError
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.custom import check_ends


class Given:
    """A path by its coefficients alone, as anyone may write one."""

    def __repr__(self) -> str:  # the workers of a parallel run call it by one name
        return "Given"

    def __init__(self, coefficients, vertices=3):
        self.coefficients, self.vertices = coefficients, vertices


def hats(u, shift=0.0, more=0.0):
    """Three coefficients of t, with faults."""
    t = np.asarray(u).reshape(-1)
    return np.stack([1 - t + shift, more * t * (1 - t), t - shift], 1)


@pytest.mark.parametrize(
    "path", [Bezier(1), Bezier(4), Chain(2), Given(hats), Given(lambda u: hats(u, 5e-10))], ids=str
)
def test_a_path_from_its_first_control_point_to_its_last_is_taken(path):
    check_ends(path, "arc.py:Arc")


@pytest.mark.parametrize(
    ("coefficients", "vertices", "said"),
    [
        (lambda u: hats(u, 1e-8), 3, "begins at its first control point"),
        (lambda u: hats(u)[:, ::-1], 3, "begins at its first control point"),
        (hats, 4, "begins at its first control point"),
        (lambda u: hats(u)[:1], 3, "begins at its first control point"),
        (lambda u: hats(u, more=0.1), 3, "sum to [1.0"),
        (lambda u: 1 / 0, 3, "ZeroDivisionError"),
        (lambda u: [[1, 0], ["x", 1]], 2, "ValueError"),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(coefficients, vertices, said):
    with pytest.raises(UserError) as refusal:
        check_ends(Given(coefficients, vertices), "arc.py:Arc")
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("arc.py:Arc")
    assert "\n" not in str(refusal.value)
