"""What an option is for and what it may be, for those who ask."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Union, get_args, get_origin, get_type_hints

from modeconn_cli.settings import choices


def describe(node: type, key: str) -> str | None:
    """The documentation of one field of a config class, or None where it has no such field."""
    for f in dataclasses.fields(node):
        if f.name == key:
            allowed = allowed_values(node, key) or allowed_items(node, key)
            return f.metadata.get("doc", "") + (f" [{', '.join(allowed)}]" if allowed else "")
    return None


def allowed_values(node: type, key: str) -> list[str]:
    """What an enumerated or boolean field may be, for completion and for errors; empty for any other."""
    named = next((f.metadata["names"] for f in dataclasses.fields(node) if f.name == key), None)
    if named is not None:
        return [*choices(named)]
    kind = get_type_hints(node).get(key, str)
    kinds = getattr(kind, "__args__", (kind,)) if getattr(kind, "__origin__", None) is Union else (kind,)
    for k in kinds:
        if isinstance(k, type) and issubclass(k, Enum):
            return [m.name for m in k]
        if k is bool:
            return ["true", "false"]
    return []


def allowed_items(node: type, key: str) -> list[str]:
    """What a list of enumerated values may hold; empty for any other field."""
    kind = get_type_hints(node).get(key)
    item = get_args(kind)[0] if get_origin(kind) is list else None
    return [m.name for m in item] if isinstance(item, type) and issubclass(item, Enum) else []
