"""runs and doctor: what is kept, and what there is to work with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from modeconn_cli.front.flags import AsJson, OutputDir
from modeconn_cli.front.session import complain, print_json
from modeconn_cli.runs.find import find, removable, remove


def doctor(
    as_json: AsJson = False, data_dir: Annotated[str | None, typer.Option(help="Also look for data sets here.")] = None
) -> None:
    """Show versions, devices, and which data sets are found or how to get them."""
    from modeconn_cli.front.doctor import examine, show

    found = examine(data_dir)
    print_json(found) if as_json else show(found)


def runs_list(
    match: Annotated[str, typer.Argument(help="Only runs whose stage, name or digest has this in it.")] = "",
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """List runs, oldest first, with what each found."""
    from modeconn_cli.front import browse

    browse.list_runs(output_dir, match, as_json)


def runs_show(
    run: Annotated[str, typer.Argument(help="Directory, or beginning of a digest or name.")],
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Show one run: its results, where it came from, its files."""
    from modeconn_cli.front import browse

    browse.show_run(output_dir, run, as_json)


def runs_compare(first: str, second: str, output_dir: OutputDir = Path("outputs"), as_json: AsJson = False) -> None:
    """Compare two runs: settings that differ, and results side by side."""
    from modeconn_cli.front import browse

    browse.compare_runs(output_dir, first, second, as_json)


def runs_path(
    run: Annotated[str, typer.Argument(help="Directory, or beginning of a digest or name.")],
    output_dir: OutputDir = Path("outputs"),
) -> None:
    """Print a run's directory, for scripts: cd "$(modeconn runs path 3f2a)"."""

    print(find(output_dir, run).folder.resolve())


def runs_gc(
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Keep only runs with this in STAGE/NAME, and what they are built on; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Remove what no kept run needs, after showing it. Without --keep: replaced versions and damaged runs."""
    from modeconn_cli.front import browse
    from modeconn_cli.work.stage import stage_names

    going = removable(output_dir, stage_names(), keep or [])
    sizes = {removal.run: removal.run.size() for removal in going}
    if not as_json:
        browse.show_removals(going, sizes, output_dir)
    asks = not (yes or dry_run or as_json) and going and sys.stdin is not None and sys.stdin.isatty()
    sure = (yes and not dry_run) or (asks and typer.confirm("Remove them?"))
    kept = [removal for removal in going if sure and not remove(removal.run)]
    for removal in kept:
        complain(f"{removal.run.folder} is in use by now and stays.")
    going = [removal for removal in going if removal not in kept]
    if as_json:
        rows = [{"directory": str(r.run.folder), "why": r.why, "bytes": sizes[r.run]} for r in going]
        size = sum(sizes[r.run] for r in going)
        print_json({"command": "runs gc", "removed": bool(sure), "bytes": size, "runs": rows})
    elif going:
        print("removed." if sure else "nothing was removed; --yes removes them.")
