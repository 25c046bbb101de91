"""What a command is: a name, words for --help, and the stages that it asks for. Commands register themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    own arguments.
    """

    name: str
    request: Callable[..., Request]
    panel: str
    help: str
    more: str = ""
    chooses: Mapping[str, str] = field(default_factory=dict)
    listed: bool = True


COMMANDS: dict[str, Command] = {}


def command(
    name: str,
    *,
    panel: str,
    help: str,
    more: str = "",
    chooses: Mapping[str, str] | None = None,
    listed: bool = True,
) -> Callable[[Callable[..., Request]], Callable[..., Request]]:
    """Register a function from a context to a Request as the command of this name; see Command for the rest."""

    def register(request: Callable[..., Request]) -> Callable[..., Request]:
        COMMANDS[name] = Command(name, request, panel, help, more, dict(chooses or {}), listed)
        return request

    return register
