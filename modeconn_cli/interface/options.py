"""Settings by their names, as Python has them, into the command line's configuration."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.settings import Config


def configured(groups: Sequence[str], options: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A configuration of one job.

    Args:
        groups: where an option without a group is looked for, first things first.
        options: ``points=11``, or with its group, ``{"interpolation.points": 11}``; or a group's choice,
            ``interpolation="quick"``.
        overrides: as on the command line; options come after them.

    Raises:
        UserError: there is no such option, or it cannot be so.
    """
    from modeconn_cli.front.compose import compose
    from modeconn_cli.front.overrides import chosen_nodes

    given = [*overrides]
    choices = {k: v for k, v in options.items() if k in settings.nodes() and isinstance(v, str)}
    given += [f"{k}={v}" for k, v in choices.items()]
    nodes = chosen_nodes(given)
    for name, value in options.items():
        if name not in choices:
            given.append(f"{_key(name, groups, nodes)}={written(value)}")
    (job,) = compose(given)
    settings.check(job.config)
    os.environ["MODECONN_COMMAND"] = "a call from Python"  # as provenance says where a result comes from
    return job.config


def _key(name: str, groups: Sequence[str], nodes: Mapping[str, type]) -> str:
    """An option with its group."""
    if "." in name or (name == "seed" and "curve" in groups):  # the replicate, which is the curve's too
        return name
    if name in settings.nodes():
        raise UserError(f"{name} is a group of settings: give a choice of it by name, or its settings by theirs.")
    for group in groups:
        if name in {f.name for f in dataclasses.fields(nodes[group])}:
            return f"{group}.{name}"
    from modeconn_cli.front.explain import suggest

    known = {f.name: f"{g}." for g in reversed(groups) for f in dataclasses.fields(nodes[g])}
    raise UserError(f"{name}: no such option{suggest(name, list(known), 'did you mean {}?', _AND_SO)}")


_AND_SO = "docs/python.md names them."


def written(value: Any) -> str:
    """A value as an override holds it.

    >>> written([1, None, True, 1e-3]), written("it's"), written({"a": 0.5})
    ('[1,null,true,0.001]', "'it\\\\'s'", "{'a':0.5}")
    """
    from modeconn_cli.front.overrides import quoted

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quoted(str(k))}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    return quoted(str(value))
