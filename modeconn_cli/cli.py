"""The command line: every command by its name. Heavy imports wait until a command needs them: --help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from modeconn_cli import __version__
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.failures import unforeseen
from modeconn_cli.front import keep, look
from modeconn_cli.front.connect import connect
from modeconn_cli.front.export import export
from modeconn_cli.front.pipeline import pipeline
from modeconn_cli.front.session import complain, print_json
from modeconn_cli.front.shell import completer, completion
from modeconn_cli.front.streams import outlets, unwritten
from modeconn_cli.plugins import load
from modeconn_cli.work.command import COMMANDS, PANELS, first_command

CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]

ABOUT = """Are separately trained networks joined in weight space by paths of low loss?

[bold]modeconn {first}[/] {introduction} Results go to outputs/; nothing is computed twice.

Settings are changed by overrides after the command, in Hydra's syntax:

{examples}

Every setting: [bold]modeconn {first} --cfg job[/]. What would run: [bold]--dry-run[/]. \
Completion: [bold]eval "$(modeconn completion bash)"[/].
"""

BROKEN: list[UserError] = []  # what keeps a plugin from being loaded, which main() says
OTHERS: dict[str, list[Callable[..., None]]] = {
    "join": [connect],
    "align": [look.symmetries],
    "look": [look.plot, look.report, look.gather, look.reproduce],
    "keep": [export, keep.doctor, completion],
}
RUNS: dict[str, Callable[..., None]] = {
    "list": keep.runs_list,
    "show": keep.runs_show,
    "compare": keep.runs_compare,
    "path": keep.runs_path,
    "gc": keep.runs_gc,
}


def version(show: bool) -> None:
    if show:
        print(f"modeconn {__version__}")
        raise typer.Exit


def top(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def about() -> str:
    """The top of --help, in the words of the commands themselves."""
    first = first_command()
    lines = [f"  modeconn {c.name} {example}" for c in COMMANDS.values() for example in c.examples]
    return ABOUT.format(first=first.name, introduction=first.introduction, examples="\n".join(lines))


def make_app() -> typer.Typer:
    """Every command, in the panels that --help shows."""
    try:
        load()
    except UserError as error:
        BROKEN.append(error)
    made = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        help=about(),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(top)
    for panel in dict.fromkeys([*PANELS, *(c.panel for c in COMMANDS.values())]):
        title = PANELS.get(panel, panel)
        for command in COMMANDS.values():
            if command.listed and command.panel == panel:
                made.command(command.name, rich_help_panel=title)(pipeline(command))
        for function in OTHERS.get(panel, []):
            made.command(rich_help_panel=title)(function)
    runs = typer.Typer(no_args_is_help=True, help="What has been computed: list, show, compare, path, gc.")
    for name, function in RUNS.items():
        runs.command(name)(function)
    made.add_typer(runs, name="runs", rich_help_panel=PANELS["keep"])
    made.command("_complete", hidden=True)(completer(made))
    return made


app = make_app()


def main() -> NoReturn:
    """Run the command line; every way of ending that is not a bug ends in one line and the right exit code.

    Nobody's not reading what is printed stops the work.
    """
    with outlets() as (out, _):
        code = answer()
        if lost := unwritten(out):
            complain(lost)
            code = code or 1
    sys.exit(code)


def as_flags(words: list[str]) -> list[str]:
    """A command line where runtime.output_dir=DIR, of a command that takes no settings, is its --output-dir DIR."""
    key = "runtime.output_dir="
    if not any(word.startswith(key) for word in words):
        return words
    command: Any = typer.main.get_command(app)
    for word in words:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
    names = {p.name for p in command.params}
    if "output_dir" not in names or "overrides" in names:
        return words
    return [part for w in words for part in (["--output-dir", w[len(key) :]] if w.startswith(key) else [w])]


def answer() -> int:
    """The exit code, after everything is said."""
    failure: tuple[str, int] | None = None
    code: object = 0
    try:
        if BROKEN:
            raise BROKEN[0]
        code = app(args=as_flags(sys.argv[1:]), standalone_mode=False)
    except CommandLineError as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        hint = "; settings are given as key=value, without dashes." if "No such option" in said else ""
        failure = " ".join(said.split()) + hint, 2
    except UserError as error:
        failure = str(error), 2
    except RunFailed as error:
        failure = str(error), 1
    except KeyboardInterrupt:
        failure = "stopped by Ctrl-C.", 130
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        failure = str(unforeseen(error, Path("outputs"))), 1
    if failure is None:
        return code if isinstance(code, int) else 0
    message, number = failure
    if message:  # a bare `modeconn` has printed its help
        complain(message)
    if "--json" in sys.argv:
        print_json({"error": message, "exit_code": number})
    return number


if __name__ == "__main__":
    main()
