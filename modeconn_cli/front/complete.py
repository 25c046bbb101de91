"""Completions of an override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeconn_cli import described, settings
from modeconn_cli.front.overrides import REFERENCES, groups, used_keys, used_nodes
from modeconn_cli.runs.find import run_names


def complete(words: Sequence[str], incomplete: str) -> list[str]:
    """Completions of an override after a command: keys and groups, then their values."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        keys = used_keys(words)
        return [f"{k}=" for k in keys if k.startswith(key) and ("." in key or "." not in k)] + [
            f"{g}." for g in settings.nodes() if g.startswith(key) and "." not in key
        ]
    group, _, name = key.partition(".")
    if key in groups():
        values = groups()[key]
    elif key in REFERENCES:
        bracket = "" if "," in value or key.endswith("init_from") else "["
        values = [bracket + name for name in run_names(Path("outputs"))]
    elif name and group in settings.nodes():
        bracket, nodes = "" if "," in value else "[", used_nodes(words)[group]
        found = [
            described.allowed_values(n, name) or [bracket + v for v in described.allowed_items(n, name)] for n in nodes
        ]
        values = [*dict.fromkeys(v for values in found for v in values)]
    else:
        values = []
    head, comma, tail = value.rpartition(",")
    return [f"{key}={head}{comma}{v}" for v in values if v.startswith(tail)]
