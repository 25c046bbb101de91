"""Line charts as SVG. All geometry is made here; the page's script only puts another view's in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modeconn_cli.report.markup import Markup, tag
from modeconn_cli.report.plots import STYLES

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 388, 10, 198
DASHES = {"-": None, "--": "7 4", "-.": "8 3 2 3", ":": "2 3"}


@dataclass(frozen=True)
class Quantity:
    """What a chart may draw: its heading, how people read a value of it, and whether it may start on a log scale."""

    title: str
    text: Callable[[float], str]
    log: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a chart: its points by quantity, and their standard errors where they are known.

    style: its place in STYLES; None for what is drawn in the text's own colour.
    """

    name: str
    style: int | None
    dash: str | None
    x: Sequence[float]
    y: Mapping[str, Sequence[float]]
    se: Mapping[str, Sequence[float]]

    @property
    def css(self) -> str:
        return "plain" if self.style is None else f"style{self.style % len(STYLES)}"


@dataclass(frozen=True)
class Chart:
    """Lines over one x.

    x_name: "t" or "epoch"; read: every quantity that can be drawn;
    choices: what a reader may choose, whose words joined by _ name a quantity;
    rest: which point of a line its row names until a reader points at another, "highest" or "last".
    """

    x_name: str
    x_label: str
    quantity: str
    read: Mapping[str, Quantity]
    choices: Mapping[str, Sequence[str]]
    rest: str
    lines: Sequence[Line]

    def quantities(self) -> list[str]:
        if not self.choices:
            return [self.quantity]
        return [f"{split}_{metric}" for split in self.choices["split"] for metric in self.choices["metric"]]


def wants_log(chart: Chart, quantity: str) -> bool:
    """As the figure of `modeconn plot` decides it: a loss that spans more than a factor of 20."""
    values = [v for line in chart.lines for v in line.y[quantity] if math.isfinite(v)]
    return chart.read[quantity].log and bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def chart_data(chart: Chart) -> dict[str, Any]:
    """Everything the script needs, as figures in the SVG's coordinates and texts that are ready to be shown."""
    x_low, x_high = _x_range(chart)
    scale = (RIGHT - LEFT) / (x_high - x_low)
    digits = 4 if chart.x_name == "t" else 0
    return {
        "choices": {k: list(v) for k, v in chart.choices.items()},
        "caption": _caption(chart),
        "names": [line.name for line in chart.lines],
        "x": [[round(LEFT + scale * (x - x_low), 1) for x in line.x] for line in chart.lines],
        "at": [[f"{x:.{digits}f}" for x in line.x] for line in chart.lines],
        "quantities": {q: _quantity_data(chart, q) for q in chart.quantities()},
    }


def _caption(chart: Chart) -> str:
    return {"highest": "Highest measured points", "last": "Last epoch"}[chart.rest]


def _x_range(chart: Chart) -> tuple[float, float]:
    return (0.0, 1.0) if chart.x_name == "t" else (0.0, max(line.x[-1] for line in chart.lines))


def _quantity_data(chart: Chart, quantity: str) -> dict[str, Any]:
    lines = []
    for line in chart.lines:
        y = line.y[quantity]
        top = max(range(len(y)), key=lambda i: y[i] if math.isfinite(y[i]) else -math.inf)
        lines.append(
            {
                "value": [*map(chart.read[quantity].text, y)],
                "se": [f"{s:.2g}" if math.isfinite(s) else "–" for s in line.se.get(quantity, [])],
                "rest": top if chart.rest == "highest" else len(y) - 1,
            }
        )
    return {
        "title": chart.read[quantity].title,
        "start": "log" if wants_log(chart, quantity) else "linear",
        "lines": lines,
        "linear": _view(chart, quantity, log=False),
        "log": _view(chart, quantity, log=True),
    }


def _view(chart: Chart, quantity: str, log: bool) -> dict[str, Any] | None:
    """Ticks and lines on one scale; None for a logarithm of nothing positive."""
    triples = [list(zip(*_with_band(line, quantity), strict=True)) for line in chart.lines]
    known = [t for line in triples for t in line if math.isfinite(t[0])]
    top = max((high for _, _, high in known), default=1.0)
    if log:
        positive = [value for value, _, _ in known if value > 0]
        if not positive:
            return None
        ticks = _log_ticks(min(positive), top)
    else:
        bottom = min((low for _, low, _ in known), default=0.0)
        ticks = _linear_ticks(0.0 if bottom < 0.5 * top else bottom, top)

    def height(value: float) -> float | None:
        if not math.isfinite(value):
            return None
        low, high = ticks[0], ticks[-1]
        if log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)

    marked = [t for t in ticks if not log or _is_power_of_ten(t)] if len(ticks) > 8 else ticks
    return {
        "ticks": [[height(t), f"{t:.6g}"] for t in marked[:: math.ceil(len(marked) / 8)]],
        "lines": [
            {part: [height(t[i]) for t in line] for i, part in enumerate(("y", "low", "high"))} for line in triples
        ],
        "floor": log and any(value <= 0 for value, _, _ in known),
    }


def _with_band(line: Line, quantity: str) -> tuple[list[float], list[float], list[float]]:
    y = list(line.y[quantity])
    half = [1.96 * s if math.isfinite(s) else 0.0 for s in line.se.get(quantity, [0.0] * len(y))]
    return y, [v - h for v, h in zip(y, half, strict=True)], [v + h for v, h in zip(y, half, strict=True)]


def _linear_ticks(low: float, high: float) -> list[float]:
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if rough <= m * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives, from just below to just above."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    start = max(i for i, v in enumerate(every) if v <= low * (1 + 1e-9))
    stop = min(i for i, v in enumerate(every) if v >= high * (1 - 1e-9))
    return every[start : max(stop, start + 1) + 1]


def _is_power_of_ten(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9


# ------------------------------------------------------------------------------------------------------ drawing


def draw(chart: Chart, data: Mapping[str, Any], number: int) -> Markup:
    """The chart as it is at first, with a key that holds a value of every line; number: its data, to the script."""
    quantity = data["quantities"][chart.quantity]
    view = quantity[quantity["start"]]
    band, lines, dots = [], [], []
    for line, x, points, texts in zip(chart.lines, data["x"], view["lines"], quantity["lines"], strict=True):
        rest = texts["rest"]
        band.append(tag("path", class_=f"band {line.css}", d=_outline(x, points["low"], points["high"])))
        lines.append(tag("path", class_=f"line {line.css}", d=_trace(x, points["y"]), stroke_dasharray=line.dash))
        height = BOTTOM if points["y"][rest] is None else points["y"][rest]
        dots.append(tag("circle", class_=f"dot {line.css}", cx=f"{x[rest]:g}", cy=f"{height:g}", r=3.5))
    ticks = tag("g", *(_tick(height, label) for height, label in view["ticks"]), class_="ticks")
    here = tag("line", class_="here", x1=LEFT, x2=LEFT, y1=TOP, y2=BOTTOM)
    names = ", ".join(line.name for line in chart.lines)
    svg = tag(
        "svg",
        *(ticks, _x_axis(chart), here, *band, *lines, *dots),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{quantity['title']} against {chart.x_name}: {names}. The table below holds values.",
    )
    title = tag("p", tag("span", quantity["title"], class_="title"), " ", tag("span", scale_note(quantity)))
    return tag("figure", title, svg, _key(chart, data), class_="chart", data_chart=number, data_quantity=chart.quantity)


def scale_note(quantity: Mapping[str, Any]) -> str:
    return "log scale" if quantity["start"] == "log" else ""


def _x_axis(chart: Chart) -> Markup:
    low, high = _x_range(chart)
    ticks = [0, 0.25, 0.5, 0.75, 1] if chart.x_name == "t" else [t for t in _linear_ticks(low, high) if t <= high]
    scale = (RIGHT - LEFT) / (high - low)
    labels = [tag("text", f"{t:g}", x=f"{LEFT + scale * (t - low):.1f}", y=BOTTOM + 15) for t in ticks]
    line = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM)
    return tag("g", line, *labels, tag("text", chart.x_label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 6), class_="axis")


def _tick(height: float, label: str) -> Markup:
    line = tag("line", x1=LEFT, x2=RIGHT, y1=f"{height:g}", y2=f"{height:g}")
    return tag("g", line, tag("text", label, x=LEFT - 6, y=f"{height + 4:g}"))


def _trace(x: Sequence[float], y: Sequence[float | None]) -> str:
    """An SVG path through the points, broken where there is none."""
    parts, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if py is None:
            pen = "M"
            continue
        parts.append(f"{pen}{px:g} {py:g}")
        pen = "L"
    return "".join(parts)


def _outline(x: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> str:
    known = [(px, a, b) for px, a, b in zip(x, low, high, strict=True) if a is not None and b is not None]
    there = "L".join(f"{px:g} {b:g}" for px, _, b in known)
    back = "L".join(f"{px:g} {a:g}" for px, a, _ in reversed(known))
    return f"M{there}L{back}Z" if known else ""


def swatch(line: Line) -> Markup:
    stroke = tag("line", class_=f"line {line.css}", x1=1, x2=27, y1=5, y2=5, stroke_dasharray=line.dash)
    return tag("svg", stroke, viewBox="0 0 28 10", class_="swatch", aria_hidden="true")


def _key(chart: Chart, data: Mapping[str, Any]) -> Markup:
    """Which line is which, and its value where the dot is."""
    quantity = data["quantities"][chart.quantity]
    with_errors = any(line.se for line in chart.lines)
    heads = ["", chart.x_name, "value", *(["s.e."] if with_errors else [])]
    rows = []
    for line, at, texts in zip(chart.lines, data["at"], quantity["lines"], strict=True):
        rest = texts["rest"]
        cells = [at[rest], texts["value"][rest], *([f"± {texts['se'][rest]}"] if with_errors else [])]
        name = tag("th", swatch(line), " ", line.name, scope="row")
        rows.append(tag("tr", name, *(tag("td", cell) for cell in cells)))
    head = [tag("th", h, scope="col") if h else tag("td") for h in heads]
    top = tag("thead", tag("tr", *head))
    return tag("table", tag("caption", data["caption"]), top, tag("tbody", *rows), class_="key")
