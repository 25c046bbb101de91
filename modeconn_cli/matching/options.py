"""How networks are brought near one another: what every method can be told, and which function carries it out.

A method is a dataclass registered by ``@choice("rebasin", name)``. It derives from Pairwise, which permutes a second
network towards a first, or from Together, for any number of them, and imports what it calls when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modeconn_cli.settings import LARGEST_SEED, Name, choice, choices, fields_off_default, option

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given
    from modeconn_cli.matching.search import AllMatched, Matching


class Sees(Name):
    """What of networks and data a method looks at; each more than the one before."""

    weights = "weights"
    inputs = "inputs"
    targets = "targets"


@dataclass
class Rebasin:
    """How networks are brought near one another; a method's own options derive from it."""

    method: str = option(
        "none",
        "Permute the second endpoint first: by weight, by activation, by straight_through or sinkhorn (trained), by "
        "code of your own (custom), or not at all; merge_many and c2m3 permute any number of endpoints at once.",
        names="rebasin",
    )
    aside: ClassVar[Mapping[str, Any]] = {}  # on an instance: what was set and is an option of other methods alone


@choice("rebasin", "none")
@dataclass
class AsTheyAre(Rebasin):
    """Nothing is permuted."""


@dataclass
class Method(Rebasin):
    """A method's options."""

    groups: str | None = option(
        None, "A file of permutation groups, for networks that cannot be traced; see modeconn symmetries --output."
    )
    title: ClassVar[str] = ""  # what networks are said to be aligned by; empty: the method's name
    sees: ClassVar[Sees] = Sees.weights
    takes_graph: ClassVar[bool] = False  # and not the groups alone

    def traced_with(self, examples: int) -> int:
        """How many of so many training examples the network is traced with."""
        return 2

    def own(self) -> dict[str, Any]:
        """What identifies it besides its name: options off their defaults, as plain values."""
        return {k: v for k, v in fields_off_default(self).items() if k != "method"}


@dataclass
class Pairwise(Method):
    """Permutes the second of two networks."""

    def match(self, given: Given) -> Matching:
        """The permutation of given.states[1] that brings it near given.states[0]."""
        raise NotImplementedError


@dataclass
class Together(Method):
    """Permutes any number of networks."""

    def match_all(self, given: Given) -> AllMatched:
        """A permutation for each of given.states."""
        raise NotImplementedError


def methods(kind: type[Method]) -> list[str]:
    """The names of the registered methods of a kind."""
    return [name for name, cls in choices("rebasin").items() if issubclass(cls, kind)]


def title_of(method: str) -> str:
    """What networks are said to be aligned by, of a method that need not be installed here."""
    return getattr(choices("rebasin").get(method), "title", "") or method


# ---------------------------------------------------------------------------------------------- this package's


@dataclass
class Searched(Method):
    """A search by assignments, from several starts."""

    restarts: int | None = option(
        None,
        "Starts after the first; null: 8 for weight (1 where a layer is wider than 1024), 6 for c2m3, else 3.",
        ge=0,
    )
    sweeps: int = option(100, "Most sweeps over the groups of one start.", ge=1)
    seed: int = option(0, "Of random starts, orders and batches.", ge=0, le=LARGEST_SEED)


@choice("rebasin", "weight")
@dataclass
class Weight(Searched, Pairwise):
    """The permutation of the second network nearest to the first (Ainsworth et al. 2023, section 3.2)."""

    title: ClassVar[str] = "weight matching"

    def match(self, given: Given) -> Matching:
        from modeconn_cli.matching.weight import match

        return match(self, given)


class Similarity(Name):
    correlation = "correlation"
    least_squares = "least_squares"


@choice("rebasin", "activation")
@dataclass
class Activation(Pairwise):
    """The permutation of the second network whose units do what the first's do (Li et al. 2016)."""

    examples: int = option(2000, "Training examples that units are compared on.", ge=2)
    similarity: Similarity = option(Similarity.correlation, "Compare units by correlation or by least squares.")
    title: ClassVar[str] = "activation matching"
    sees: ClassVar[Sees] = Sees.inputs
    takes_graph: ClassVar[bool] = True

    def traced_with(self, examples: int) -> int:
        return min(100, self.examples, examples)

    def match(self, given: Given) -> Matching:
        from modeconn_cli.matching.activation import match

        return match(self, given)


@dataclass
class Trained(Pairwise):
    """A search by gradient descent on a loss between the two networks."""

    steps: int = option(300, "Gradient steps.", ge=1)
    lr: float | None = option(None, "Adam's learning rate; null: 1e-3 for straight_through, 0.1 for sinkhorn.", gt=0)
    batch_size: int = option(250, "Training examples of a step.", ge=2)
    examples: int = option(2000, "Training examples that midpoints are compared on.", ge=2)
    seed: int = option(0, "Of random starts, orders and batches.", ge=0, le=LARGEST_SEED)
    sees: ClassVar[Sees] = Sees.targets


@choice("rebasin", "straight_through")
@dataclass
class StraightThrough(Trained):
    """Gradients of the midpoint's loss, passed straight through an assignment (Ainsworth et al. 2023, section 3.3)."""

    title: ClassVar[str] = "the straight-through estimator"

    def match(self, given: Given) -> Matching:
        from modeconn_cli.matching.straight_through import match

        return match(self, given)


class Between(Name):
    l2 = "l2"
    midpoint = "midpoint"
    random = "random"


@choice("rebasin", "sinkhorn")
@dataclass
class Sinkhorn(Trained):
    """Doubly stochastic matrices, trained (Pena et al. 2023)."""

    between: Between = option(
        Between.midpoint, "Train on the loss at the midpoint, at random points, or on the distance (l2)."
    )
    temperature: float = option(1.0, "Lower is nearer to permutations.", gt=0)
    unrolled: int | None = option(
        None, "Differentiate through so many rounds of normalisation; null: implicitly.", ge=1
    )

    title: ClassVar[str] = "Sinkhorn re-basin"

    def match(self, given: Given) -> Matching:
        from modeconn_cli.matching.sinkhorn import match

        return match(self, given)


@choice("rebasin", "merge_many")
@dataclass
class MergeMany(Searched, Together):
    """Each network to the mean of the others, in turn (Ainsworth et al. 2023, algorithm 3)."""

    title: ClassVar[str] = "MergeMany"

    def match_all(self, given: Given) -> AllMatched:
        from modeconn_cli.matching.many import match_all, merge_many

        return match_all(merge_many, self, given)


@choice("rebasin", "c2m3")
@dataclass
class CycleConsistent(Searched, Together):
    """All networks to one another at once, by Frank-Wolfe (Crisostomi et al. 2024)."""

    title: ClassVar[str] = "C2M3's Frank-Wolfe"

    def own(self) -> dict[str, Any]:
        return {**super().own(), "later_starts": "the best, one network anew"}  # which were random permutations before

    def match_all(self, given: Given) -> AllMatched:
        from modeconn_cli.matching.many import cycle_consistent, match_all

        return match_all(cycle_consistent, self, given)


@choice("rebasin", "custom")
@dataclass
class CustomMethod(Pairwise):
    """A function of the user's own."""

    target: str = option("", "match.py:function or package.module:function of what is to be matched (Given).")
    kwargs: dict[str, Any] = option({}, "Further arguments of that call.")

    def own(self) -> dict[str, Any]:
        from modeconn_cli.targets import Target

        code = Target(self.target, "rebasin").checksum
        return {**{k: v for k, v in super().own().items() if k != "target"}, "code": code}

    def match(self, given: Given) -> Matching:
        from modeconn_cli.matching.custom import match

        return match(self, given)
