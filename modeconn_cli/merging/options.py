"""How several networks are made one: what every way can be told, and which function carries it out.

A way is a dataclass registered by ``@choice("soup", name)`` that derives from Merge; it imports what it calls when it
is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modeconn_cli.settings import LARGEST_SEED, Name, choice, choices, fields_off_default, option

if TYPE_CHECKING:
    from modeconn_cli.merging.given import Given, Merging


@dataclass
class Soup:
    """How networks are made one; a way's own options derive from it."""

    method: str = option(
        "uniform",
        "Averages: uniform, greedy, least_squares, learned. From a common parent: task_arithmetic, ties, dare. Of two: "
        "slerp. all: every one that what is given admits, in one table.",
        names="soup",
    )
    parent: str | None = option(
        None,
        "The network that all were trained on from, a file or RUN; null: endpoints.init_from.",
        identity=False,  # its content is
    )
    points: int = option(
        5, "Points of the line from the soup to each network that its barrier is measured on, ends included.", ge=2
    )
    aside: ClassVar[Mapping[str, Any]] = {}  # on an instance: what was set and is an option of other ways alone

    def own(self) -> dict[str, Any]:
        """What identifies it besides its name: options off their defaults, as plain values."""
        return {k: v for k, v in fields_off_default(self).items() if k != "method"}


@dataclass
class Merge(Soup):
    """A way of merging."""

    title: ClassVar[str] = ""
    least: ClassVar[int] = 2  # networks
    most: ClassVar[int | None] = None
    takes_parent: ClassVar[bool] = False
    compares_answers: ClassVar[bool] = False  # with targets, as classes and numbers have them

    @property
    def chooses(self) -> str:
        """What it does on the validation split, as "sorts and chooses networks"; empty where it looks at none."""
        return ""

    def merge(self, given: Given) -> Merging:
        """The network that is made of given.points."""
        raise NotImplementedError


def ways() -> list[str]:
    """The names of the registered ways."""
    return [name for name, cls in choices("soup").items() if issubclass(cls, Merge)]


# ---------------------------------------------------------------------------------------------------- averages


@choice("soup", "uniform")
@dataclass
class Uniform(Merge):
    """The mean of the weights."""

    title: ClassVar[str] = "uniform soup"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.weights import uniform

        return uniform(given)


@choice("soup", "greedy")
@dataclass
class Greedy(Merge):
    """The mean of those networks that do not make it worse (Wortsman et al. 2022)."""

    by: str | None = option(None, "The task's column that networks are chosen by; null: that of its verdict, as error.")
    title: ClassVar[str] = "greedy soup"

    @property
    def chooses(self) -> str:
        return "sorts and chooses networks"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.weights import greedy

        return greedy(given)


class Weights(Name):
    convex = "convex"
    affine = "affine"


@dataclass
class Weighted(Merge):
    """An average with weights that are found on the validation split."""

    weights: Weights = option(Weights.convex, "Of sum one, and none of them negative (convex) or of any sign (affine).")

    @property
    def chooses(self) -> str:
        return "finds its weights"


@choice("soup", "least_squares")
@dataclass
class LeastSquares(Weighted):
    """The weights with which averaged answers have the least squared error (Breiman 1996)."""

    title: ClassVar[str] = "least-squares soup"
    compares_answers: ClassVar[bool] = True

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.weights import least_squares

        return least_squares(given, self.weights is Weights.affine)


@choice("soup", "learned")
@dataclass
class Learned(Weighted):
    """The weights that gradient descent finds on the loss of the average (Wortsman et al. 2022)."""

    steps: int = option(50, "Steps of Adam, each over the whole validation split.", ge=1)
    lr: float = option(0.1, "Adam's learning rate.", gt=0)
    title: ClassVar[str] = "learned soup"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.weights import learned

        return learned(given, self.weights is Weights.affine, self.steps, self.lr)


# ---------------------------------------------------------------------------------------- from a common parent


@dataclass
class Arithmetic(Merge):
    """The parent moved by what training changed, merged."""

    scale: float | None = option(
        None,
        "What the merged task vector is multiplied by; null: the best of 0.05, 0.1 ... 1 on the validation split.",
        gt=0,
    )
    least: ClassVar[int] = 1
    takes_parent: ClassVar[bool] = True

    @property
    def chooses(self) -> str:
        return "finds its scale (or give soup.scale)" if self.scale is None else ""


@choice("soup", "task_arithmetic")
@dataclass
class TaskArithmetic(Arithmetic):
    """The sum of task vectors (Ilharco et al. 2023)."""

    title: ClassVar[str] = "task arithmetic"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.arithmetic import moved
        from modeconn_cli.merging.vectors import added

        return moved(given, added(given.vectors), self.scale)


@choice("soup", "ties")
@dataclass
class Ties(Arithmetic):
    """Trimmed, signs elected, disjoint mean (Yadav et al. 2023)."""

    keep: float = option(0.2, "The share of each task vector, largest in magnitude, that is kept.", gt=0, le=1)
    title: ClassVar[str] = "TIES"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.arithmetic import MEAN_SCALES, moved
        from modeconn_cli.merging.vectors import ties

        return moved(given, ties(given.vectors, self.keep, given.size), self.scale, MEAN_SCALES)


class Combine(Name):
    sum = "sum"
    ties = "ties"


@choice("soup", "dare")
@dataclass
class Dare(Arithmetic):
    """Entries dropped by chance, what stays rescaled, and then the sum or TIES (Yu et al. 2024)."""

    drop: float = option(0.9, "The chance with which each entry of a task vector is dropped.", ge=0, lt=1)
    combine: Combine = option(Combine.sum, "What is done with the vectors then: their sum, or ties, nothing trimmed.")
    seed: int = option(0, "Of what is dropped.", ge=0, le=LARGEST_SEED)
    title: ClassVar[str] = "DARE"

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.arithmetic import MEAN_SCALES, moved
        from modeconn_cli.merging.vectors import added, dropped, elected

        kept = dropped(given.vectors, self.drop, self.seed, given.parts)
        if self.combine is Combine.ties:
            return moved(given, elected(kept), self.scale, MEAN_SCALES)
        return moved(given, added(kept), self.scale)


# ------------------------------------------------------------------------------------------------------ of two


class Angle(Name):
    whole = "whole"
    tensor = "tensor"


@choice("soup", "slerp")
@dataclass
class Slerp(Merge):
    """A point of the great arc between two networks (Shoemake 1985)."""

    t: float = option(0.5, "Where on the arc: 0 is the first network, 1 the second.", ge=0, le=1)
    angle: Angle = option(Angle.whole, "The angle between all weights as one vector (whole), or of each tensor.")
    title: ClassVar[str] = "SLERP"
    most: ClassVar[int | None] = 2

    def merge(self, given: Given) -> Merging:
        from modeconn_cli.merging.given import Merging
        from modeconn_cli.merging.vectors import slerp, slerp_by_parts

        a, b = given.points
        point = slerp(a, b, self.t) if self.angle is Angle.whole else slerp_by_parts(a, b, self.t, given.parts)
        return Merging(point, [1 - self.t, self.t])


# ------------------------------------------------------------------------------------------------ all of these


@choice("soup", "all")
@dataclass
class Every(Soup):
    """Several ways, in one table."""

    methods: list[str] = option([], "Which; none: all that what is given admits.", identity=False)
