"""The runs that a person means: measured paths for a picture, and what a report is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modeconn_cli.errors import UserError
from modeconn_cli.report.gather import whole
from modeconn_cli.report.tables import drawing_order
from modeconn_cli.runs.find import Found, endpoints_of, find, find_all, require_done
from modeconn_cli.work.command import first_command


@dataclass(frozen=True)
class Reported:
    """What a report is about: measured paths, means of several networks, and results of any other stage."""

    paths: Sequence[Found] = ()
    means: Sequence[Found] = ()
    others: Sequence[Found] = ()


def choose_measured(
    root: Path, wanted: Sequence[str], everything: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[Found]:
    """The measured paths that a person means, each in its newest version.

    One run: every path between its endpoints. Several: just those. None: those between the endpoints of the newest,
    or ``everything``. ``say`` is told of damaged runs, which are left out.

    Raises:
        UserError: no such run, or nothing measured between its endpoints.
    """
    measured = [r for r in whole(find_all(root), say) if r.kind == "path"]
    if not measured:
        raise UserError(f"nothing has been measured under {root}/ yet: `modeconn {first_command().name}` first.")
    if len(wanted) > 1:
        chosen = [require_done(find(root, w)) for w in wanted]
        unmeasured = [str(r.folder) for r in chosen if r.kind != "path"]
        if unmeasured:
            raise UserError(f"{unmeasured[0]} is not a measured path; several runs must each be one.")
        return list({r.folder.resolve(): r for r in chosen}.values())
    if everything and not wanted:
        fitting = measured
    else:
        origin = find(root, wanted[0]) if wanted else measured[-1]
        if origin.status != "unfinished":
            require_done(origin)
        ends = endpoints_of(origin) if origin.status != "unfinished" else ()
        fitting = [r for r in measured if ends and endpoints_of(r) == ends]
        if not fitting:
            raise UserError(
                f"{origin.folder}: no path between its endpoints has been measured; "
                f"`modeconn {first_command().name}` does it."
            )
    newest = {(r.stage, r.name): r for r in sorted(fitting, key=lambda r: r.number)}
    return sorted(newest.values(), key=drawing_order)


def choose_reported(root: Path, wanted: Sequence[str], say: Callable[[str], None] = lambda _: None) -> Reported:
    """What a report is about: the runs that are named and the paths that go with them, or everything.

    ``say`` is told of damaged runs, which are left out.

    Raises:
        UserError: as choose_measured, where there is nothing else.
    """
    done = sorted(whole(find_all(root), say), key=lambda r: r.number)
    means = [r for r in done if r.kind == "merged"]
    others = [r for r in done if not r.kind and r.read("summary.json")]
    if not wanted:
        means, others = (list({(r.stage, r.name): r for r in runs}.values()) for runs in (means, others))
        measured = any(r.kind == "path" for r in done) or not (means or others)
        return Reported(choose_measured(root, [], everything=True) if measured else [], means, others)
    found = {w: find(root, w).folder.resolve() for w in wanted}
    named = [[r for r in runs if r.folder.resolve() in found.values()] for runs in (means, others)]
    apart = {r.folder.resolve() for runs in named for r in runs}
    paths = [w for w, folder in found.items() if folder not in apart]
    return Reported(choose_measured(root, paths) if paths else [], *named)
