"""Paths in weight space: w(t) = c(t) @ W, a family of coefficients c(t) times control points W (K, P).

Segments and Bezier curves as in Garipov et al. 2018 (arXiv:1802.10026), equations 2 and 3.
"""

from __future__ import annotations

from modeconn_cli.families.base import Path
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain


def by_name(kind: str, control_points: int) -> Path:
    """The family called ``bezier`` or ``chain`` with K control points (K at least 2)."""
    return Bezier(control_points - 1) if kind == "bezier" else Chain(control_points - 2)
