"""Completion in bash and zsh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modeconn_cli.errors import UserError
from modeconn_cli.front.pipeline import CFG, INFO, chosen_for
from modeconn_cli.work.command import COMMANDS

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


def completion(shell: Annotated[str, typer.Argument(help="bash or zsh.")]) -> None:
    """Print a completion script: eval "$(modeconn completion bash)"."""
    if shell not in SCRIPTS:
        raise UserError(f"completion {shell}: choose from {', '.join(SCRIPTS)}.")
    print(SCRIPTS[shell])


def completer(app: typer.Typer) -> Callable[[str], None]:
    """The hidden command that the scripts call: it prints the completions of a command line, one a line."""

    def complete_line(line: str) -> None:
        *before, incomplete = line.split(" ")[1:] or [""]
        command: Any = typer.main.get_command(app)
        rest = list(before)
        while rest and hasattr(command, "commands") and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        print("\n".join(c for c in candidates(command, rest, incomplete) if c.startswith(incomplete)))

    return complete_line


def candidates(command: Any, before: Sequence[str], incomplete: str) -> list[str]:
    """What may stand next in the line of a command (of typer's)."""
    if hasattr(command, "commands"):
        return [f"{name} " for name, c in command.commands.items() if not c.hidden]
    if incomplete.startswith("-"):
        flags = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
        return [f"{flag} " for flag in [*flags, "--help"]]
    if before and before[-1] in ("--cfg", "--info"):
        return [f"{value} " for value in (CFG if before[-1] == "--cfg" else INFO)]
    if command.name == completion.__name__:
        return [f"{shell} " for shell in SCRIPTS]
    if command.name in COMMANDS and COMMANDS[command.name].listed:
        from modeconn_cli.front.complete import complete

        return complete([*chosen_for(COMMANDS[command.name], before), *before], incomplete)
    taken = {parameter.name for parameter in command.params}
    if taken & {"run", "runs", "reference", "first"}:
        from modeconn_cli.runs.find import run_names

        after = "" if "reference" in taken else " "  # a reference may go on with @ or #
        return [f"{name}{after}" for name in run_names(Path("outputs"))]
    return []
