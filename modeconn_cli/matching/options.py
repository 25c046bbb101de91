"""How networks are brought near one another."""

from __future__ import annotations

from dataclasses import dataclass

from modeconn_cli.settings import LARGEST_SEED, Name, choice, option


class Match(Name):
    none = "none"
    weight = "weight"
    activation = "activation"
    straight_through = "straight_through"
    sinkhorn = "sinkhorn"
    merge_many = "merge_many"
    c2m3 = "c2m3"


_TRAINED = ("steps", "lr", "batch_size", "examples", "seed")
_SEARCHED = ("restarts", "sweeps", "seed")
USED_BY: dict[str, frozenset[str]] = {  # the fields of Rebasin that a method depends on
    Match.none: frozenset({"method"}),
    **{
        method: frozenset({"method", "groups", *fields})
        for method, fields in {
            Match.weight: _SEARCHED,
            Match.activation: ("examples", "similarity"),
            Match.straight_through: _TRAINED,
            Match.sinkhorn: (*_TRAINED, "between", "temperature", "unrolled"),
            Match.merge_many: _SEARCHED,
            Match.c2m3: _SEARCHED,
        }.items()
    },
}


class Between(Name):
    l2 = "l2"
    midpoint = "midpoint"
    random = "random"


class Similarity(Name):
    correlation = "correlation"
    least_squares = "least_squares"


@choice("rebasin", *map(str, Match))
@dataclass
class Rebasin:
    method: str = option(
        "none",
        "Permute the second endpoint first: by weight, by activation, by straight_through or sinkhorn (trained), or "
        "not at all; merge_many and c2m3 permute any number of endpoints at once.",
        names="rebasin",
    )
    groups: str | None = option(
        None, "A file of permutation groups, for networks that cannot be traced; see modeconn symmetries --output."
    )
    restarts: int | None = option(
        None,
        "weight, merge_many, c2m3: starts after the first; null: 8 for weight (1 where a layer is wider than 1024), "
        "else 3.",
        ge=0,
    )
    sweeps: int = option(100, "weight, merge_many, c2m3: most sweeps over the groups of one start.", ge=1)
    seed: int = option(0, "Of random starts, orders and batches.", ge=0, le=LARGEST_SEED)
    examples: int = option(
        2000, "activation: training examples that units are compared on; trained methods: that midpoints are.", ge=2
    )
    similarity: Similarity = option(
        Similarity.correlation, "activation: compare units by correlation or by least squares."
    )
    steps: int = option(300, "straight_through, sinkhorn: gradient steps.", ge=1)
    lr: float | None = option(None, "straight_through, sinkhorn: Adam's learning rate; null: 1e-3 and 0.1.", gt=0)
    batch_size: int = option(250, "straight_through, sinkhorn: training examples of a step.", ge=2)
    between: Between = option(
        Between.midpoint, "sinkhorn: train on the loss at the midpoint, at random points, or on the distance (l2)."
    )
    temperature: float = option(1.0, "sinkhorn: lower is nearer to permutations.", gt=0)
    unrolled: int | None = option(
        None, "sinkhorn: differentiate through so many rounds of normalisation; null: implicitly.", ge=1
    )
