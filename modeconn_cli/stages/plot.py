"""plot: every path between two endpoints in one figure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError
from modeconn_cli.report.choose import choose_measured
from modeconn_cli.report.plots import save
from modeconn_cli.report.tables import heading, read_paths
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Identity, Run, claim, writable
from modeconn_cli.runs.provenance import provenance
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.stage import Stage


class Plot(Stage):
    """plot.png and plot.svg of measured paths that share their endpoints."""

    name = "plot"
    makes = "picture"

    def __init__(self, context: Context, paths: Sequence[MeasuredPath]) -> None:
        super().__init__(context, paths)
        self.paths = list(paths)

    @property
    def label(self) -> str:
        return f"{self.context.label}-{self.paths[-1].pair}"

    def fields(self) -> dict[str, Any]:
        return {}

    def compute(self, run: Run) -> Result:
        found = draw_into(run, [p.result.folder for p in self.paths])
        self.context.trackers.figure("paths", run.folder / "plot.png")
        return found


def draw_into(run: Run, folders: Sequence[Path]) -> Result:
    """Write plot.png and plot.svg of measured paths into a run directory."""
    with run.writing("plot.png") as png, run.writing("plot.svg") as svg:
        write_figure(folders, {"png": png, "svg": svg})
    return Result(heading(read_paths(folders)), pictures=["plot.png"])


def write_figure(folders: Sequence[Path], files: Mapping[str, Path]) -> None:
    """Draw measured paths from their run directories into a file of each kind."""
    paths = read_paths(folders)
    save(paths, heading(paths), files)


def plot_runs(
    root: Path, wanted: Sequence[str], output: Path | None, say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Draw the measured paths that a person means; the files drawn. ``say`` is told of runs that are left out.

    Raises:
        UserError: as choose_measured, or an unknown kind of file.
    """
    if output is not None and output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {output}: end it in .png, .svg or .pdf.")
    chosen = choose_measured(root, wanted, say=say)
    folders = [r.folder for r in chosen]
    if output is not None:
        with writable(output, "--output FILE"):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_figure(folders, {output.suffix[1:]: output})
        return [output]
    labels = [r.name.rsplit("-", 2)[0].split("-") for r in chosen]
    shared = itertools.takewhile(lambda words: len({*words}) == 1, zip(*labels, strict=False))
    label = "-".join(words[0] for words in shared) or "paths"
    identity = Identity(Plot.name, Plot.VERSION, label, {}, [r.digest for r in chosen])
    with claim(identity, root, False, lambda _: None) as run:
        if run.status != "cached":
            with writable(run.folder):
                draw_into(run, folders).write(run)
                made = {"kind": Plot.makes, "groups": list(dict.fromkeys(g for r in chosen for g in r.groups))}
                run.write_json("provenance.json", provenance(folders, made))
                run.write_text("config.yaml", (folders[-1] / "config.yaml").read_text(encoding="utf-8"))
                run.finish()
    return [run.folder / "plot.png", run.folder / "plot.svg"]
