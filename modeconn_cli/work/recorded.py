"""A finished run's settings, as its config.yaml has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.runs.find import Found
from modeconn_cli.work.options import Runtime

OBJECT = "a Python object"  # source, family or kind of what a session of Python held, and no setting describes


def recorded_config(run: Found, runtime: Runtime) -> settings.Config:
    """The configuration that a run was made with, on the machine that ``runtime`` describes.

    Settings that were added since have their defaults.

    Raises:
        UserError: config.yaml is missing or is not one of modeconn's.
    """
    file = run.folder / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        # Groups from outside are their stages' own; no network depends on them.
        known = {f.name for f in dataclasses.fields(settings.Config)} - {"seed", "runtime"}
        groups = {k: _node(k, v) for k, v in content.items() if k in known}
        return settings.Config(seed=int(content["seed"]), **groups, runtime=runtime)
    except OSError:
        raise UserError(f"{file} is not there, which names the data and the architecture of that run.") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read as settings ({why}).") from None


def _node(group: str, content: dict[str, Any]) -> Any:
    """A group's settings as the class whose fields they are."""
    from omegaconf import OmegaConf

    def fit(node: type) -> tuple[int, int]:
        names = {f.name for f in dataclasses.fields(node)}
        return len(names & content.keys()), -len(names)

    named = settings.choices(group).get(str(content.get(settings.NAMED_BY.get(group, ""))))
    node = named or max(settings.nodes()[group].values(), key=fit)
    known = {f.name for f in dataclasses.fields(node)}
    given = {k: v for k, v in content.items() if k in known}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), given))
