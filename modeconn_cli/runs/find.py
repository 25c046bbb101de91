"""Finding run directories again, and removing those that nothing needs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.runs.directory import SMALL, damage_of, read_json, version_number, writable
from modeconn_cli.runs.lock import IN_USE, LOCK, OWNER, Lock, held, used


@dataclass(frozen=True)
class Found:
    """A run directory on disk."""

    folder: Path

    @property
    def stage(self) -> str:
        return self.folder.parent.parent.name

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def number(self) -> int:
        """N of its version."""
        return version_number(self.version) or 0

    @property
    def digest(self) -> str:
        return self.name.rsplit("-", 1)[-1]

    @property
    def status(self) -> str:
        """ "done", "unfinished", or which file is damaged, as far as it is soon seen: see :attr:`damage`."""
        return damage_of(self.folder, SMALL) or "done"

    @property
    def damage(self) -> str:
        """What keeps anything from building on it: "unfinished", or which file is damaged; empty where it is whole."""
        return damage_of(self.folder)

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files; empty where it is not there or cannot be read, which :attr:`status` says."""
        return read_json(self.folder / name)

    @property
    def upstream(self) -> list[Path]:
        """The directories of the runs that it was made from, as they were then."""
        recorded = self.read("provenance.json").get("upstream", [])
        return [Path(u) for u in recorded if isinstance(u, str)] if isinstance(recorded, list) else []

    @property
    def kind(self) -> str:
        """What kind of result it is: endpoint, aligned, merged, curve, path or picture; "" for any other."""
        recorded = self.read("provenance.json")
        if "kind" in recorded:
            return str(recorded["kind"])
        summary = self.read("summary.json")  # of a run from before kinds were recorded
        marks = {"barriers": "path", "merged": "merged", "objective_after": "aligned", "metrics": "endpoint"}
        by_summary = next((kind for key, kind in marks.items() if key in summary), "")
        if by_summary:
            return by_summary
        files = {"checkpoint.safetensors": "curve", "plot.png": "picture"}
        return next((kind for name, kind in files.items() if (self.folder / name).exists()), "")

    @property
    def groups(self) -> list[str]:
        """The groups of the configuration that the result depends on."""
        recorded = self.read("provenance.json")
        if isinstance(recorded.get("groups"), list):
            return [*map(str, recorded["groups"])]
        own = {"endpoint": ["dataset", "architecture", "task", "endpoints"], "curve": ["seed", "rebasin", "curve"]}
        own |= {"path": ["rebasin", "interpolation"], "aligned": ["rebasin"], "merged": ["rebasin"]}
        return [*dict.fromkeys([g for u in upstream_of(self) for g in u.groups] + own.get(self.kind, []))]

    def size(self) -> int:
        """Bytes on disk."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())


def find_all(root: Path) -> list[Found]:
    """Every run directory under an output directory, oldest first."""
    folders = [p for p in root.glob("*/*/v*") if is_version(p) and p.parts[-3] != IN_USE]
    return [Found(p) for p in sorted(folders, key=lambda p: (p.stat().st_mtime, str(p)))]


def run_names(root: Path) -> list[str]:
    """STAGE/NAME of everything there, to choose from."""
    return sorted({f"{r.stage}/{r.name}" for r in find_all(root)})


def find(root: Path, wanted: str) -> Found:
    """The run a person means: a directory, or the beginning of a digest or name (its newest finished version).

    The name of a stage is its newest finished run.

    Raises:
        UserError: none or several fit.
    """
    given = Path(wanted)
    for folder in (given, given.parent):
        if is_version(folder):
            return Found(folder)
    every = find_all(root)
    fitting = [r for r in every if r.folder.parent == given or (given.is_dir() and r.folder.parent.samefile(given))]
    if not fitting:
        bare, _, version = wanted.partition("/v")
        stage, slash, bare = bare.rpartition("/")
        fitting = [
            r
            for r in every
            if (r.digest.startswith(bare) or r.name.startswith(bare))
            and (not slash or r.stage == stage)
            and (not version or r.version == f"v{version}")
        ]
        if not fitting and (of_stage := [r for r in every if r.stage == wanted.rstrip("/")]):
            return next((r for r in reversed(of_stage) if r.status == "done"), of_stage[-1])
    names = sorted({f"{r.stage}/{r.name}" for r in fitting})
    if len(names) > 1:
        raise UserError(
            f"{wanted!r} fits {len(names)} runs: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}; "
            "give more of it: the stage as STAGE/NAME, the digest at its end."
        )
    if not fitting:
        raise UserError(f"no run {wanted!r} under {root}/: `modeconn runs list` shows what is there.")
    done = [r for r in fitting if r.status == "done"]
    return max(done or fitting, key=lambda r: r.number)


def is_version(folder: Path) -> bool:
    """Whether a place is the directory of a run."""
    return version_number(folder.name) is not None and folder.is_dir()


@dataclass(frozen=True)
class Removal:
    """A run directory that nothing kept needs, and why it is not kept itself."""

    run: Found
    why: str


def removable(root: Path, stages: Collection[str], keep: Sequence[str] = ()) -> list[Removal]:
    """What can go: without ``keep``, versions that a newer finished one replaced, and damaged ones.

    With ``keep``, everything but runs whose STAGE/NAME holds one of these texts. Only what modeconn wrote goes, by one
    of ``stages``. What a kept run is built on stays, and so does what another process is computing or works with, and
    what that is built on.

    Raises:
        UserError: a text of ``keep`` is in no run's name.
    """
    every = find_all(root)
    newest: dict[Path, int] = {}
    for run in every:
        if run.status == "done":
            newest[run.folder.parent] = max(newest.get(run.folder.parent, 0), run.number)
    for text in keep:
        if not any(text in f"{r.stage}/{r.name}" for r in every):
            raise UserError(f"--keep {text}: no run has this in its name; `modeconn runs list` shows what is there.")
    at_work = used(root)

    def reason(run: Found) -> str | None:
        if run.stage not in stages or not is_ours(run) or run.folder.parent.resolve() in at_work:
            return None
        if keep and not any(text in f"{run.stage}/{run.name}" for text in keep):
            return "not among those to keep"
        if run.status not in ("done", "unfinished"):
            return run.status
        last = newest.get(run.folder.parent, 0)
        return f"v{last} is newer" if run.number < last else None

    reasons = {run: reason(run) for run in every}
    by_place = {run.folder.parts[-3:]: run for run in every}
    needed: set[Found] = set()
    waiting = [run for run, why in reasons.items() if why is None or held(run.folder.parent)]
    while waiting:
        run = waiting.pop()
        if run not in needed:
            needed.add(run)
            above = [by_place.get(u.parts[-3:]) for u in run.upstream]
            waiting += [r for r in above if r is not None]
    return [Removal(r, why) for r, why in reasons.items() if why is not None and r not in needed]


def is_ours(run: Found) -> bool:
    """Whether modeconn wrote a directory: it has a configuration and a provenance, of which one may be damaged."""
    files = [run.folder / name for name in ("config.yaml", "provenance.json")]
    if not all(f.is_file() for f in files):
        return False
    if "modeconn" in run.read("provenance.json"):
        return True
    try:
        beginning = files[0].read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return beginning.startswith("seed:") and "\narchitecture:" in beginning and "\nruntime:" in beginning


def remove(run: Found) -> bool:
    """Delete a run directory; it is whole or gone, wherever this is stopped. False where it is in use by now."""
    place = run.folder.parent
    gone = run.folder.with_name(f".{run.folder.name}.removed")
    with writable(run.folder), Lock(place) as lock:
        if not lock.take():
            return False
        run.folder.rename(gone)
        for leftover in place.glob(".v*.removed"):
            shutil.rmtree(leftover)
        if {p.name for p in place.iterdir()} <= {LOCK, OWNER}:
            shutil.rmtree(place)
    return True


def upstream_of(run: Found) -> list[Found]:
    """The runs that a run was made from, looked for beside it first: an output directory may have been moved."""
    found = []
    for folder in run.upstream:
        beside = run.folder.parents[2].joinpath(*folder.parts[-3:])
        found.append(Found(beside if beside.is_dir() else folder))
    return found


def endpoints_of(run: Found) -> tuple[str, ...]:
    """The digests of the endpoints that a run's results stand on, in order."""
    return tuple(endpoint.digest for endpoint in endpoints_behind(run))


def endpoints_behind(run: Found) -> list[Found]:
    """The endpoints that a run's results stand on, in order; itself, for an endpoint."""
    if run.kind == "endpoint":
        return [run]
    above = [u for u in upstream_of(run) if u.folder != run.folder]
    return [*dict.fromkeys(endpoint for u in above for endpoint in endpoints_behind(u))]


def stands_on_curve(run: Found) -> bool:
    """Whether a measured path is that of a fitted curve, and not the straight line."""
    return any(above.kind == "curve" for above in upstream_of(run))


def require_done(run: Found) -> Found:
    """A run that is whole, or RunFailed saying how it is not."""
    if run.damage:
        raise RunFailed(how_it_is_not_whole(run))
    return run


def require_undamaged(run: Found) -> Found:
    """A run whose files are as they were finished; one that is still at work may be referred to by file.

    Raises:
        UserError: naming the file that is damaged.
    """
    if run.damage not in ("", "unfinished"):
        raise UserError(how_it_is_not_whole(run))
    return run


def run_around(file: Path) -> list[Path]:
    """The directory of the run that a file lies in, if it does.

    Raises:
        UserError: that run is damaged.
    """
    return [require_undamaged(Found(file.parent)).folder] if is_version(file.parent) else []


def how_it_is_not_whole(run: Found) -> str:
    """One line about a run that is unfinished or damaged, and what to do."""
    how = run.damage
    if how == "unfinished":
        return f"{run.folder} is unfinished; run its command again to finish it."
    return f"{run.folder} is damaged: {how}. Run its command again, which computes it anew."
