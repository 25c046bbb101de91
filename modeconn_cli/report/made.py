"""How what a report shows was made: commands, versions, machines, configurations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modeconn_cli.report.gather import varied
from modeconn_cli.report.markup import Markup, row, table, tag
from modeconn_cli.results import SUMMARY
from modeconn_cli.runs.find import Found


def done_by(run: Found) -> str:
    """What made a run: its stage, or of a network that came from a file or a run that it was read from there."""
    summary = run.read(SUMMARY)
    is_read = run.kind == "endpoint" and "file" in summary
    return f"reading {summary.get('name', summary['file'])}" if is_read else run.stage


def commands(behind: Sequence[Found]) -> list[Markup]:
    """Every command that made these runs, in the order they finished."""
    made: dict[str, list[str]] = {}
    for run in sorted(behind, key=lambda r: str(r.read("DONE").get("finished", ""))):
        command = run.read("provenance.json").get("command")
        if command:
            made.setdefault(str(command), []).append(done_by(run))
    several = len(made) > 1
    return [
        tag(
            "div",
            *([tag("p", "Made ", ", ".join(dict.fromkeys(stages)), ":")] if several else []),
            tag("pre", tag("code", command)),
            class_="command",
        )
        for command, stages in made.items()
    ]


def provenance(behind: Sequence[Found], caption: str) -> list[Markup]:
    """What is the same for every run said once, the rest as a table."""
    facts = []
    for run in behind:
        p = run.read("provenance.json")
        device = {"device": p.get("device_name", p.get("device"))}
        versions = {k: p.get(k) for k in ("modeconn", "git", "python", "torch", "numpy")}
        machine = {k: p.get(k) for k in ("host", "platform", "threads")}
        facts.append({**versions, **machine, **device, "data sha256": p.get("dataset_sha256")})
    differ = varied(facts)
    common = [tag("div", tag("dt", k), tag("dd", str(v))) for k, v in facts[0].items() if k not in differ and v]
    rows = []
    for run, fact in zip(behind, facts, strict=True):
        seconds = run.read("provenance.json").get("seconds")
        finished = str(run.read("DONE").get("finished", "")).replace("T", " ")
        own = [str(fact[k]) for k in differ]
        cells = [tag("code", f"{run.name}/{run.version}"), run.digest, "" if seconds is None else f"{seconds:g}"]
        rows.append(row(done_by(run), *cells, finished, *own))
    heads = ("Stage", "Directory", "Digest", "Seconds", "Finished", *differ)
    return [tag("dl", *common, class_="facts"), table(caption, heads, rows, "runs")]


def configurations(named: Iterable[tuple[str, Found]]) -> list[Markup]:
    found = []
    for name, run in named:
        file = run.folder / "config.yaml"
        if file.exists():
            title = tag("summary", f"Configuration of {name}")
            found.append(tag("details", title, tag("pre", file.read_text(encoding="utf-8"), tabindex=0)))
    return found
