"""Pictures of what networks are unsure of: risk against coverage, and the inputs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from modeconn_cli.report.plots import WIDTH, style

COLUMNS = 10  # of a contact sheet


def risk_figure(curves: Mapping[str, np.ndarray], heading: str, risk: str) -> Figure:
    """Risk among the least uncertain examples against the share of all that they are; a line a curve (n,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 * WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        colour, stroke = style(number)
        axes.plot(np.arange(1, len(curve) + 1) / len(curve), curve, stroke, color=colour, label=name, linewidth=1.2)
    axes.set_xlabel("share of inputs that are answered")
    axes.set_ylabel(risk, parse_math=False)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure


def contact_sheet(sheets: Mapping[str, Sequence[tuple[np.ndarray, str]]], heading: str) -> Figure:
    """Images (H, W) or (H, W, 3) in [0, 1] with a caption each, in rows under a title."""
    from matplotlib.figure import Figure

    rows = {title: -(-len(images) // COLUMNS) for title, images in sheets.items()}
    figure = Figure(figsize=(WIDTH, 1.1 * sum(rows.values()) + 0.35 * len(sheets) + 0.3), layout="constrained")
    figure.suptitle(heading, fontsize=10, parse_math=False)
    parts = figure.subfigures(len(sheets), 1, height_ratios=list(rows.values()), squeeze=False)[:, 0]
    for part, (title, images) in zip(parts, sheets.items(), strict=True):
        part.suptitle(title, fontsize=9, parse_math=False)
        places = part.subplots(rows[title], COLUMNS, squeeze=False).ravel()
        for axes in places:
            axes.axis("off")
        for axes, (image, caption) in zip(places, images, strict=False):
            axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(caption, fontsize=6, parse_math=False)
    return figure
