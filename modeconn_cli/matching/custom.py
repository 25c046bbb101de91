"""A matching of one's own code: rebasin=custom rebasin.target=match.py:function.

The function is called with what is to be matched (:class:`modeconn_cli.matching.given.Given`) and ``rebasin.kwargs``,
and gives for each of ``given.symmetry.groups`` the indices (size,) where each new one comes from, or a Matching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeconn_cli.errors import UserError
from modeconn_cli.matching.search import Matching
from modeconn_cli.targets import Target

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.options import CustomMethod


def match(options: CustomMethod, given: Given) -> Matching:
    """What the function finds.

    Raises:
        UserError: it fails, or what it gives are no permutations of the groups.
    """
    target = Target(options.target, "rebasin")
    function = target.load()
    found = target.call(lambda **kwargs: function(given, **kwargs), {}, dict(options.kwargs))
    if isinstance(found, Matching):
        return found
    try:
        return given.matching(found)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{options.target}: {str(error).removesuffix('.')}.") from error
