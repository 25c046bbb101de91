"""References to networks: a file, or ``RUN``, ``RUN@epoch=20``, ``RUN@step=100``, ``RUN@t=0.3``, ``RUN#2``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from modeconn_cli.errors import UserError
from modeconn_cli.runs.find import Found, find, how_it_is_not_whole

FORMS = "RUN, RUN@epoch=20, RUN@step=100, RUN@t=0.3 or RUN#2"
_SELECTION = re.compile(r"^(?P<place>.+?)(?:@(?P<key>\w+)=(?P<value>[^@#]*)|#(?P<number>[^@#]*))$")


@dataclass(frozen=True)
class Reference:
    """What was written, taken apart. At most one of the selections is given.

    place: a file, or what finds a run. epoch, step: of training. t: in [0, 1], along a path. number: from 1. every:
    each network of a run, RUN#*.
    """

    text: str
    place: str
    epoch: int | None = None
    step: int | None = None
    t: float | None = None
    number: int | None = None
    every: bool = False

    @property
    def selects(self) -> bool:
        return self.text != self.place

    @property
    def file(self) -> Path | None:
        """The file that is meant as a whole, if it is one."""
        return Path(self.place) if not self.selects and Path(self.place).is_file() else None

    def run(self, root: Path) -> Found:
        """The run that is meant.

        Raises:
            UserError: there is none, several fit, or it is not whole.
        """
        looks_like_file = self.place.endswith((".pt", ".pth", ".safetensors")) and not Path(self.place).is_file()
        if looks_like_file:
            raise UserError(f"{self.text}: no file {self.place}; give a .pt or .safetensors file, or {FORMS}.")
        try:
            run = find(root, self.place)
        except UserError as error:
            raise UserError(f"{self.text}: {error}") from None
        if run.damage:
            raise UserError(f"{self.text}: {how_it_is_not_whole(run)}")
        return run


def parse(text: str) -> Reference:
    """Take a reference apart; a file of that very name is that file.

    Raises:
        UserError: an unknown selection, or a value that is none.
    """
    if not text:
        raise UserError(f"an empty reference names no network: give a file, or {FORMS}.")
    if Path(text).exists():
        return Reference(text, text)
    match = _SELECTION.match(text)
    if match is None:
        return Reference(text, text)
    place, key, value, number = match.group("place", "key", "value", "number")
    if number == "*":
        return Reference(text, place, every=True)
    if number is not None:
        if not number.isdecimal() or number == "0":
            raise UserError(f"{text}: #{number} is no number of a network; they count from 1, as RUN#2.")
        return Reference(text, place, number=int(number))
    if key == "t":
        try:
            t = float(value)
        except ValueError:
            t = math.nan
        if not 0 <= t <= 1:
            raise UserError(f"{text}: t={value} does not lie on the path; give a number from 0 to 1, as RUN@t=0.3.")
        return Reference(text, place, t=t)
    if key not in ("epoch", "step"):
        raise UserError(f"{text}: @{key} selects nothing; write {FORMS}.")
    if not value.isdecimal():
        raise UserError(f"{text}: {key}={value} is not a whole number; write RUN@{key}=20.")
    return Reference(text, place, epoch=int(value)) if key == "epoch" else Reference(text, place, step=int(value))


def file_names(file: Path) -> list[str]:
    """What a file may be called, shortest first: model.pt, a/model.pt, runs/a/model.pt, ..."""
    parts = file.parts
    return ["/".join(parts[-n:]).replace("//", "/") for n in range(1, len(parts) + 1)]


def told_apart(candidates: Sequence[Sequence[str]]) -> list[str]:
    """A name for each of several things, each from its own list: the shortest that no other one has.

    >>> told_apart([file_names(Path("runs/a/model.pt")), file_names(Path("runs/b/model.pt"))])
    ['a/model.pt', 'b/model.pt']
    """
    depth = [0] * len(candidates)

    def name(i: int) -> str:
        return candidates[i][min(depth[i], len(candidates[i]) - 1)]

    while True:
        alike = [(i, j) for i, j in combinations(range(len(candidates)), 2) if name(i) == name(j)]
        deeper = {i for pair in alike for i in pair if depth[i] + 1 < len(candidates[i])}
        if not deeper:
            return [name(i) for i in range(len(candidates))]
        for i in deeper:
            depth[i] += 1
