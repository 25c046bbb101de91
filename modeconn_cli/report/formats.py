"""Gathered runs as text: a terminal's cells, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modeconn_cli.report.gather import NO_SETTING, Aggregate, as_override
from modeconn_cli.runs.directory import cell


def by_kind(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows that make a table: those of the same metrics, as measured paths, or ensembles."""
    kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((*row["metrics"],), []).append(row)
    return [*kinds.values()]


def as_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, for a terminal, Markdown or LaTeX; settings that none of the rows has are left out."""
    settings = [k for k in rows[0] if k not in NO_SETTING and any(row[k] != "" for row in rows)]
    metrics = list(dict.fromkeys(m for row in rows for m in row["metrics"]))
    heads = [*settings, "n"]
    for m in metrics:
        heads += [m, "std", "interval"]
    cells = []
    for row in rows:
        line = [as_override(row[k]) for k in settings] + [str(row["n"])]
        for m in metrics:
            if m not in row["metrics"]:
                line += ["", "", ""]
                continue
            a, digits = Aggregate(**row["metrics"][m]), row["digits"][m]
            spread = ["", ""] if a.n < 2 else [f"{a.std:.{digits}f}", f"[{a.low:.{digits}f}, {a.high:.{digits}f}]"]
            line += [f"{a.mean:.{digits}f}", *spread]
        cells.append(line)
    return heads, cells


def as_markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [[_markdown(h) for h in heads], ["---"] * len(heads), *([_markdown(c) for c in line] for line in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_latex(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A tabular for booktabs."""
    escaped = [[_tex(c) for c in line] for line in [heads, *cells]]
    left = sum(1 for h in heads if h not in ("n", "std", "interval") and "." not in h)
    columns = "l" * left + "r" * (len(heads) - left)
    body = [" & ".join(line) + r" \\" for line in escaped]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


_TEX = {
    **{c: f"\\{c}" for c in "_%&#${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def _tex(text: str) -> str:
    """Text as LaTeX sets it, on one line.

    >>> print(_tex("a_1 $x$ 5%"))
    a\\_1 \\$x\\$ 5\\%
    """
    return "".join(_TEX.get(c, c) for c in " ".join(text.splitlines()))


def _markdown(text: str) -> str:
    """Text as a cell of a Markdown table shows it: nothing of it ends the cell, or is emphasis, code, a link or HTML.

    >>> print(_markdown("a|b *c* test_error"))
    a\\|b \\*c\\* test_error
    """
    text = re.sub(r"([\\`*|~]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|(?<=\])\()", r"\\\1", " ".join(text.splitlines()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every figure in full, one line a row."""
    settings = [k for k in rows[0] if k not in NO_SETTING or k == "n"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = list(dict.fromkeys(m for row in rows for m in row["metrics"]))
    parts = ("mean", "std", "low", "high")
    writer.writerow([*settings, *(f"{m}.{p}" for m in metrics for p in parts)])
    for row in rows:
        found = row["metrics"]
        figures = [repr(found[m][p]) if m in found else "" for m in metrics for p in parts]
        writer.writerow([*(cell(row[k]) for k in settings), *figures])
    return buffer.getvalue()
