"""HTML and SVG from Python: text is escaped unless it is markup already, so nothing read from a file can inject."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any


class Markup(str):
    """Text that is HTML already; :func:`tag` alone makes it."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element. ``class_`` is written class, ``aria_label`` aria-label; an attribute that is None is left out."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    opening = "".join(f' {k}="{html.escape(str(v))}"' for k, v in given.items())
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    return Markup("".join(p if isinstance(p, Markup) else html.escape(p) for p in parts))


def embedded(value: Any, name: str) -> Markup:
    """A value as JSON for the page's script; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def table(caption: str, heads: Iterable[str], rows: Iterable[Markup], class_: str | None = None) -> Markup:
    """A table in a box that scrolls by itself, so that the page need not."""
    top = tag("tr", *(tag("th", head, scope="col") for head in heads))
    groups = [row if row.startswith("<tbody") else tag("tbody", row) for row in rows]
    inner = tag("table", tag("caption", caption), tag("thead", top), *groups, class_=class_)
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def row(head: str, *cells: str) -> Markup:
    return tag("tr", tag("th", head, scope="row"), *(tag("td", cell) for cell in cells))
