"""The picture of paths: the training loss and the verdict's metric against t, as a paper could print it."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from modeconn_cli.results import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision can tell apart; line styles say it again.
STYLES = [("#D55E00", "-"), ("#0072B2", "-"), ("#009E73", "--"), ("#CC79A7", "-."), ("#E69F00", ":"), ("#56B4E9", "--")]
STROKES = ["-", "--", "-.", ":"]
ENDS = "endpoints"
WIDTH = 7.2  # inches


@dataclass(frozen=True)
class PathResult:
    """A measured path as read from its directory: path.csv, and summary.json."""

    title: str
    table: pd.DataFrame
    summary: dict[str, Any]

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics.of(self.summary)

    @property
    def coordinates(self) -> list[str]:
        """Of its points: t of a path, several of a surface."""
        return list(self.summary.get("coordinates", ["t"]))

    @property
    def is_surface(self) -> bool:
        return len(self.coordinates) > 1


def style(number: int) -> tuple[str, str]:
    """Colour and stroke of a line: one of STYLES, and after these their colours with other strokes."""
    again, first = divmod(number, len(STYLES))
    colour, stroke = STYLES[first]
    return colour, STROKES[(STROKES.index(stroke) + again) % len(STROKES)]


def save(paths: Sequence[PathResult], heading: str, files: Mapping[str, Path]) -> None:
    """Draw paths into a file of each kind asked for (png, svg, pdf), the same bytes for the same figures.

    Both panels hold every path, with bands of 1.96 standard errors and the highest point marked; a surface has two of
    its own.
    """
    from matplotlib import rc_context

    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "modeconn",
        "svg.fonttype": "none",
        "axes.titlesize": 10,
        "legend.frameon": False,
        "text.parse_math": False,  # a name with a $ in it is a name
    }
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in letters the font has not
        figure = _draw(paths, heading)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # arranged once: every further time takes as long as drawing
        for kind, file in files.items():
            figure.savefig(file, format=kind, dpi=200, metadata=metadata[kind])


def _draw(paths: Sequence[PathResult], heading: str) -> Figure:
    from matplotlib.figure import Figure

    lines, surfaces = ([p for p in paths if p.is_surface is is_surface] for is_surface in (False, True))
    longest = max((len(path.title) for path in lines), default=0)
    columns = min(len(lines) + 1, max(1, int(WIDTH / (0.07 * longest + 0.55))))
    rows = -(-(len(lines) + 1) // columns) if lines else 0
    title = textwrap.wrap(heading, 90)
    height = 0.45 + 2.65 * (bool(lines) + len(surfaces)) + 0.19 * rows + 0.17 * (len(title) - 1)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(bool(lines) + len(surfaces), 2, squeeze=False)
    metrics = paths[0].metrics
    for row, path in zip(panels[bool(lines) :], surfaces, strict=True):
        for axes, metric in zip(row, metrics.main, strict=True):
            draw_surface(axes, path, metric, metrics.heading(metric))
    if lines:
        for axes, metric in zip(panels[0], metrics.main, strict=True):
            draw_panel(axes, lines, metric, metrics.heading(metric))
        _legend(figure, panels[0][0], columns)
    figure.suptitle("\n".join(title), fontsize=10)
    return figure


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # The ends come last in the legend, and the band is said once for all.
    order = sorted(range(len(labels)), key=lambda i: labels[i] == ENDS)
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    note = "bands: 1.96 standard errors; dots: maxima"
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        title=note,
        title_fontsize=7,
    )
    legend.get_title().set_color("0.4")


def draw_surface(axes: Axes, path: PathResult, column: str, name: str) -> None:
    """Draw a metric on a surface over two coordinates, a square a point; of more coordinates say that it has them."""
    axes.set_title(name, loc="left")
    if len(path.coordinates) > 2:
        axes.text(0.5, 0.5, f"{path.title}:\nnot drawn over\n{', '.join(path.coordinates)}", ha="center", va="center")
        axes.set_axis_off()
        return
    first, second = path.coordinates
    side = 110 / max(2.0, len(path.table) ** 0.5)  # points
    drawn = axes.scatter(
        path.table[first], path.table[second], c=path.table[column], marker="s", s=side**2, linewidths=0
    )
    axes.figure.colorbar(drawn, ax=axes)
    axes.set_xlabel(first)
    axes.set_ylabel(f"{path.title}\n{second}")


def draw_panel(axes: Axes, paths: Sequence[PathResult], column: str, name: str) -> None:
    """Draw a metric along paths over ``axes``, with bands of 1.96 standard errors and the highest points marked."""
    for i, path in enumerate(paths):
        colour, line = style(i)
        t, value = path.table["t"], path.table[column]
        band = 1.96 * path.table[f"{column}_se"]
        axes.plot(t, value, line, color=colour, linewidth=1.6, label=path.title)
        axes.fill_between(t, value - band, value + band, color=colour, alpha=0.18 * min(1, 6 / len(paths)), linewidth=0)
        top = int(value.to_numpy().argmax())
        axes.plot(
            t.iloc[top],
            value.iloc[top],
            "o",
            color=colour,
            markersize=4,
            markeredgecolor="white",
            clip_on=False,
            zorder=4,
        )
    ends = paths[0].table.iloc[[0, -1]]
    axes.plot(ends["t"], ends[column], "s", color="black", markersize=4, clip_on=False, zorder=5, label=ENDS)
    lows = [float(p.table[column].min()) for p in paths]
    highs = [float(p.table[column].max()) for p in paths]
    if column == paths[0].metrics.main[0] and min(lows) > 0 and max(highs) > 20 * min(lows):
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0 if min(lows) < 0.5 * max(highs) else None)
    axes.set_xlim(0, 1)
    axes.set_xlabel("Position along the path, $t$", parse_math=True)
    axes.set_title(name, loc="left", parse_math=False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def save_png(figure: Figure, file: Any) -> None:
    """The same bytes for the same figure."""
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
