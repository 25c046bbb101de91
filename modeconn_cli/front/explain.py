"""Hydra's complaints, said again in one line about the override that caused them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.front.overrides import all_keys, chosen_nodes, groups
from modeconn_cli.work.command import first_command


def check_form(override: str, beside: Sequence[str], config_dir: str | None) -> None:
    """Raise UserError for what Hydra answers less plainly, or takes for something else than was meant."""
    key, equals, value = override.partition("=")
    if not equals and not override.startswith("~"):
        owner = next((g for g, choices in groups(config_dir).items() if override in choices), None)
        near = suggest(override, all_keys([], config_dir), "did you mean {}=...?")
        near = f"; did you mean {owner}={override}?" if owner else near
        raise UserError(f"{override!r} is not an override: write key=value, as seed=1 or architecture=vgg16{near}")
    if key.lstrip("~+") in settings.nodes() and (override.startswith("~") or value == "null"):
        raise UserError(f"{override}: every run needs its {key.lstrip('~+')}; choose one, or leave the default.")
    group = key.partition(".")[0]
    chosen = next((o.partition("=")[2] for o in beside if o.startswith(f"{group}=")), None)
    if key == f"{group}.name" and value != chosen:
        meant = f"{group}={value}" if value in groups(config_dir).get(group, []) else ""
        meant = f"{group}.model={value}" if chosen == "torchvision" else meant
        if meant:
            raise UserError(f"{override} would only name the directories; did you mean {meant}?")


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None) -> str:
    """Hydra's complaint as one line about the override that caused it."""
    from hydra.errors import OverrideParseException

    choices, keys = groups(config_dir), all_keys(overrides, config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.startswith("hydra"):
            continue
        if key in choices:
            wrong = [v for v in value.split(",") if v not in choices[key] and v != "null"]
            if wrong:
                near = suggest(wrong[0], choices[key], f"did you mean {key}={{}}?", otherwise="choose another.")
                return f"{key}={wrong[0]}: no such {key}{near} There are {', '.join(choices[key])}."
        elif key not in keys and ".kwargs." not in key:  # inside kwargs anything goes
            owners = _owners(key)
            if owners:
                return f"{key}: the chosen {key.split('.')[0]} has no such field; it belongs to {', '.join(owners)}."
            return f"{key}: no such key{suggest(key, keys, 'did you mean {}?')}"
    if "Ambiguous value" in str(error):
        several = next((o for o in overrides if o in str(error)), overrides[0])
        return f"{several}: several values are a sweep, which wants --multirun (-m); a list is written as [0,1]."
    culprit = _type_culprit(error, overrides, config_dir)
    if culprit:
        return culprit
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = next((part.strip() for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
    named = [o for o in overrides if o in str(error) or o in str(cause)]
    if not named and isinstance(error, OverrideParseException):
        return f"{error.override.removeprefix('++')}: cannot be read; close every bracket and quote."
    return f"{named[0]}: {line}" if named else line


def _type_culprit(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str | None:
    """The override whose value its field cannot hold, said with what the field is."""
    said = f"{error} {error.__cause__ or ''}"
    nodes = chosen_nodes(overrides, config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group, _, name = key.partition(".")
        node = nodes.get(group)
        doc = settings.describe(node, name) if node else None
        if (
            node is None
            or doc is None
            or not (override in said or f"full_key: {key}" in said or f"full_key: {name}\n" in said)
        ):
            continue
        items = settings.allowed_items(node, name)
        allowed = items or settings.allowed_values(node, name)
        wrong = [v for v in value.strip("[]").split(",") if v.strip() not in items] if items else [value]
        if not allowed or not wrong:
            return f"{key}={value}: not {settings.kind_of(node, name)}. It is: {doc}"
        meant = f"{key}=[{{}}]" if items else f"{key}={{}}"
        near = suggest(wrong[0], allowed, f"did you mean {meant}?", otherwise="choose one of these.")
        return f"{key}={value}: {f'{wrong[0]} is ' if items else ''}not one of {', '.join(allowed)}{near}"
    return None


def _owners(key: str) -> list[str]:
    group, _, name = key.partition(".")
    return [
        n.lstrip("_")
        for n, node in settings.nodes().get(group, {}).items()
        if name in {f.name for f in dataclasses.fields(node)}
    ]


def suggest(wrong: str, right: Sequence[str], phrase: str, otherwise: str | None = None) -> str:
    """The end of a sentence: a phrase with the nearest right word, or ``otherwise`` where nothing is near."""
    exact = [r for r in right if r.lower() == wrong.lower()]
    near = exact or difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    if not near:  # the last part alone may be near: a field given without its group, say
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(list(right))}
        near = [tails[n] for n in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)]
    shown = f"`modeconn {first_command().name} --cfg job` shows every key."
    return f"; {phrase.format(near[0]) if near else otherwise or shown}"
