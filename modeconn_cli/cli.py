"""The commands. Heavy imports wait until a command needs them, so that --help and completion are quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from modeconn_cli import __version__
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.front.export import export
from modeconn_cli.front.session import Session, complain, print_json, without_nan
from modeconn_cli.plugins import load
from modeconn_cli.runs.find import find, removable, remove
from modeconn_cli.work.command import COMMANDS, PANELS, Command

# The base of every complaint about a command line, wherever this version of Typer keeps it.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

ABOUT = """Are separately trained networks joined in weight space by paths of low loss?

[bold]modeconn fit-curve[/] trains two networks that differ in their seed, measures the straight line between them, \
bends a curve around the barrier, and says with intervals whether each path joins them. Results go to outputs/; \
nothing is computed twice.

Settings are changed by overrides after the command, in Hydra's syntax:

  modeconn fit-curve dataset=fashion_mnist curve.bends=2
  modeconn fit-curve --multirun seed=0,1,2,3
  modeconn fit-curve architecture=custom architecture.target=nets.py:Net
  modeconn interpolate 'endpoints.checkpoints=\\[a.pt,b.pt]'

Every setting: [bold]modeconn fit-curve --cfg job[/]. What would run: [bold]--dry-run[/]. \
Completion: [bold]eval "$(modeconn completion bash)"[/].
"""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    help=ABOUT,
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs_app = typer.Typer(no_args_is_help=True, help="What has been computed: list, show, compare, path, gc.")
app.add_typer(runs_app, name="runs", rich_help_panel=PANELS["keep"])

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides, as seed=1 or architecture=vgg16 or curve.bends=2.",
        show_default=False,
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="One job for every combination of comma-separated values.")
]
Cfg = Annotated[
    str | None, typer.Option("--cfg", metavar="WHAT", help="Print the configuration (job, hydra or all) and stop.")
]
Info = Annotated[
    str | None,
    typer.Option(
        "--info",
        metavar="WHAT",
        help="Print how it was composed (all, config, defaults, defaults-tree, plugins, searchpath) and stop.",
    ),
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", metavar="DIR", help="Look for further configuration files here.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every stage, whether it would run and why, and stop.")]
Force = Annotated[
    bool, typer.Option("--force", help="Compute this command's own stages again, into their next version.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no stage lines; results only.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where runs are kept.")]


def pipeline(command: Command) -> Callable[..., None]:
    """The command line of a pipeline command; they differ in the stages behind their name alone."""

    def run(
        overrides: Overrides = None,
        multirun: Multirun = False,
        cfg: Cfg = None,
        info: Info = None,
        config_dir: ConfigDir = None,
        dry_run: DryRun = False,
        force: Force = False,
        as_json: AsJson = False,
        quiet: Quiet = False,
    ) -> None:
        from modeconn_cli.front.compose import compose, launcher_of, scatter

        given = list(overrides or [])
        given = [*chosen_for(command, given), *given]
        given += [f"runtime.force={str(force).lower()}"] if force else []
        given += [f"runtime.dry_run={str(dry_run).lower()}"] if dry_run else []
        flags = ["--multirun"] if multirun else []
        for flag, value, allowed in (("--cfg", cfg, CFG), ("--info", info, INFO)):
            if value is not None and value not in allowed:
                raise UserError(f"{flag} {value}: choose from {', '.join(allowed)}.")
            flags += [flag, value] if value is not None else []
        session = Session(command.name, dry_run, as_json, quiet, multirun)

        def go() -> None:
            launcher = launcher_of(given)
            jobs = compose(given, flags, config_dir)
            elsewhere = multirun and launcher != "basic"
            session.run(jobs, (lambda folder: scatter(command.name, given, config_dir, folder)) if elsewhere else None)

        session.guarded(go)
        if cfg or info:
            sys.exit(session.code)
        session.close()

    run.__doc__ = f"{command.help}\n\n{command.more}"
    return run


def chosen_for(command: Command, overrides: Sequence[str]) -> list[str]:
    """The choices that a command makes in groups where the command line makes none."""
    from modeconn_cli.settings import NAMED_BY

    made = []
    for group, choice in command.chooses.items():
        choosing = (f"{group}=", f"{group}.{NAMED_BY.get(group)}=", "experiment=")
        made += [] if any(o.startswith(choosing) for o in overrides) else [f"{group}={choice}"]
    return made


CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
BROKEN: list[UserError] = []  # what keeps a plugin from being loaded, which main() says
try:
    load()
except UserError as _error:
    BROKEN.append(_error)
for _command in COMMANDS.values():
    if _command.listed:
        app.command(_command.name, rich_help_panel=PANELS.get(_command.panel, _command.panel))(pipeline(_command))


@app.command(rich_help_panel=PANELS["look"])
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

    files = plot_runs(output_dir, runs or [], output)
    if as_json:
        print_json({"command": "plot", "files": [str(f) for f in files]})
    else:
        for file in files:
            print(file)


@app.command(rich_help_panel=PANELS["look"])
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
    write_page(choose_reported(output_dir, runs or []), file)
    print_json({"command": "report", "file": str(file)}) if as_json else print(file)


@app.command(rich_help_panel=PANELS["look"])
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
    from modeconn_cli.report import gather as g

    for flag, value, allowed in (("--interval", interval, INTERVALS), ("--format", form, FORMATS)):
        if value not in allowed:
            raise UserError(f"{flag} {value}: choose from {', '.join(allowed)}.")
    rows = g.gather(g.choose(output_dir, places or []), by or [], over or [], metric or [], interval, confidence)
    if as_json:
        print_json({"command": "gather", "interval": interval, "confidence": confidence, "rows": without_nan(rows)})
    elif form == "csv":
        print(g.as_csv(rows), end="")
    elif form == "table":
        show_gathered(rows, interval, confidence)
    else:
        print({"markdown": g.as_markdown, "latex": g.as_latex}[form](*g.as_table(rows)))


INTERVALS = ("t", "bootstrap")
FORMATS = ("table", "csv", "markdown", "latex")


@app.command(rich_help_panel=PANELS["join"])
def connect(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, .pt or .safetensors, or RUN, RUN@t=0.3 ...")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, of the same architecture.")],
    model: Annotated[
        str, typer.Option("--model", help="file.py:Net, package.module:build, or an architecture's name.")
    ],
    data: Annotated[str, typer.Option("--data", help="A .npz or .safetensors file of arrays, or a data set's name.")],
    overrides: Overrides = None,
    curve: Annotated[
        bool | None,
        typer.Option(
            "--curve/--no-curve",
            help="Fit a curve, or do not. Neither: where no straight line joins them.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Are these two networks connected? By the straight line, or after alignment, or else by a curve.

    modeconn connect a.pt b.pt --model nets.py:Net --data data.npz. Arrays are taken as they are (bytes as 0 to 1);
    dataset.mean=null dataset.std=null normalises them. Weight decay is taken as 0, so the loss is plain cross-entropy;
    endpoints.weight_decay=... and curve.weight_decay=... say otherwise.
    """
    from modeconn_cli.front.compose import compose
    from modeconn_cli.front.overrides import groups, quoted
    from modeconn_cli.front.terminal import show_result
    from modeconn_cli.report.tables import connection
    from modeconn_cli.results import Metrics
    from modeconn_cli.stages.connect import NAME, epochs_of_a_first_answer

    named = groups()
    if model in named["architecture"]:
        net = [f"architecture={model}"]
    elif ":" in model:
        net = ["architecture=custom", f"architecture.target={quoted(model)}"]
    else:
        raise UserError(
            f"--model {model}: give file.py:Net, package.module:build, or one of {', '.join(named['architecture'])}."
        )
    if data in named["dataset"] and not Path(data).exists():
        examples = [f"dataset={data}"]
    else:
        # A file of arrays holds what its networks were fed, so nothing more is done to it.
        examples = ["dataset=arrays", f"dataset.path={quoted(data)}", "dataset.mean=[0]", "dataset.std=[1]"]
    ends = f"endpoints.from=[{quoted(first)},{quoted(second)}]"
    given = [ends, *net, *examples, "endpoints.weight_decay=0", "curve.weight_decay=0", *(overrides or [])]

    def ask(*more: str, curved: Sequence[str] = ()) -> Session:
        """Measure the straight line and whatever ``more`` names, in one plan."""
        wanted = dict.fromkeys(more, True)
        session = Session(NAME, False, as_json, quiet, sweep=False, prints=False, arguments=wanted)
        session.guarded(lambda: session.run(compose([*curved, *given])))
        return session

    def joined(session: Session) -> bool:
        return any(v["connected"] == "yes" for v in session.jobs[0]["verdicts"])

    last, failed = ask(), 0
    more: list[str] = []
    if last.code == 0 and not joined(last):
        aligned = ask("aligned")
        if aligned.code in (0, 130, 143):  # where it cannot be aligned its line has said so; a curve may join it still
            last, more = aligned, ["aligned"]
    if last.code == 0 and (curve or (curve is None and not joined(last))):
        (job,) = compose(given)
        epochs = epochs_of_a_first_answer(job.config.curve, last.train_examples)
        bent = ask(*more, "curve", curved=[f"curve.epochs={epochs}"])
        # A curve that fails has said so; what the straight lines gave is the answer still.
        last, failed = (last, bent.code) if bent.code == 1 else (bent, 0)
    entry = last.jobs[0]
    if last.code:
        if as_json:
            print_json({"command": NAME, "exit_code": last.code, **entry})
        sys.exit(last.code)
    first, second = (str(e["from"]) for e in entry["endpoints"][:2])  # as they are told apart
    answer, sentence = connection(entry["verdicts"], first, second, Metrics.of(entry))
    chance = 100 * (1 - 1 / max(last.classes, 1))
    lost = [e["from"] for e in entry["endpoints"] if last.classes and e["test_error"] > 0.9 * chance]
    if lost:
        complain(
            f"{' and '.join(lost)} do little better than chance ({chance:.0f}% error): were they trained on inputs "
            "scaled otherwise? dataset.mean and dataset.std scale them."
        )
    if as_json:
        verdict = {"answer": answer, "sentence": sentence}
        print_json({"command": NAME, "exit_code": failed, "verdict": verdict, **entry})
    else:
        show_result(entry)
        print(f"\n{sentence}")
    sys.exit(failed)


app.command(rich_help_panel=PANELS["keep"])(export)


@app.command(rich_help_panel=PANELS["look"])
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
        list[str] | None, typer.Option(help="Only rows whose name has this in it; may be given again.")
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
    session = Session(NAME, dry_run, as_json, quiet, sweep=True)
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


@app.command(rich_help_panel=PANELS["align"])
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
    from modeconn_cli.front.terminal import show_symmetries
    from modeconn_cli.stages.symmetries import groups_of

    (job,) = compose(list(overrides or []), config_dir=config_dir)
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
    if not all(s.strip().isdigit() and int(s) for s in sizes):
        raise UserError(f"--input {text} is not a shape; give the sizes of one input, as 3,224,224.")
    return tuple(map(int, sizes))


@app.command(rich_help_panel=PANELS["keep"])
def doctor(
    as_json: AsJson = False, data_dir: Annotated[str | None, typer.Option(help="Also look for data sets here.")] = None
) -> None:
    """Show versions, devices, and which data sets are found or how to get them."""
    from modeconn_cli.front.doctor import examine, show

    found = examine(data_dir)
    print_json(found) if as_json else show(found)


@runs_app.command("list")
def runs_list(
    match: Annotated[str, typer.Argument(help="Only runs whose stage, name or digest has this in it.")] = "",
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """List runs, oldest first, with what each found."""
    from modeconn_cli.front import browse

    browse.list_runs(output_dir, match, as_json)


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Directory, or beginning of a digest or name.")],
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Show one run: its results, where it came from, its files."""
    from modeconn_cli.front import browse

    browse.show_run(output_dir, run, as_json)


@runs_app.command("compare")
def runs_compare(first: str, second: str, output_dir: OutputDir = Path("outputs"), as_json: AsJson = False) -> None:
    """Compare two runs: settings that differ, and results side by side."""
    from modeconn_cli.front import browse

    browse.compare_runs(output_dir, first, second, as_json)


@runs_app.command("path")
def runs_path(
    run: Annotated[str, typer.Argument(help="Directory, or beginning of a digest or name.")],
    output_dir: OutputDir = Path("outputs"),
) -> None:
    """Print a run's directory, for scripts: cd "$(modeconn runs path 3f2a)"."""

    print(find(output_dir, run).folder.resolve())


@runs_app.command("gc")
def runs_gc(
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Keep only runs with this in STAGE/NAME, and what they are built on; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    output_dir: OutputDir = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Remove what no kept run needs, after showing it. Without --keep: replaced versions and damaged runs."""
    from modeconn_cli.front import browse

    going = removable(output_dir, keep or [])
    sizes = {removal.run: removal.run.size() for removal in going}
    if not as_json:
        browse.show_removals(going, sizes, output_dir)
    ask = not yes and going and not as_json and sys.stdin.isatty()
    sure = yes or (ask and typer.confirm("Remove them?"))
    for removal in going if sure else []:
        remove(removal.run)
    if as_json:
        rows = [{"directory": str(r.run.folder), "why": r.why, "bytes": sizes[r.run]} for r in going]
        print_json({"command": "runs gc", "removed": bool(sure), "bytes": sum(sizes.values()), "runs": rows})
    elif going:
        print("removed." if sure else "nothing was removed; --yes removes them.")


@app.command(rich_help_panel=PANELS["keep"])
def completion(shell: Annotated[str, typer.Argument(help="bash or zsh.")]) -> None:
    """Print a completion script: eval "$(modeconn completion bash)"."""
    if shell not in SCRIPTS:
        raise UserError(f"completion {shell}: choose from {', '.join(SCRIPTS)}.")
    print(SCRIPTS[shell])


@app.command("_complete", hidden=True)
def complete_line(line: str) -> None:
    """Print the completions of a command line, one a line."""
    *before, incomplete = line.split(" ")[1:] or [""]
    command: Any = typer.main.get_command(app)
    rest = list(before)
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        candidates = [f"{name} " for name, c in command.commands.items() if not c.hidden]
    elif incomplete.startswith("-"):
        candidates = [f"{flag} " for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
        candidates.append("--help ")
    elif rest and rest[-1] in ("--cfg", "--info"):
        candidates = [f"{value} " for value in (CFG if rest[-1] == "--cfg" else INFO)]
    elif command.name == "completion":
        candidates = [f"{shell} " for shell in SCRIPTS]
    elif command.name in COMMANDS and COMMANDS[command.name].listed:
        from modeconn_cli.front.complete import complete

        candidates = complete(rest, incomplete)
    elif command.name in ("plot", "report", "export", "show", "compare", "path"):
        from modeconn_cli.runs.find import run_names

        # A reference may go on with @ or #.
        candidates = [name + ("" if command.name == "export" else " ") for name in run_names(Path("outputs"))]
    else:
        candidates = []
    print("\n".join(c for c in candidates if c.startswith(incomplete)))


SCRIPTS = {
    "bash": r"""_modeconn() {
  local line="${COMP_LINE:0:COMP_POINT}" word candidate prefix=""
  word="${line##* }"
  # bash takes what follows '=' for a word of its own: offer only that
  [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && prefix="${word%"${word##*=}"}"
  COMPREPLY=()
  while IFS= read -r candidate; do
    [[ -n $candidate ]] && COMPREPLY+=("${candidate#"$prefix"}")
  done < <(modeconn _complete "$line" 2>/dev/null)
}
complete -o default -o nospace -F _modeconn modeconn""",
    "zsh": r"""#compdef modeconn
_modeconn() {
  local -a candidates
  candidates=("${(@f)$(modeconn _complete "$LBUFFER" 2>/dev/null)}")
  compadd -Q -S '' -- ${candidates:#}
}
compdef _modeconn modeconn""",
}


def version(show: bool) -> None:
    if show:
        print(f"modeconn {__version__}")
        raise typer.Exit


@app.callback()
def top(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; every way of ending that is not a bug ends in one line and the right exit code."""
    failure: tuple[str, int] | None = None
    try:
        if BROKEN:
            raise BROKEN[0]
        code = app(standalone_mode=False)
    except CommandLineError as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        hint = "; settings are given as key=value, without dashes." if "No such option" in said else ""
        failure = " ".join(said.split()) + hint, 2
    except UserError as error:
        failure = str(error), 2
    except RunFailed as error:
        failure = str(error), 1
    except BrokenPipeError:
        sys.exit(1)
    if failure is None:
        sys.exit(code if isinstance(code, int) else 0)
    message, code = failure
    if message:  # a bare `modeconn` has printed its help
        complain(message)
    if "--json" in sys.argv:
        print_json({"error": message, "exit_code": code})
    sys.exit(code)


if __name__ == "__main__":
    main()
