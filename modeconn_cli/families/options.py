"""What every curve between two endpoints can be told; each family's own options stand with the family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeconn_cli.settings import LARGEST_SEED, Name, option, plain
from modeconn_cli.training.recipe import Training

if TYPE_CHECKING:
    from modeconn_cli.families.base import Family


class Sampling(Name):
    stratified = "stratified"
    uniform = "uniform"


@dataclass
class Curve(Training):
    """A path between two endpoints and how it is trained.

    A family's options derive from it, registered by ``@choice("curve", name)``. They must make the family, and may call
    it better than by its name.
    """

    epochs: int = option(100, "Passes over the training split.", ge=1)
    kind: str = option("bezier", "Which family of paths, each with options of its own.", names="curve")
    fix_start: bool = option(True, "Hold the start where its endpoint is; false trains it too.")
    fix_end: bool = option(True, "Hold the end where its endpoint is; false trains it too.")
    init_from: str | None = option(
        None, "Start from this curve: its run, or its checkpoint.safetensors; null: evenly on the segment."
    )
    t_sampling: Sampling = option(Sampling.stratified, "Draw t uniformly, or stratified over the steps of every epoch.")
    seed: int | None = option(
        None, "Seed of t, order and augmentation; null: the top-level seed.", ge=0, le=LARGEST_SEED
    )

    def family(self) -> Family:
        """The family of points that is trained."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What the path is called in tables and legends."""
        return f"{self.kind} curve"

    @property
    def tag(self) -> str:
        """What it is called in directory names."""
        return self.kind

    def own(self) -> dict[str, Any]:
        """The family's own options that identify it, as plain values."""
        common = {f.name for f in dataclasses.fields(Curve)}
        fields = [f for f in dataclasses.fields(self) if f.name not in common and f.metadata["identity"]]
        return {f.name: plain(getattr(self, f.name)) for f in fields}


@dataclass
class Bends(Curve):
    """A path that is told by how many control points it has between its ends."""

    bends: int = option(1, "Control points between the ends.", ge=1, le=1000)

    @property
    def tag(self) -> str:
        return f"{self.kind}{self.bends}"

    def titled(self, what: str) -> str:
        return f"{what}, {self.bends} bend{'s' if self.bends > 1 else ''}"
