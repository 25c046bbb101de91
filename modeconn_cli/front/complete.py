"""Completions of an override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeconn_cli import described, settings
from modeconn_cli.front.overrides import REFERENCES, all_keys, chosen_nodes, groups
from modeconn_cli.runs.find import run_names


def complete(words: Sequence[str], incomplete: str) -> list[str]:
    """Completions of an override after a command: keys and groups, then their values."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        keys = all_keys(words)
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
        node = chosen_nodes(words)[group]
        bracket = "" if "," in value else "["
        values = described.allowed_values(node, name) or [bracket + v for v in described.allowed_items(node, name)]
    else:
        values = []
    head, comma, tail = value.rpartition(",")
    return [f"{key}={head}{comma}{v}" for v in values if v.startswith(tail)]
