"""How points of a path are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeconn_cli.errors import UserError
from modeconn_cli.settings import Name, choice, option

if TYPE_CHECKING:
    from modeconn_cli.settings import Config


class BatchNorm(Name):
    """Running statistics at inner points: re-estimated on training data, as in Garipov et al. 2018
    (arXiv:1802.10026) and Izmailov et al. 2018 (arXiv:1803.05407), or the coefficient mean of the ends', as if they
    were weights.
    """

    reestimate = "reestimate"
    mean = "mean"


class Renormalise(Name):
    """What is set right at inner points: every unit's mean and standard deviation (REPAIR), or its deviation alone
    (RESCALE), to those between the ends' (Jordan et al. 2022, arXiv:2211.08403).
    """

    none = "none"
    repair = "repair"
    rescale = "rescale"


class PathOf(Name):
    """Which of the paths between two endpoints."""

    curve = "curve"
    segment = "segment"


@choice("interpolation", "interpolation")
@dataclass
class Interpolation:
    """How a path is measured, and what is asked of the scores: those with ``identity=False`` are asked of a
    finished run again.

    ``points``: values of t in [0, 1]; ``search_max``: forward passes over both splits; ``bn_examples``,
    ``train_examples``: of the training split; ``bootstrap``: resamples (R of evaluation/barriers.py);
    ``confidence``: in (0, 1); ``connected_below``: in points of test error.

    61 points are those of Garipov et al. 2018's code, 2 points the error barrier below which Frankle et al. 2020
    (arXiv:1912.05671) call networks stable, with the mean of the ends as reference. ``verdict_odds`` is this
    project's own: docs/methods/segment.md measures what it costs.
    """

    points: int = option(61, "Evenly spaced values of t, both ends included.", ge=2, le=10_001)
    search_max: int = option(
        8, "Further evaluations that search for the highest train loss between grid points; 0: none.", ge=0, le=1000
    )
    batch_size: int = option(1000, "Examples of a forward pass; changes rounding only.", ge=1, identity=False)
    batch_norm: BatchNorm = option(
        BatchNorm.reestimate,
        "At inner points: reestimate on training data, or the coefficient mean of the ends' statistics.",
    )
    renormalise: Renormalise = option(
        Renormalise.none,
        "At inner points: repair sets every layer's statistics to those between the ends' (REPAIR), rescale only its "
        "deviations.",
    )
    bn_examples: int | None = option(None, "Training examples of a re-estimation (a fixed draw); null: all.", ge=2)
    train_examples: int | None = option(
        None, "Training examples that train_* columns are measured on (a fixed draw); null: all.", ge=2
    )
    bootstrap: int = option(
        1000, "Bootstrap resamples of the examples behind every interval.", ge=20, le=1_000_000, identity=False
    )
    confidence: float = option(0.95, "Coverage of the intervals.", gt=0, lt=1, identity=False)
    connected_below: float = option(
        2.0,
        "Verdict: connected when the test-error barrier (above_mean) is under this many points (Frankle 2020).",
        gt=0,
        identity=False,
    )
    verdict_odds: float = option(
        1.5,
        "Odds, to one, at which a verdict is right even for a barrier at the threshold; 1: the corrected one decides.",
        ge=1,
        le=1e6,
        identity=False,
    )
    path: PathOf = option(PathOf.curve, "evaluate: which path to evaluate, curve or segment.", identity=False)


class Members(Name):
    evenly = "evenly"
    least_alike = "least_alike"


@choice("ensemble", "ensemble")
@dataclass
class Ensemble:
    """How averaged predictions of K members are judged.

    ``bins``: of confidence in [0, 1], over the examples, 15 as in Guo et al. 2017 (arXiv:1706.04599); ``draws``:
    sets of k members, for every k below K, that figures are means over where there are more.
    """

    bins: int = option(15, "Bins of confidence behind the calibration error.", ge=1)
    draws: int = option(20, "Most sets of members that figures of fewer than all are means over.", ge=1)
    points: int | None = option(None, "Of a path that is named as a whole: how many of its points are members.", ge=2)
    members: Members = option(
        Members.evenly,
        "Which points: evenly spaced t, or least_alike: of ensemble.candidates, the best on the validation split, then "
        "one by one that whose probabilities are least like the chosen ones' (mean cosine).",
    )
    candidates: int = option(21, "least_alike: evenly spaced t to choose from.", ge=2, le=1001)
    ood: str | None = option(
        None,
        "Another data set, by source (mnist) or as a file of arrays: how well uncertainty tells its test split from "
        "this one's.",
    )

    def check_together(self, group: str, config: Config) -> None:
        """Raise UserError for what one field cannot say."""
        if self.members is Members.least_alike:
            if not config.dataset.validation_size:
                raise UserError(
                    f"{group}.members=least_alike chooses on a validation split: set dataset.validation_size, the "
                    "training examples to hold out."
                )
            if not config.dataset.use_test:
                raise UserError(
                    f"{group}.members=least_alike chooses on the validation split, and dataset.use_test=false reports "
                    "it: drop one of the two."
                )
            if self.points is not None and self.candidates < self.points:
                raise UserError(f"{group}.candidates={self.candidates} is less than {group}.points={self.points}.")


class By(Name):
    total = "total"
    aleatoric = "aleatoric"
    epistemic = "epistemic"


@choice("uncertainty", "uncertainty")
@dataclass
class Uncertainty:
    points: int = option(11, "Evenly spaced t along the path whose networks are asked.", ge=2, le=1001)
    by: By = option(By.total, "Which uncertainty ranks images and divides the budget.")
    budget: int | None = option(None, "A whole number to be divided among the examples by their uncertainty.", ge=0)
    min: int = option(0, "The least of the budget that an example gets.", ge=0)
    max: int | None = option(None, "The most of the budget that an example gets.", ge=0)
    images: int = option(10, "Most certain images that are drawn, and as many of the least; 0: none.", ge=0, le=50)
    keep_predictions: bool = option(
        True, "Keep every network's predictions, so that the next question needs no forward pass.", identity=False
    )

    def check_together(self, group: str, config: Config) -> None:
        """Raise UserError for what one field cannot say."""
        if self.max is not None and self.max < self.min:
            raise UserError(f"{group}.max={self.max} is less than {group}.min={self.min}.")


@choice("budgets", "budgets")
@dataclass
class Budgets:
    methods: list[str] | None = option(None, "What is compared: independent, or names of commands; null: all.")
    most: int = option(3, "Trainings, of endpoints.epochs each, that are put together at most.", ge=1, le=100)
    curve_points: int = option(5, "Of a curve: how many of its points, evenly spaced in t, are members.", ge=2, le=1001)
