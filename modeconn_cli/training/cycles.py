"""Learning rates that rise again, so that one training passes by many networks, and the steps at which these are kept.

Steps i count from 1, as in the papers, and a cycle has c of them. Garipov et al. 2018 (arXiv:1802.10026), section 4;
Huang et al. 2017 (arXiv:1704.00109), equation 2; Izmailov et al. 2018 (arXiv:1803.05407), section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from modeconn_cli.errors import UserError
from modeconn_cli.settings import choice, option
from modeconn_cli.training.recipe import Endpoints, Schedule, Training


def triangular(i: int, c: int, high: float, low: float) -> float:
    """From the highest rate to the lowest, which is that of step c / 2 of a cycle, and back."""
    t = ((i - 1) % c + 1) / c
    return (1 - 2 * t) * high + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1) * high


def falling(i: int, c: int, high: float, low: float) -> float:
    """Linearly to the lowest rate, which is that of a cycle's last step, and up at once."""
    t = ((i - 1) % c + 1) / c
    return (1 - t) * high + t * low


def restarted_cosine(i: int, c: int, high: float) -> float:
    """From the highest rate at a cycle's first step along half a cosine, nearly to 0."""
    return high / 2 * (math.cos(math.pi * ((i - 1) % c) / c) + 1)


@dataclass(frozen=True)
class Cycles:
    """A training whose rate is cyclic.

    training: its recipe, of which the schedule is not used; rate: of step i; kept: the steps after which a network is
    kept; before: epochs of ordinary training that it goes on from.
    """

    training: Training
    rate: Callable[[int], float]
    kept: tuple[int, ...]
    before: int = 0


@dataclass
class Traced:
    trace: int = option(1, "Measure the test split every so many epochs, for trace.csv and its picture; 0: not.", ge=0)


@dataclass
class Continued(Traced):
    start: float = option(
        0.75, "Share of the budget, endpoints.epochs, that is trained first, by endpoints.schedule.", gt=0, lt=1
    )
    epochs: int | None = option(None, "Epochs after that; null: the rest of the budget.", ge=1)

    def before(self, group: str, budget: int) -> int:
        """Epochs of ordinary training."""
        found = round(self.start * budget)
        if not 0 < found < budget:
            raise UserError(
                f"{group}.start={self.start:g} of endpoints.epochs={budget} is {found} epochs, which leaves nothing "
                "before or after it: give more epochs."
            )
        return found

    def after(self, group: str, budget: int) -> int:
        """Epochs with a cyclic rate."""
        return budget - self.before(group, budget) if self.epochs is None else self.epochs


@choice("fge", "fge")
@dataclass
class FGE(Continued):
    start: float = option(
        0.8, "Share of the budget, endpoints.epochs, that is trained first, by endpoints.schedule.", gt=0, lt=1
    )
    cycle: int = option(2, "Epochs of a cycle, an even number: a network is kept in the middle of each.", ge=2)
    lr_max: float = option(0.05, "Highest rate of a cycle, at its end.", gt=0)
    lr_min: float = option(0.01, "Lowest rate of a cycle, in its middle.", gt=0)

    def plan(self, group: str, endpoints: Endpoints, steps: int, whole: bool) -> Cycles:
        """The training, in epochs of so many steps; ``whole``: it has the training before it from here.

        Raises:
            UserError: an odd cycle, rates the wrong way round, or fewer than two networks.
        """
        if self.cycle % 2:
            raise UserError(
                f"{group}.cycle={self.cycle} is odd: the rate is lowest in the middle of a cycle, at the end of an "
                f"epoch; give {self.cycle - 1} or {self.cycle + 1}."
            )
        _require_order(group, "lr_max", self.lr_max, self.lr_min)
        epochs, c = self.after(group, endpoints.epochs), self.cycle * steps
        _require_cycle(group, self.cycle, epochs)
        kept = tuple(range(c // 2, epochs * steps + 1, c))
        if len(kept) < 2:
            raise UserError(
                f"{group}: {epochs} epochs in cycles of {self.cycle} keep one network, and an ensemble needs two: give "
                f"{group}.epochs or endpoints.epochs more, or a shorter {group}.cycle."
            )
        training = continued(endpoints, epochs, self.lr_max)
        before = self.before(group, endpoints.epochs) if whole else 0
        return Cycles(training, lambda i: triangular(i, c, self.lr_max, self.lr_min), kept, before)


@choice("snapshot", "snapshot")
@dataclass
class Snapshot(Traced):
    members: int = option(
        5, "Cycles over the whole budget, endpoints.epochs; the network at the end of each is kept.", ge=2
    )
    lr: float | None = option(None, "Rate that every cycle begins with; null: endpoints.lr.", gt=0)

    def plan(self, group: str, endpoints: Endpoints, steps: int, whole: bool) -> Cycles:
        """As FGE's, from initialisation. Cycles have ceil(T / M) of T steps, the last what is left.

        Raises:
            UserError: there are too few steps for so many cycles.
        """
        total = endpoints.epochs * steps
        c = math.ceil(total / self.members)
        kept = tuple(min(k * c, total) for k in range(1, self.members + 1))
        if c < 2 or total - kept[-2] < c / 2:  # a last cycle cut short would end at a high rate
            raise UserError(
                f"{group}.members={self.members}: {total} steps do not divide into so many cycles of {max(c, 2)}; give "
                "fewer, or endpoints.epochs more."
            )
        lr = endpoints.lr if self.lr is None else self.lr
        return Cycles(continued(endpoints, endpoints.epochs, lr), lambda i: restarted_cosine(i, c, lr), kept)


@dataclass
class Averaged(Continued):
    cycle: int = option(1, "Epochs of a cycle; the network at the end of each enters the average.", ge=1)
    lr: float = option(0.01, "The rate, which is constant; with lr_min, the highest of a cycle.", gt=0)
    lr_min: float | None = option(None, "Lowest rate of a cycle, at its end; null: the rate is constant.", gt=0)

    def plan(self, group: str, endpoints: Endpoints, steps: int, whole: bool) -> Cycles:
        """As FGE's.

        Raises:
            UserError: rates the wrong way round, or fewer than two networks to average.
        """
        low = self.lr if self.lr_min is None else self.lr_min
        _require_order(group, "lr", self.lr, low)
        epochs, c = self.after(group, endpoints.epochs), self.cycle * steps
        _require_cycle(group, self.cycle, epochs)
        kept = tuple(range(c, epochs * steps + 1, c))
        if len(kept) < 2:
            raise UserError(
                f"{group}: {epochs} epoch{'s' if epochs > 1 else ''} in cycles of {self.cycle} give one network, whose "
                f"average is itself: give {group}.epochs or endpoints.epochs more, or a shorter {group}.cycle."
            )
        training = continued(endpoints, epochs, self.lr)
        before = self.before(group, endpoints.epochs) if whole else 0
        return Cycles(training, lambda i: falling(i, c, self.lr, low), kept, before)


@choice("swa", "swa")
@dataclass
class SWA(Averaged):
    every_step: bool = option(False, "Average the weights after every step, the dense average of SWAD.")
    decay: float | None = option(
        None, "Share that the average keeps when weights are added, as of an EMA; null: it is their mean.", gt=0, lt=1
    )
    keep: bool = option(False, "Keep the averaged networks too, as RUN#2, RUN#3, ...; not of every step.")

    def plan(self, group: str, endpoints: Endpoints, steps: int, whole: bool) -> Cycles:
        if self.every_step and self.keep:
            raise UserError(f"{group}.keep=true would keep the network of every step: drop it, or {group}.every_step.")
        return super().plan(group, endpoints, steps, whole)


@choice("swag", "swag")
@dataclass
class SWAG(Averaged):
    rank: int = option(
        10, "K: deviations that the low-rank part of the covariance has, those of the last K cycles.", ge=2
    )
    samples: int = option(10, "Networks to draw.", ge=2)
    floor: float = option(1e-30, "Least variance of a weight.", gt=0)

    def plan(self, group: str, endpoints: Endpoints, steps: int, whole: bool) -> Cycles:
        found = super().plan(group, endpoints, steps, whole)
        if self.rank > len(found.kept):
            raise UserError(
                f"{group}.rank={self.rank} deviations are more than the {len(found.kept)} networks that are passed by: "
                f"give at most {len(found.kept)}, or {group}.epochs or endpoints.epochs more."
            )
        return found


def continued(endpoints: Endpoints, epochs: int, lr: float) -> Training:
    """The endpoints' recipe over other epochs and at another rate, without their schedule."""
    own = {f.name for f in dataclasses.fields(Training)}
    scheduled = {"epochs", "lr", "schedule", "schedule_every", "warmup_epochs", "milestones", "gamma"}
    same = {k: getattr(endpoints, k) for k in own - scheduled}
    return Training(epochs=epochs, lr=lr, schedule=Schedule.constant, **same)


def _require_order(group: str, name: str, high: float, low: float) -> None:
    if high < low:
        raise UserError(
            f"{group}.{name}={high:g} is below {group}.lr_min={low:g}: the rate falls from the one to the other; "
            "exchange them."
        )


def _require_cycle(group: str, cycle: int, epochs: int) -> None:
    if cycle > epochs:
        raise UserError(
            f"{group}.cycle={cycle} is longer than the {epochs} epoch{'s' if epochs > 1 else ''} that are left for it: "
            f"give {group}.epochs or endpoints.epochs more, or a shorter cycle."
        )
