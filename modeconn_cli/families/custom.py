"""A family of one's own code: curve=custom curve.target=arc.py:Arc."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modeconn_cli.errors import UserError
from modeconn_cli.families.base import Family, end_coordinates
from modeconn_cli.families.options import Curve
from modeconn_cli.settings import choice, option
from modeconn_cli.targets import Target

MOST_COORDINATES = 8


@choice("curve", "custom")
@dataclass
class CustomCurve(Curve):
    """A family of the user's own, with its control points evenly on the segment at first."""

    target: str = option("", "arc.py:Arc or package.module:Arc, called to make the family.")
    kwargs: dict[str, Any] = option({}, "Arguments of that call.")

    def family(self) -> Family:
        return self._made

    @property
    def title(self) -> str:
        return f"{self.target.rpartition(':')[2]} curve"

    @property
    def tag(self) -> str:
        return self.target.rpartition(":")[2].lower() or self.kind

    def own(self) -> dict[str, Any]:
        return {"kwargs": self.kwargs, "code": Target(self.target, "curve").checksum}

    @cached_property
    def _made(self) -> Family:
        target = Target(self.target, "curve")
        family: Family = target.call(target.load(), {}, dict(self.kwargs))
        check_ends(family, self.target)
        return family


def check_ends(family: Family, name: str) -> None:
    """Refuse what is no path from its first control point to its last.

    Raises:
        UserError: it has no coefficients, they do not sum to one, or its ends are not its first and last control point.
    """
    if len(getattr(family, "coordinates", ("t",))) != 1:
        _check_surface(family, name)
        return
    try:
        ends = np.asarray(family.coefficients(np.array([[0.0], [1.0]])), dtype=np.float64)
        inner = np.asarray(family.coefficients(np.array([[0.25], [0.5]])), dtype=np.float64)
        vertices = int(family.vertices)
    except Exception as error:
        raise UserError(
            f"{name} is no family of paths ({type(error).__name__}: {error}): it needs vertices, and coefficients(u) "
            "that give (T, vertices) for u (T, 1)."
        ) from error
    wanted = np.eye(max(vertices, 2))[[0, vertices - 1]][:, :vertices]
    if ends.shape != (2, vertices) or not np.allclose(ends, wanted, atol=1e-9):
        raise UserError(
            f"{name}'s coefficients at t=0 and t=1 are {ends.tolist()}: a path begins at its first control point and "
            "ends at its last."
        )
    if not np.allclose(inner.sum(1), 1):
        raise UserError(f"{name}'s coefficients sum to {inner.sum(1).tolist()}: a point of a path is a weighted mean.")


def _check_surface(family: Family, name: str) -> None:
    """The same of a family over several coordinates, whose ends are corners of the unit cube.

    Raises:
        UserError: it has none of them there, its coefficients or its shares of the ends' buffers do not sum to one.
    """
    axes, d = tuple(family.coordinates), len(family.coordinates)
    taken = {"length", "l2", "searched"} & {*axes}
    if not 1 < d <= MOST_COORDINATES or len({*axes}) < d or taken:
        raise UserError(
            f"{name} has the coordinates {', '.join(axes) or '(none)'}: give one to {MOST_COORDINATES} of different "
            "names, none of them length, l2 or searched."
        )
    try:
        end_coordinates(family)
        u_td = np.asarray(family.grid(3), dtype=np.float64)
        found = {
            "coefficients": (np.asarray(family.coefficients(u_td)), (len(u_td), int(family.vertices))),
            "anchors": (np.asarray(family.anchors(u_td)), (len(u_td), 2)),
        }
    except Exception as error:
        raise UserError(
            f"{name} is no family over {', '.join(axes)} ({type(error).__name__}: {error}): it needs vertices, and "
            f"coefficients(u) that give (T, vertices) for u (T, {d}), the first and the last one-hot at corners."
        ) from error
    for what, (values, shape) in found.items():
        if values.shape != shape or not np.allclose(values.sum(1), 1):
            raise UserError(
                f"{name}'s {what} have shape {values.shape} and sum to {values.sum(-1).round(6).tolist()[:4]}...: they "
                f"must be {shape}, each row summing to one."
            )
