"""Hydra's complaints, said again in one line about the override that caused them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from modeconn_cli import described, settings
from modeconn_cli.errors import UserError
from modeconn_cli.front.files import complaint
from modeconn_cli.front.overrides import all_keys, chosen_nodes, groups
from modeconn_cli.nearest import nearest_words
from modeconn_cli.work.command import first_command

MOST_JOBS = 10_000  # of a sweep


def check_form(override: str, beside: Sequence[str], config_dir: str | None) -> None:
    """Raise UserError for what Hydra answers less plainly, or takes for something else than was meant."""
    key, equals, value = override.partition("=")
    if equals and not key.strip("+~ "):
        raise UserError(f"{override!r} is not an override: write key=value, as seed=1 or architecture=vgg16.")
    if not equals and not override.startswith("~"):
        owner = next((g for g, choices in groups(config_dir).items() if override in choices), None)
        near = suggest(override, all_keys([], config_dir), "did you mean {}=...?")
        near = f"; did you mean {owner}={override}?" if owner else near
        raise UserError(f"{override!r} is not an override: write key=value, as seed=1 or architecture=vgg16{near}")
    if key.lstrip("~+") in settings.nodes() and (override.startswith("~") or value == "null"):
        raise UserError(f"{override}: every run needs its {key.lstrip('~+')}; choose one, or leave the default.")
    bare = key.lstrip("~+")
    if override.startswith("~") and not bare.startswith("hydra") and ".kwargs" not in bare and bare != "experiment":
        raise UserError(f"{override}: settings are changed and not removed; write {bare}=VALUE, or leave it out.")
    if override.startswith("+") and not override.startswith("++") and bare in all_keys(beside, config_dir):
        raise UserError(f"{override}: {bare} is there already; write {bare}={value}.")
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
    from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

    choices, keys = groups(config_dir), all_keys(overrides, config_dir)
    parted = [o.lstrip("+~").partition("=") for o in overrides if not o.lstrip("+~").startswith("hydra")]
    wrong = next(filter(None, (_wrong_choice(key, value, choices) for key, _, value in parted if key in choices)), None)
    if wrong:
        return wrong
    for key, _, _ in parted:
        if key not in choices and key not in keys and ".kwargs." not in key:  # inside kwargs anything goes
            owners = _owners(key)
            if owners:
                return f"{key}: the chosen {key.split('.')[0]} has no such field; it belongs to {', '.join(owners)}."
            return f"{key}: no such key{suggest(key, keys, 'did you mean {}?')}"
    if "Ambiguous value" in str(error):
        several = next((o for o in overrides if o in str(error)), overrides[0])
        return f"{several}: several values are a sweep, which wants --multirun (-m); a list is written as [0,1]."
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        asking = [o for o in overrides if "${" in o]
        last = str(error.full_key or "").rpartition(".")[2]
        told = next(
            (o for o in asking if o.partition("=")[0].endswith(last)), asking[0] if asking else "a configuration file"
        )
        why = str(error).splitlines()[0].partition("interpolation: ")
        return f"{told}: {why[2] or why[0]}; write the value itself, or what there is."
    culprit = _type_culprit(error, overrides, config_dir)
    if culprit:
        return culprit
    in_file = complaint(overrides, config_dir)
    if in_file:
        return in_file
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line = next((part.strip() for part in str(cause).splitlines() if part.strip()), type(cause).__name__)
    named = [o for o in overrides if o in str(error) or o in str(cause)]
    if not named and isinstance(error, OverrideParseException):
        return f"{error.override.removeprefix('++')}: cannot be read; close every bracket and quote."
    return f"{named[0]}: {line}" if named else line


def _wrong_choice(key: str, value: str, choices: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong with the choice of a group, if anything."""
    wrong = [v for v in value.split(",") if v not in choices[key] and v != "null"]
    if not wrong:
        return None
    if key == "architecture" and wrong[0].lower() in torchvision_models():
        model = f"architecture=torchvision architecture.model={wrong[0].lower()}"
        return f"{key}={wrong[0]}: no such {key} here, but torchvision has one: {model}."
    near = suggest(wrong[0], choices[key], f"did you mean {key}={{}}?", otherwise="choose another.")
    return f"{key}={wrong[0]}: no such {key}{near} There are {', '.join(choices[key])}."


def check_sweep(overrides: Sequence[Any]) -> None:
    """Raise UserError for a sweep (of Hydra's parsed overrides) of more jobs than anybody waits for."""
    jobs = 1
    for override in overrides:
        if override.is_sweep_override():
            value = override.value()
            if override.is_range_sweep():
                jobs *= max(1, math.ceil((value.stop - value.start) / value.step))
            else:
                jobs *= len(value.list or [0])
    if jobs > MOST_JOBS:
        raise UserError(f"--multirun asks for {jobs:,} jobs, and at most {MOST_JOBS:,} are taken: sweep over less.")


def torchvision_models() -> list[str]:
    """The classifiers of torchvision, where it can be imported."""
    try:
        from modeconn_cli.torchvision_compat import import_torchvision

        models = import_torchvision().models
        return [*models.list_models(module=models)]
    except Exception:  # whatever is wrong with it, the question was another
        return []


def _type_culprit(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str | None:
    """The override whose value its field cannot hold, said with what the field is."""
    said = f"{error} {error.__cause__ or ''}"
    nodes = chosen_nodes(overrides, config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group, _, name = key.partition(".")
        node = nodes.get(group)
        doc = described.describe(node, name) if node else None
        if (
            node is None
            or doc is None
            or not (override in said or f"full_key: {key}" in said or f"full_key: {name}\n" in said)
        ):
            continue
        items = described.allowed_items(node, name)
        allowed = items or described.allowed_values(node, name)
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


def _bare(word: str) -> str:
    """A word without what people write in one way or another."""
    return word.lower().replace("_", "").replace("-", "")


def suggest(wrong: str, right: Sequence[str], phrase: str, otherwise: str | None = None) -> str:
    """The end of a sentence: a phrase with the nearest right word, or ``otherwise`` where nothing is near."""
    exact = [r for r in right if _bare(r) == _bare(wrong)]
    near = exact or nearest_words(wrong, right, cutoff=0.5)
    if not near:  # the last part alone may be near: a field given without its group, say
        tails = {k.rsplit(".", 1)[-1]: k for k in reversed(list(right))}
        near = [tails[n] for n in nearest_words(wrong.rsplit(".", 1)[-1], tails)]
    shown = f"`modeconn {first_command().name} --cfg job` shows every key."
    return f"; {phrase.format(near[0]) if near else otherwise or shown}"
