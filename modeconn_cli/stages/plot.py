"""plot: every path between two endpoints in one figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeconn_cli.errors import UserError
from modeconn_cli.report.plots import save
from modeconn_cli.report.tables import drawing_order, heading, read_paths
from modeconn_cli.runs.directory import Identity, Run, claim, writable
from modeconn_cli.runs.find import Found, endpoints_of, find, find_all, require_done
from modeconn_cli.runs.provenance import provenance
from modeconn_cli.work.context import Context
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.stage import Stage

MEASURED = ("interpolate", "evaluate")


class Plot(Stage):
    """plot.png and plot.svg of measured paths that share their endpoints."""

    name = "plot"

    def __init__(self, context: Context, paths: Sequence[MeasuredPath]) -> None:
        super().__init__(context, paths)
        self.paths = list(paths)

    @property
    def label(self) -> str:
        return f"{self.context.label}-{self.paths[-1].pair}"

    def fields(self) -> dict[str, Any]:
        return {}

    def compute(self, run: Run) -> None:
        draw_into(run, [p.result.folder for p in self.paths])
        self.context.trackers.figure("paths", run.folder / "plot.png")


def draw_into(run: Run, folders: Sequence[Path]) -> None:
    """Write plot.png and plot.svg of measured paths into a run directory."""
    with run.writing("plot.png") as png, run.writing("plot.svg") as svg:
        write_figure(folders, png, "png")
        write_figure(folders, svg, "svg")


def write_figure(folders: Sequence[Path], file: Path, kind: str) -> None:
    """Draw measured paths from their run directories into a file."""
    paths = read_paths(folders)
    save(paths, heading(paths), file, kind)


def choose_measured(root: Path, wanted: Sequence[str], everything: bool = False) -> list[Found]:
    """The measured paths that a person means, each in its newest version.

    One run: every path between its endpoints. Several: just those. None: those between the endpoints of the newest,
    or ``everything``.

    Raises:
        UserError: no such run, or nothing measured between its endpoints.
    """
    measured = [r for r in find_all(root) if r.stage in MEASURED and r.status == "done"]
    if not measured:
        raise UserError(
            f"nothing has been measured under {root}/ yet: `modeconn fit-curve` or `modeconn interpolate` first."
        )
    if len(wanted) > 1:
        chosen = [require_done(find(root, w)) for w in wanted]
        unmeasured = [str(r.folder) for r in chosen if r.stage not in MEASURED]
        if unmeasured:
            raise UserError(
                f"{unmeasured[0]} is not a measured path; several runs must each be of {' or '.join(MEASURED)}."
            )
        return list({r.folder.resolve(): r for r in chosen}.values())
    if everything and not wanted:
        fitting = measured
    else:
        origin = find(root, wanted[0]) if wanted else measured[-1]
        ends = endpoints_of(origin)
        fitting = [r for r in measured if ends and endpoints_of(r) == ends]
        if not fitting:
            raise UserError(
                f"{origin.folder}: no path between its endpoints has been measured; `modeconn fit-curve` does it."
            )
    newest = {(r.stage, r.name): r for r in sorted(fitting, key=lambda r: int(r.version[1:]))}
    return sorted(newest.values(), key=drawing_order)


def choose_reported(root: Path, wanted: Sequence[str]) -> tuple[list[Found], list[Found]]:
    """The measured paths that a person means (choose_measured), and the means of several networks: those named or all.

    Raises:
        UserError: as choose_measured, where there are no means.
    """
    done = sorted((r for r in find_all(root) if r.status == "done"), key=lambda r: int(r.version[1:]))
    means = [r for r in done if "merged" in r.read("summary.json")]
    if not wanted:
        newest = list({r.name: r for r in means}.values())
        measured = any(r.stage in MEASURED for r in done) or not newest
        return (choose_measured(root, [], everything=True) if measured else []), newest
    found = {w: find(root, w).folder.resolve() for w in wanted}
    named = [r for r in means if r.folder.resolve() in found.values()]
    others = [w for w, folder in found.items() if folder not in {r.folder.resolve() for r in named}]
    return (choose_measured(root, others) if others else []), named


def plot_runs(root: Path, wanted: Sequence[str], output: Path | None) -> list[Path]:
    """Draw the measured paths that a person means; the files drawn.

    Raises:
        UserError: as choose_measured, or an unknown kind of file.
    """
    if output is not None and output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {output}: end it in .png, .svg or .pdf.")
    chosen = choose_measured(root, wanted)
    folders = [r.folder for r in chosen]
    if output is not None:
        with writable(output, "--output FILE"):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_figure(folders, output, output.suffix[1:])
        return [output]
    labels = [r.name.rsplit("-", 2)[0].split("-") for r in chosen]
    shared = itertools.takewhile(lambda words: len({*words}) == 1, zip(*labels, strict=False))
    label = "-".join(words[0] for words in shared) or "paths"
    identity = Identity(Plot.name, Plot.VERSION, label, {}, [r.digest for r in chosen])
    with claim(identity, root, False, lambda _: None) as run:
        if run.status != "cached":
            with writable(run.folder):
                draw_into(run, folders)
                run.write_json("provenance.json", provenance([Run(f, "cached", "") for f in folders], {}))
                run.finish()
    return [run.folder / "plot.png", run.folder / "plot.svg"]
