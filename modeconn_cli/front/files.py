"""What is wrong with configuration files, in one line with the file, the key and the nearest right one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from modeconn_cli import described, settings
from modeconn_cli.errors import UserError
from modeconn_cli.front.overrides import chosen_nodes, groups, nearest, roots

PACKAGE = "# @package _global_"
MOST_VALUES = 100_000  # of a file, with what its anchors repeat
LARGEST = 2**20  # bytes


def chosen_files(overrides: Sequence[str], config_dir: str | None) -> Iterator[tuple[str, Path]]:
    """The files of choices that overrides make, by group, without those that their own defaults lists choose."""
    for override in overrides:
        group, _, choices = override.lstrip("+").partition("=")
        if group in groups(config_dir):
            for choice in choices.split(","):
                for root in roots(config_dir):
                    if (file := root / group / f"{choice}.yaml").is_file():
                        yield group, file
                        break


def check_files(overrides: Sequence[str], config_dir: str | None) -> None:
    """Raise UserError for chosen files that cannot be read, or would grow without bound when they are."""
    for _, file in chosen_files(overrides, config_dir):
        _read(file)


def complaint(overrides: Sequence[str], config_dir: str | None) -> str | None:
    """What is wrong with a chosen file, after Hydra refused it; None where nothing is found."""
    for group, file in chosen_files(overrides, config_dir):
        content = _read(file)
        if content is None:
            continue
        if not isinstance(content, dict):
            return f"{file}: holds no settings by name; write key: value on every line."
        defaults = content.pop("defaults", [])
        found = _defaults(file, defaults if isinstance(defaults, list) else [], config_dir)
        if found:
            return found
        nodes = chosen_nodes([*_chosen_by(defaults), *overrides], config_dir)
        if group in nodes:
            content = {group: content}
        elif PACKAGE not in file.read_text(encoding="utf-8"):
            return without_package(file)
        for line in _settings(file, content, nodes):
            return line
    return None


def without_package(file: Path) -> str:
    """What to do where an experiment's settings would be those of a group of its own."""
    return f"{file}: begin it with the line `{PACKAGE}`, without which nothing in it is a setting of the run."


def _read(file: Path) -> Any:
    """A YAML file's content.

    Raises:
        UserError: it is no YAML, refers to itself or is far too large.
    """
    if file.stat().st_size > LARGEST:
        raise UserError(
            f"{file} has {file.stat().st_size:,} bytes, which no file of settings needs: is it another file?"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is no text in UTF-8 ({error}); save it as such.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _size(root, {}, ()) > MOST_VALUES:
            raise UserError(f"{file}: its anchors repeat more than {MOST_VALUES:,} values; write out what is meant.")
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: {error.problem or 'not YAML'}; correct it.") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as YAML ({str(error).splitlines()[0]}); correct it.") from None
    except _Recursive:
        raise UserError(f"{file}: an anchor refers to itself; write out what is meant.") from None


class _Recursive(Exception):  # noqa: N818 - named for what it is
    pass


def _size(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Values that a node stands for."""
    if id(node) in above:
        raise _Recursive
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        parts = [*node.value] if isinstance(node, yaml.SequenceNode) else parts
        known[id(node)] = 1 + sum(_size(part, known, (*above, id(node))) for part in parts)
    return known[id(node)]


def _chosen_by(defaults: Any) -> list[str]:
    """What a defaults list chooses, as overrides."""
    entries = [entry for entry in defaults if isinstance(entry, dict)] if isinstance(defaults, list) else []
    return [f"{_group(key)}={choice}" for entry in entries for key, choice in entry.items()]


def _group(key: Any) -> str:
    """The group of a key of a defaults list: "override /dataset" and "/dataset@_here_" are of dataset."""
    return re.sub(r"^(override\s+)?/?|@.*$", "", str(key))


def _defaults(file: Path, defaults: Sequence[Any], config_dir: str | None) -> str | None:
    known = groups(config_dir)
    for entry in defaults:
        for key, choice in entry.items() if isinstance(entry, dict) else ():
            group, names = _group(key), choice if isinstance(choice, list) else [choice]
            if group.startswith("hydra"):
                continue
            if group not in known:
                return f"{file}: {key}: there is no group {group}{nearest(group, [*known]) or '.'}"
            for name in names:
                if name is not None and str(name) not in known[group]:
                    near = nearest(str(name), known[group]) or f"; there are {', '.join(known[group])}."
                    return f"{file}: {key}: {name}: no such {group}{near}"
            if file.parent.name not in settings.nodes() and not str(key).startswith("override"):
                return f"{file}: {key}: {choice} is chosen a second time; write `override /{group}: {choice}`."
    return None


def _settings(file: Path, content: dict[Any, Any], nodes: dict[str, type]) -> Iterator[str]:
    """Keys that there are not, and values that a field does not take."""
    for group, values in content.items():
        if group in ("seed", "hydra"):
            continue
        if group not in nodes:
            yield f"{file}: {group}: no such key{nearest(str(group), ['seed', *nodes]) or '.'}"
        elif not isinstance(values, dict):
            yield f"{file}: {group}: {values} are no settings by name; choose it by `override /{group}: {values}`."
        else:
            fields = [f.name for f in dataclasses.fields(nodes[group])]
            for key, value in values.items():
                if key not in fields:
                    near = nearest(str(key), fields)
                    yield f"{file}: {group}.{key}: no such key{near or '; there are ' + ', '.join(fields) + '.'}"
                elif not _fits(nodes[group], key, value):
                    doc = described.describe(nodes[group], key)
                    yield f"{file}: {group}.{key}: {value}: not {settings.kind_of(nodes[group], key)}. It is: {doc}"


def _fits(node: type, key: str, value: Any) -> bool:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.merge(OmegaConf.structured(node), {key: value})
    except OmegaConfBaseException:
        return False
    return True
