"""Paths in weight space: w(t) = c(t) @ W, a family of coefficients c(t) times control points W (K, P).

Segments and Bezier curves as in Garipov et al. 2018 (arXiv:1802.10026), equations 2 and 3.
"""

from __future__ import annotations

from modeconn_cli.errors import UserError
from modeconn_cli.families.base import Family
from modeconn_cli.families.bezier import Bezier
from modeconn_cli.families.chain import Chain


def by_name(kind: str, vertices: int) -> Family:
    """The family called ``bezier`` or ``chain`` with K control points (K at least 2).

    Raises:
        UserError: there is none of that name.
    """
    match kind:
        case "bezier":
            return Bezier(vertices - 1)
        case "chain":
            return Chain(vertices - 2)
    raise UserError(f"there is no path called {kind}; bezier and chain are known.")
