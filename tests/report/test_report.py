"""modeconn report: one page that says what the files say, loads nothing, and draws its charts in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cli_helpers import SPIRALS, no_pictures, ok, refused, tree

from modeconn_cli.report.choose import Reported
from modeconn_cli.report.page import make_page
from modeconn_cli.report.plots import save, style
from modeconn_cli.report.tables import heading, read_path, read_paths, verdict_sentence
from modeconn_cli.runs.find import Found

METRICS = [f"{split}_{metric}" for split in ("train", "test") for metric in ("loss", "nll", "error")]
CONVENTIONS = ["above_line", "above_mean", "above_max", "midpoint"]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
TEXT = {"error": "{:.2f}", "lr": "{:.4g}"}  # of a quantity by its last word; of any other, four digits
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def shown(value: float, quantity: str) -> str:
    """A measured value as people read it."""
    return TEXT.get(quantity.split("_")[-1], "{:.4f}").format(value)


class Page(HTMLParser):
    """A page taken apart: its elements, the text of some, and the <data> elements by table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.elements, self.figures, self._open = html, [], [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "data":
            self._open.append(dict(attrs)["value"])

    def handle_data(self, data: str) -> None:
        if self._open:
            self.figures.append((float(self._open.pop() or "nan"), data))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def charts(self) -> list[dict[str, Any]]:
        found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', self.html, re.S)
        assert found is not None
        charts: list[dict[str, Any]] = json.loads(found[1])
        return charts


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two replicates of a tiny experiment; the directory that holds outputs/."""
    place = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        no_pictures(patch)
        ok("run", *SPIRALS, "pipeline.replicates=[0,1]", "-q")
    return place


@pytest.fixture
def page(lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Page:
    """The page about everything there."""
    monkeypatch.chdir(lab)
    file = tmp_path / "all.html"
    assert ok("report", "-o", str(file)).out == f"{file}\n"
    return Page(file.read_text(encoding="utf-8"))


def measured(lab: Path) -> list[Path]:
    return sorted(p.parent for p in lab.glob("outputs/*/*/v1/path.csv"))


# -------------------------------------------------------------------------------------------------- what it says


def test_every_figure_of_the_tables_is_the_files(page: Page, lab: Path) -> None:
    allowed = set()
    rows: list[dict[str, Any]] = ok(
        "gather", "--json", *(f"--metric={m}.{c}" for m in METRICS for c in CONVENTIONS)
    ).json["rows"]
    for row in rows:
        allowed |= {v for a in row["metrics"].values() for k, v in a.items() if k != "n"}
    values = dict(page.figures)
    for folder in measured(lab):
        summary = json.loads((folder / "summary.json").read_text())
        for metric in METRICS:
            expected = [summary["columns"][metric][k] for k in ("start", "end", "max")]
            for c in CONVENTIONS:
                expected += [summary["barriers"][metric][c][k] for k in ("value", "low", "high")]
            assert set(expected) <= set(values)
            allowed |= {*expected}
    assert {value for value, _ in page.figures} <= allowed
    assert {value for row in rows for value in (row["metrics"]["test_error.midpoint"]["mean"],)} <= set(values)
    for value, text in page.figures:
        assert text in (f"{value:.2f}", f"{value:.4f}")
    assert [row["n"] for row in rows] == [2, 2]
    assert page.html.count(", n = 2<") == 2


def test_charts_hold_the_files_points(page: Page, lab: Path) -> None:
    found = [c for c in page.charts if c["choices"]]
    assert len(found) == 2
    for chart, name in zip(found, ("s0-1", "s2-3"), strict=True):
        folders = sorted((f for f in measured(lab) if name in str(f)), key=lambda f: f.parts[-3] != "interpolate")
        for i, folder in enumerate(folders):
            table = pd.read_csv(folder / "path.csv")
            assert chart["at"][i] == [f"{t:.4f}" for t in table["t"]]
            for metric in METRICS:
                line = chart["quantities"][metric]["lines"][i]
                assert line["value"] == [shown(v, metric) for v in table[metric]]
                assert line["se"] == [f"{v:.2g}" for v in table[f"{metric}_se"]]
                assert line["rest"] == table[metric].argmax()
                for scale in ("linear", "log"):
                    view = chart["quantities"][metric][scale]
                    heights = [h for lines in view["lines"] for h in lines["y"] + lines["low"] + lines["high"]]
                    assert all(10 <= h <= 198 for h in heights)
                    order = [h for _, h in sorted(zip(table[metric], view["lines"][i]["y"], strict=True))]
                    assert order == sorted(order, reverse=True)  # what is larger is drawn higher


def test_training_curves_are_those_of_every_run_behind_the_paths(page: Page, lab: Path) -> None:
    charts = [c for c in page.charts if not c["choices"]]
    assert [list(c["quantities"]) for c in charts] == [["loss"], ["error"], ["lr"]] * 2
    assert charts[0]["names"] == ["seed 0", "seed 1", "Bezier curve, 1 bend"]
    table = pd.read_csv(next(lab.glob("outputs/fit-curve/*s0-1*/v1/metrics.csv")))
    for chart, quantity, column in zip(
        charts[:3], ("loss", "error", "lr"), ("train_loss", "train_error", "lr"), strict=True
    ):
        assert chart["quantities"][quantity]["lines"][2]["value"] == [shown(v, quantity) for v in table[column]]


def test_verdicts_commands_configuration_and_provenance(page: Page, lab: Path) -> None:
    for folder in measured(lab):
        assert verdict_sentence(read_path(folder)) in page.html
        provenance = json.loads((folder / "provenance.json").read_text())
        for key in ("git", "python", "torch", "numpy", "platform", "host", "dataset_sha256", "seconds"):
            assert f">{provenance[key]}<" in page.html
        assert folder.parent.name in page.html
        assert page.html.count("modeconn run dataset=two_spirals") == 2
        config = re.search(r"<details><summary>.*?<pre[^>]*>(.*?)</pre>", page.html, re.S)
        assert config is not None
        assert yaml.safe_load(config[1])["endpoints"]["epochs"] == 1
    assert page.count("details") == 4


def test_it_loads_nothing_and_its_parts_are_labelled(page: Page) -> None:
    assert "default-src 'none'" in page.html
    for name, attributes in page.elements:
        assert not {"src", "srcset", "data", "action", "poster", "style"} & {*attributes}, (name, attributes)
        assert not any(a.startswith("on") for a in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert name not in ("link", "iframe", "object", "embed", "img", "base", "form")
        if name == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
        if name == "svg":
            assert "aria-label" in attributes or attributes["aria-hidden"] == "true"
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page.html)
    assert page.count("table") == page.count("caption")
    assert page.count("h1") == 1


def test_the_charts_are_drawn_without_a_script(page: Page) -> None:
    """Four charts along paths and six of training: two lines with bands each, and three."""
    lines = [a for name, a in page.elements if name == "path" and a["class"].startswith("line")]
    bands = [a for name, a in page.elements if name == "path" and a["class"].startswith("band")]
    assert len(lines) == 4 * 2 + 6 * 3
    assert all(a["d"].startswith("M") for a in lines)
    assert len(bands) == len(lines)
    assert "stroke-dasharray" not in lines[0]


def test_names_from_files_cannot_inject(lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "outputs", tmp_path / "outputs")
    folders = measured(tmp_path)
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        task = {k: EVIL if isinstance(v, str) else v for k, v in summary["task"].items()}
        task["columns"] = [{**c, "title": EVIL, "unit": EVIL} for c in task["columns"]]
        summary |= {"path": EVIL, "task": task}
        summary["intervals"]["method"] = EVIL
        (folder / "summary.json").write_text(json.dumps(summary))
        provenance = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**provenance, "command": EVIL, "host": EVIL}))
        (folder / "config.yaml").write_text(json.dumps({"dataset": {"name": EVIL}}))
    page = Page(make_page(Reported([Found(folder) for folder in folders])))
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert "<script>alert" not in page.html
    assert page.charts[0]["names"][0].startswith(EVIL)  # the script writes it as text
    assert "innerHTML" not in page.html


def test_methods_of_rebasin_are_told_apart_and_means_of_several_networks_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    common = [*SPIRALS, "endpoints.seeds=[0,1,2]"]
    pair = [*SPIRALS, "endpoints.seeds=[0,1]"]
    for method in ("weight", "activation"):
        ok("rebasin", *pair, f"rebasin={method}")
    ok("rebasin", *common, "rebasin=merge_many")
    titles = [p.title for p in read_paths(measured(tmp_path))]
    assert sorted(titles) == sorted(
        ["segment"]
        + [f"aligned segment{r} ({m})" for m in ("weight", "activation") for r in ("", " + REPAIR", " + RESCALE")]
    )
    assert heading([read_path(f) for f in measured(tmp_path)]) == "mlp on two_spirals, endpoints seed 0 and seed 1"
    found = [json.loads(f.read_text()) for f in tmp_path.glob("outputs/rebasin/*/v1/summary.json")]
    (merged,) = (f for f in found if "merged" in f)
    (folder,) = tmp_path.glob("outputs/rebasin/*merge_many*/v1")
    for words, paths in (([], True), ([str(folder)], False)):
        ok("report", *words, "-o", "page.html")
        page = Page(Path("page.html").read_text(encoding="utf-8"))
        values = {value for value, _ in page.figures}
        for row in merged["merged"]:
            assert {row["test_error"], row["test_error_above_mean"]["low"]} <= values
            assert row["network"] in page.html
        assert "the mean of seed 0, seed 1, seed 2, aligned by MergeMany" in page.html
        assert ("aligned segment + REPAIR (weight)" in page.html) == paths
        for after in (f["objective_after"] for f in found if "objective_after" in f):
            assert (f"<td>{after:.4g}</td>" in page.html) == paths


def test_a_picture_of_many_paths_keeps_its_panels_and_tells_lines_apart(lab: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    found = read_path(measured(lab)[0])
    many = [replace(found, title=f"aligned segment + REPAIR (straight-through) {i}") for i in range(18)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        save(many, "endpoints " + "seed 0 and seed 1, " * 8, {"png": tmp_path / "x.png"})
    (figure,) = drawn
    figure.canvas.draw()
    whole = figure.get_window_extent()
    for axes in figure.axes:
        assert axes.get_window_extent().height > 1.5 * figure.dpi
    for part in (*figure.legends, figure._suptitle):
        box = part.get_window_extent()
        assert box.x0 >= whole.x0
        assert box.x1 <= whole.x1
    styles = [style(i) for i in range(24)]
    assert len({*styles}) == 24


# ------------------------------------------------------------------------------------------------ how it is asked


def test_the_same_bytes_twice_wherever_the_runs_lie(
    page: Page, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lab / "outputs", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path / "moved")
    answer = ok("report", "--output-dir", "moved", "--json").json
    assert answer == {"command": "report", "file": "moved/report.html"}
    written = (tmp_path / "moved/report.html").read_text(encoding="utf-8")
    assert written == page.html
    ok("report", "--output-dir", "moved")
    after = tree(tmp_path / "moved")
    assert after.pop("report.html") == written.encode()
    assert after == before


def test_one_run_means_its_pair_and_several_mean_themselves(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    found = measured(lab)
    segments = [str(f) for f in found if f.parts[-3] == "interpolate"]
    file = tmp_path / "deep" / "a.html"
    ok("report", segments[0], "-o", str(file))
    one = Page(file.read_text())
    assert one.charts[0]["names"] == ["segment", "Bezier curve, 1 bend"]
    assert "Overview" not in one.html
    assert "seed 2" not in one.html
    ok("report", *segments, "-o", str(file))
    assert [c["names"] for c in Page(file.read_text()).charts if c["choices"]] == [["segment"], ["segment"]]


def test_pairs_of_one_name_are_told_apart(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(lab / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    no_pictures(monkeypatch)
    ok("interpolate", *SPIRALS, "endpoints.lr=0.01", "endpoints.momentum=0.8", "-q")
    ok("interpolate", *SPIRALS, "interpolation.points=5", "-q")
    ok("report")
    html = (tmp_path / "outputs/report.html").read_text()
    name = r"mlp on two_spirals, endpoints seed 0 and seed 1 \(endpoints.lr=0.01, endpoints.momentum=0.8, \w{6}-\w{6}\)"
    assert re.search(rf"<h2>{name}</h2>", html)
    assert "<p>mlp on two_spirals: 3 pairs of endpoints, 6 measured paths, " in html
    assert "<b>segment (interpolation.points=3)</b>" in html
    assert "<b>segment (interpolation.points=5)</b>" in html


def test_refusals_are_one_line_and_write_nothing(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing has been measured under outputs/" in refused("report")
    assert tree(tmp_path) == {}
    monkeypatch.chdir(lab)
    before = tree(lab)
    assert "end it in .html" in refused("report", "-o", "a.pdf")
    assert "no run 'nothing'" in refused("report", "nothing")
    (endpoint,) = lab.glob("outputs/train-endpoints/*-s0-*/v1")
    assert "no path between its endpoints" in refused("report", str(endpoint))
    assert "--output FILE" in refused("report", "-o", "/proc/nowhere/a.html")
    (lab / "taken.html").mkdir()
    assert "cannot write" in refused("report", "-o", "taken.html")
    (lab / "taken.html").rmdir()
    assert tree(lab) == before


# --------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    def run(*flags: str) -> str:
        assert CHROMIUM is not None
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    return run


@browser
def test_a_browser_draws_it_without_an_error(page: Page, tmp_path: Path, chromium: Callable[..., str]) -> None:
    picture = tmp_path / "phone.png"
    url = f"file://{tmp_path}/all.html"
    body = re.search(r"<body[^>]*>", chromium("--dump-dom", url))
    assert body is not None
    assert body[0] == '<body data-charts="10">'
    chromium(f"--screenshot={picture}", "--window-size=390,2400", url)
    assert picture.read_bytes()[16:24] == (390).to_bytes(4, "big") + (2400).to_bytes(4, "big")


PROBE = """
const said = {}, [first, second] = document.querySelectorAll(".chart"), svg = first.querySelector(":scope > svg");
const press = (key) => svg.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const texts = (row) => [...row.querySelectorAll("td")].map((cell) => cell.textContent);
const cells = (chart) => [...chart.querySelectorAll("tbody tr")].map(texts);
const caption = first.querySelector("caption");
const paths = (chart) => [...chart.querySelectorAll(".line, .band")].map((p) => p.getAttribute("d")).filter(Boolean);
said.redrawn = [...document.querySelectorAll(".chart")].map(paths);
said.width = [innerWidth, document.documentElement.scrollWidth];
said.rest = cells(first);
press("End");
said.end = [cells(first), cells(second), svg.getAttribute("aria-valuetext"), caption.textContent];
[...first.querySelectorAll("label")].find((l) => l.textContent === "nll").querySelector("input").click();
said.nll = [cells(first), first.querySelector(".title").textContent];
const before = paths(first)[1];
first.querySelector("input[type=checkbox]").click();
said.logMoves = before !== paths(first)[1];
press("Escape");
said.again = cells(first);
const box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width * (46 + 171) / 400 }));
said.middle = cells(first);
said.buttons = document.querySelectorAll(".command button").length;
said.error = document.body.dataset.error ?? null;
parent.postMessage(JSON.stringify(said), "*");
"""
FRAME = """<body><script>onmessage = (event) => { document.body.dataset.said = event.data; }</script>
<iframe src="probed.html" width="360" height="800" style="border: 0"></iframe>"""


@browser
def test_pointing_choosing_and_keys_show_the_files_values(
    page: Page, lab: Path, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    """In a frame as wide as a phone, in a copy whose policy lets a second script drive the first."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html)
    copy = tmp_path / "probed.html"
    copy.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME)
    dom = chromium("--hide-scrollbars", "--virtual-time-budget=3000", "--dump-dom", f"file://{frame}")
    body = next(a for name, a in Page(dom).elements if name == "body")
    said = json.loads(body["data-said"] or "")
    assert said["error"] is None
    assert said["width"] == [360, 360]
    static = [a["d"] for name, a in page.elements if name == "path" and a["d"]]
    assert sorted(d for chart in said["redrawn"] for d in chart) == sorted(static)

    folders = [next(lab.glob(f"outputs/{stage}/*s0-1*/v1")) for stage in ("interpolate", "evaluate")]
    tables = [pd.read_csv(f / "path.csv") for f in folders]

    def rows(quantity: str, place: Callable[[pd.DataFrame], int]) -> list[list[str]]:
        points = [t.iloc[place(t)] for t in tables]
        return [[f"{p['t']:.4f}", shown(p[quantity], quantity), f"± {p[f'{quantity}_se']:.2g}"] for p in points]

    assert said["rest"] == rows("train_loss", lambda t: int(t["train_loss"].argmax()))
    assert said["end"][0] == rows("train_loss", lambda t: -1)
    assert said["end"][1] == rows("test_error", lambda t: -1)
    assert said["end"][2].startswith("segment at 1.0000, ")
    assert said["end"][3] == "Nearest measured points"
    assert said["nll"] == [rows("train_nll", lambda t: -1), "Train cross-entropy"]
    assert said["logMoves"]
    assert said["again"] == rows("train_nll", lambda t: int(t["train_nll"].argmax()))
    assert said["middle"] == rows("train_nll", lambda t: int((t["t"] - 0.5).abs().argmin()))
    assert said["buttons"] == 2
