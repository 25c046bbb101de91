"""plot, report, gather, reproduce, symmetries: looking at what was found and at networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from modeconn_cli.errors import UserError
from modeconn_cli.front.flags import AsJson, ConfigDir, DryRun, OutputDir, Overrides, Quiet
from modeconn_cli.front.session import Session, complain, print_json, without_nan

INTERVALS = ("t", "bootstrap")


FORMATS = ("table", "csv", "markdown", "latex")


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run directories, or beginnings of their digests or "
            "names. One run: every measured path between its endpoints. Several: "
            "just those. None: the newest.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write this .png, .svg or .pdf instead of a run directory.")
    ] = None,
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Draw train loss and test error along measured paths, in one figure (PNG and SVG)."""
    from modeconn_cli.stages.plot import plot_runs

    files = plot_runs(output_dir, runs or [], output, complain)
    if as_json:
        print_json({"command": "plot", "files": [str(f) for f in files]})
    else:
        for file in files:
            print(file)


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run directories, or beginnings of their digests or names. One run: every measured path between its "
            "endpoints. Several: just those. None: everything that has been measured.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write this .html instead of report.html in --output-dir.")
    ] = None,
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about what was measured: verdicts, charts to point at, barriers, training, provenance.

    The page is one file that loads nothing: it can be mailed, printed and opened offline.
    """
    from modeconn_cli.report.choose import choose_reported
    from modeconn_cli.report.page import write_page

    file = output or output_dir / "report.html"
    if file.suffix != ".html":
        raise UserError(f"--output {file}: end it in .html.")
    write_page(choose_reported(output_dir, runs or [], complain), file)
    print_json({"command": "report", "file": str(file)}) if as_json else print(file)


def gather(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLACE]...",
            help="Output directories, run directories, or patterns of them. None: --output-dir.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="A row for each value of this setting. None: all that differ.")
    ] = None,
    over: Annotated[
        list[str] | None, typer.Option("--over", help="Average over this setting; seeds always are.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="As test_error.max or train_loss.above_line; repeatable.")
    ] = None,
    interval: Annotated[str, typer.Option(help="Of the mean: t or bootstrap.")] = "t",
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Coverage of the interval.")] = 0.95,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or latex.")] = "table",
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Gather finished runs into one table: mean, std, n and an interval over seeds.

    modeconn gather --by architecture --over seed, or modeconn gather 'outputs/evaluate/*resnet20*' --format latex.
    """
    from modeconn_cli.front.terminal import show_gathered
    from modeconn_cli.report import formats
    from modeconn_cli.report import gather as g

    for flag, value, allowed in (("--interval", interval, INTERVALS), ("--format", form, FORMATS)):
        if value not in allowed:
            raise UserError(f"{flag} {value}: choose from {', '.join(allowed)}.")
    rows = g.gather(
        g.choose(output_dir, places or [], complain), by or [], over or [], metric or [], interval, confidence
    )
    if as_json:
        print_json({"command": "gather", "interval": interval, "confidence": confidence, "rows": without_nan(rows)})
    elif form == "csv":
        print(formats.as_csv(rows), end="")
    elif form == "table":
        show_gathered(rows, interval, confidence)
    else:
        write = {"markdown": formats.as_markdown, "latex": formats.as_latex}[form]
        print("\n\n".join(write(*formats.as_table(kind)) for kind in formats.by_kind(rows)))


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="As garipov2018-curves; see --list.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the tables, what of them can be run, and stop.")] = False,
    scale: Annotated[
        str,
        typer.Option(help="full: the paper's data and recipe; small: an hour on two cores; smoke: two minutes."),
    ] = "full",
    row: Annotated[
        list[str] | None,
        typer.Option(help="Only the row of this name, or rows whose name has it in it; may be given again."),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a published table again, and print ours beside the published figures.

    A scaled run is no reproduction, and its heading says what differs. What is not run, or cannot be yet, stays empty.
    """
    from modeconn_cli.front import reproduce as r
    from modeconn_cli.front.terminal import show_reproduction, show_tables
    from modeconn_cli.stages.run import NAME

    known = r.tables()
    if listed or name is None:
        if as_json:
            rows = [
                {"name": t.name, "title": t.content["title"], "scales": t.scales, "landed": t.landed}
                for t in known.values()
            ]
            print_json({"tables": rows})
        else:
            show_tables(list(known.values()))
        return
    if name not in known:
        from modeconn_cli.front.overrides import nearest

        raise UserError(f"no table {name!r}{nearest(name, list(known))}; there are {', '.join(known)}.")
    table = r.chosen(known[name], scale, row or [])
    parts = r.parts(table, scale, overrides or [])
    apart = r.differences(table, scale, overrides or [])
    session = Session(table.command or NAME, dry_run, as_json, quiet, sweep=True)
    session.guarded(lambda: session.run([part.job for part in parts]))
    found: list[dict[str, Any]] = []
    if not dry_run:
        for part, entry in zip(parts, session.jobs, strict=True):
            r.note_directories(part, entry.get("stages", []))
        found = r.cells(table, scale, parts, faithful=not apart)
    if as_json:
        head = {"command": "reproduce", "table": name, "scale": scale, "exit_code": session.code}
        print_json(
            {**head, "differs": apart, "notes": table.content.get("notes", []), "cells": found, "jobs": session.jobs}
        )
    else:
        show_reproduction(table.content, scale, apart, found)
    sys.exit(session.code)


def symmetries(
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write the groups there, as rebasin.groups reads them.", dir_okay=False)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input", metavar="SHAPE", help="Shape of one input, as 3,224,224, and no data set is read."),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="With --input: classes that are told apart.")] = 10,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Show an architecture's permutation groups: what may be permuted without changing its function.

    modeconn symmetries architecture=resnet20

    modeconn symmetries architecture=torchvision architecture.model=vit_b_16 --input 3,224,224
    """
    from modeconn_cli.front.compose import compose
    from modeconn_cli.front.console import aside
    from modeconn_cli.front.terminal import show_symmetries
    from modeconn_cli.stages.symmetries import groups_of

    (job,) = compose(list(overrides or []), config_dir=config_dir)
    with aside():
        found = groups_of(job.config, output, None if shape is None else (_shape(shape), classes))
    if found["not_traced"]:
        complain(
            f"{found['not_traced']}. {output} has all its tensors with every dimension in its place: give the "
            f"dimensions that may move names, and then rebasin.groups={output}."
        )
    if as_json:
        print_json({"command": "symmetries", **found})
    elif not found["not_traced"]:
        show_symmetries(found)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.replace("x", ",").split(",")
    if not all(s.strip().isdecimal() and int(s) for s in sizes):
        raise UserError(f"--input {text} is not a shape; give the sizes of one input, as 3,224,224.")
    return tuple(map(int, sizes))
