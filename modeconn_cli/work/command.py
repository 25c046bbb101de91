"""What a command is: a name, words for --help, and the stages that it asks for. Commands register themselves.

The command line needs their names and words before it knows which one is wanted, and importing a stage takes seconds,
for torch comes with it. So the declarations of this package's stages are read from their source, and a stage is
imported when its command is asked for.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeconn_cli.work.context import Context
    from modeconn_cli.work.stage import Stage

PANELS = {"train": "Train", "join": "Join", "align": "Align", "look": "Look", "keep": "Keep"}


@dataclass(frozen=True)
class Request:
    """The stages that a command asks for; what these need is found through their upstream().

    own: what --force computes again. beside: what is asked for too, and computed once. keep_going: a stage that fails
    stops only those that need it, and results are shown as those of many pairs.
    """

    own: Sequence[Stage]
    beside: Sequence[Stage] = ()
    keep_going: bool = False


@dataclass(frozen=True)
class Command:
    """A pipeline command.

    panel: a key of PANELS, where --help lists it. help: one line; more: a paragraph after it. chooses: the choice of a
    group where the command line makes none. listed: whether the command line has it as it is, or by a command of its
    own arguments. examples: what may stand after its name, for the top of --help. introduction: of the one command that
    a newcomer should try first, what it does after its name.
    """

    name: str
    request: Callable[..., Request]
    panel: str
    help: str
    more: str = ""
    chooses: Mapping[str, str] = field(default_factory=dict)
    listed: bool = True
    examples: Sequence[str] = ()
    introduction: str = ""
    networks: bool = False


COMMANDS: dict[str, Command] = {}
DECLARED = re.compile(r"^@command\(.*?^def \w+", re.MULTILINE | re.DOTALL)
CONSTANT = re.compile(r"^[A-Z_]+ = [\"'\d].*$", re.MULTILINE)


def command(
    name: str,
    *,
    panel: str,
    help: str,
    more: str = "",
    chooses: Mapping[str, str] | None = None,
    listed: bool = True,
    examples: Sequence[str] = (),
    introduction: str = "",
    networks: bool = False,
) -> Callable[[Callable[..., Request]], Callable[..., Request]]:
    """Register a function from a context to a Request as the command of this name; see Command for the rest."""

    def register(request: Callable[..., Request]) -> Callable[..., Request]:
        COMMANDS[name] = Command(
            name, request, panel, help, more, dict(chooses or {}), listed, tuple(examples), introduction, networks
        )
        return request

    return register


def read_declarations(package: str, folder: Path) -> None:
    """Register the commands that a package's files declare by :func:`command`, without importing them.

    What a declaration is given must be written out there, or be a constant of its file, on a line. Only these lines are
    parsed: a whole stage takes longer than all else that --help does.
    """
    for file in sorted(folder.glob("*.py")):
        source = file.read_text(encoding="utf-8")
        declared = DECLARED.findall(source) if f"@{command.__name__}(" in source else []
        if not declared:
            continue
        constants: dict[str, Any] = {}
        for node in ast.parse("\n".join([*CONSTANT.findall(source), *(d + "(): ..." for d in declared)])).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                constants |= {t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)}
            if isinstance(node, ast.FunctionDef):
                for call in filter(_declares, node.decorator_list):
                    name, given = _arguments(call, constants)
                    COMMANDS[name] = Command(name, partial(_imported, f"{package}.{file.stem}", node.name), **given)


def _declares(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == command.__name__


def _arguments(call: Any, constants: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    def value(node: ast.expr) -> Any:
        return constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)

    return str(value(call.args[0])), {str(k.arg): value(k.value) for k in call.keywords}


def _imported(module: str, function: str, context: Context, **arguments: Any) -> Request:
    """The request of a command whose stage has only been read."""
    found: Request = getattr(importlib.import_module(module), function)(context, **arguments)
    return found


def first_command() -> Command:
    """The command that a newcomer should try first."""
    return next(c for c in COMMANDS.values() if c.introduction)
