"""ensemble: networks whose predictions are averaged, how that grows with their number, and how unlike they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.data.foreign import foreign, foreign_fields, foreign_split
from modeconn_cli.data.options import Dataset
from modeconn_cli.errors import UserError
from modeconn_cli.evaluation import ensembles
from modeconn_cli.evaluation.options import Ensemble, Members
from modeconn_cli.report.plots import save_png
from modeconn_cli.results import Result, Table
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.endpoints import Endpoint, endpoints
from modeconn_cli.stages.imported import whole_path
from modeconn_cli.stages.predicted import OOD, Predicted
from modeconn_cli.tasks.base import Column
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.stage import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = (
    Column("error", "error", unit="%", digits=2, scale=100.0),
    Column("nll", "NLL"),
    Column("nll_tempered", "NLL, T fitted"),
    Column("temperature", "T", digits=3),
    Column("brier", "Brier"),
    Column("ece", "ECE, width", unit="%", digits=2, scale=100.0),
    Column("ece_mass", "ECE, mass", unit="%", digits=2, scale=100.0),
    Column("auroc_total", "AUROC, total"),
    Column("auroc_epistemic", "AUROC, epistemic"),
    Column("ood_total", "OOD AUROC, total"),
    Column("ood_epistemic", "OOD AUROC, epistemic"),
)
UNLIKE = (
    Column("disagreement", "disagreement", unit="%", digits=2, scale=100.0),
    Column("kl", "KL"),
    Column("cosine", "cosine"),
)


@command(
    "ensemble",
    panel="look",
    help="Average the predictions of networks: error, calibration, disagreement, as their number grows.",
    more="Members are trained from endpoints.seeds, or are any networks by reference; of a path that is named as a "
    "whole, ensemble.points of its points. With dataset.validation_size a temperature is fitted on the validation "
    "split.",
    examples=["endpoints.seeds=\\[0,1,2,3]", "evaluate/digits-mlp-s0-1 ensemble.points=5"],
    networks=True,
)
def request(context: Context) -> Request:
    if not isinstance(context.task_on_host, Classify):
        raise UserError(
            f"modeconn ensemble averages class probabilities, and task={context.config.task.kind} has none."
        )
    members = named_members(context)
    if len(members) < 2:
        raise UserError(
            f"an ensemble needs two members, and {len(members)} is given: name more, as endpoints.seeds=[0,1,2], or "
            "networks after the command's name, as REF REF."
        )
    elsewhere = other_data(context)
    predicted = [Predicted(context, m) for m in members]
    on_others = [] if elsewhere is None else [Predicted(context, m, elsewhere) for m in members]
    return Request(own=[Ensembled(context, predicted, on_others)], beside=members)


def named_members(context: Context) -> list[Endpoint]:
    """The endpoints that the configuration names; of a path that is named as a whole, points of it."""
    options, named = context.config.ensemble, context.config.endpoints
    texts = [*map(str, named.references or [])]
    paths = [t for t in texts if whole_path(t, context)]
    if not paths:
        if options.points is not None:
            raise UserError(
                f"ensemble.points={options.points} counts points of a path, and none is named: give one that was "
                "measured or fitted, as modeconn ensemble RUN ensemble.points=5."
            )
        return endpoints(context)
    if options.points is None:
        raise UserError(
            f"{paths[0]} is a path of many networks: say how many of its points are members, as ensemble.points=5, or "
            f"name them, as {paths[0]}@t=0.5."
        )
    if options.members is Members.least_alike and len(texts) > 1:
        raise UserError(f"ensemble.members=least_alike chooses among points of one path, and {len(texts)} are named.")
    count = options.points if options.members is Members.evenly else options.candidates
    points = [f"{t:.12g}" for t in np.linspace(0, 1, count)]
    each = [n for t in texts for n in ([f"{t}@t={x}" for x in points] if t in paths else [t])]
    return endpoints(context.having(endpoints=named.having(**{"from": each})))


def other_data(context: Context) -> Dataset | None:
    """The data set that ensemble.ood names, whose examples must be ones that the networks can take."""
    named, config = context.config.ensemble.ood, context.config
    if named is None:
        return None
    options = foreign(named, config.dataset, OOD)
    if foreign_fields(options)["data"] == context.checksum:
        raise UserError(f"{OOD}={named} is the data set that the networks were trained on; name another.")
    foreign_split(options, context.data_on_host, OOD)
    return options


class Ensembled(Stage):
    """growth.csv: figures by the number of members; members.csv: of each; pairs.csv: how unlike any two are.

    Of fewer members than all, figures are means over sets of them: every one, or as many as ``ensemble.draws`` says,
    drawn at random.
    """

    name = "ensemble"
    groups: ClassVar[tuple[str, ...]] = ("ensemble",)

    def __init__(self, context: Context, members: Sequence[Predicted], elsewhere: Sequence[Predicted] = ()) -> None:
        digests = [m.identity.digest for m in members]
        if len({*digests}) < len(digests):
            raise UserError("an ensemble's members are the same network: averaging them changes nothing; drop one.")
        super().__init__(context, [*members, *elsewhere])
        self.members, self.elsewhere = list(members), list(elsewhere)

    @property
    def label(self) -> str:
        options = self.context.config.ensemble
        count = options.points if options.members is Members.least_alike else len(self.members)
        return f"{self.context.label}-{count}-members"

    def compute(self, run: Run) -> Result:
        options = self.context.config.ensemble
        names, by_split, labels, others = self._predictions()
        reported = self.context.task.data.test.name
        fitted = fitted_on(by_split, reported)

        def figures(chosen: Sequence[int]) -> dict[str, float | None]:
            apart = None if others is None else others[[*chosen]]
            return figures_on(reported, {k: v[[*chosen]] for k, v in by_split.items()}, labels, options, apart)

        by_member = [figures([i]) for i in range(len(names))]
        alone = [{"member": name, **found} for name, found in zip(names, by_member, strict=True)]
        growth = []
        for size in range(1, len(names) + 1):
            chosen = sets_of(len(names), size, options.draws)
            drawn = [figures(c) if size > 1 else by_member[c[0]] for c in chosen]
            growth.append({"members": size, "sets": len(drawn), **_means(drawn)})
        L_mnc = by_split[reported]
        apart = {
            "disagreement": 100 * ensembles.disagreement(L_mnc),
            "kl": ensembles.divergence(L_mnc),
            "cosine": ensembles.cosine(L_mnc),
        }
        pairs = [
            {"first": names[i], "second": names[j], **{k: float(v[i, j]) for k, v in apart.items()}}
            for i, j in itertools.permutations(range(len(names)), 2)
        ]
        present = [c for c in FIGURES if c.name in growth[-1]]
        with run.writing("growth.png") as file:
            figure = _growth(growth, self.context.label)
            save_png(figure, file)
        whole = {k: v for k, v in growth[-1].items() if k not in ("members", "sets") and v is not None}
        counts = [Column("members", "members", digits=0), Column("sets", "sets", digits=0)]
        return Result(
            f"{len(names)} networks, predictions averaged",
            {**whole, **{k: ensembles.pairs_mean(v) for k, v in apart.items()}},
            [*present, *UNLIKE],
            [
                Table("growth.csv", f"{reported} split, by number of members", [*counts, *present], growth),
                Table("members.csv", "Each by itself", [Column("member", "member"), *present], alone),
                Table("pairs.csv", "Pairs", [Column("first", "first"), Column("second", "second"), *UNLIKE], pairs),
            ],
            pictures=["growth.png"],
            more={
                "members": names,
                "split": reported,
                "temperature_fitted_on": fitted,
                "ood": options.ood,
                "bins": options.bins,
            },
        )

    def _predictions(self) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """Members' names, their predictions (M, n, C) and the labels (n,) by split, and predictions on other data."""
        options, kept = self.context.config.ensemble, [m.predictions() for m in self.members]
        by_split = {name: torch.stack([k[name].float() for k in kept]) for name in kept[0] if not name.endswith(".y")}
        labels = {name: kept[0][f"{name}.y"] for name in by_split}
        chosen = [*range(len(kept))]
        if options.members is Members.least_alike and options.points is not None:
            chosen = sorted(ensembles.least_alike(by_split["validation"], labels["validation"], options.points))
        others = [
            next(v for k, v in p.predictions().items() if not k.endswith(".y")).float()
            for p in (self.elsewhere[i] for i in chosen if self.elsewhere)
        ]
        names = [self.members[i].network.short_name for i in chosen]
        return names, {k: v[chosen] for k, v in by_split.items()}, labels, torch.stack(others) if others else None


def fitted_on(splits: Iterable[str], reported: str) -> str | None:
    """The split that a temperature is fitted on: the validation split, where there is one that is not reported."""
    return "validation" if "validation" in splits and reported != "validation" else None


def figures_on(
    reported: str,
    L_by_split: Mapping[str, Tensor],
    y_by_split: Mapping[str, Tensor],
    options: Ensemble,
    elsewhere: Tensor | None = None,
) -> dict[str, float | None]:
    """:func:`figures_of` the reported split, of predictions (M, n, C) and labels (n,) by split."""
    fitted = fitted_on(L_by_split, reported)
    fit = (L_by_split[fitted], y_by_split[fitted]) if fitted else None
    return figures_of(L_by_split[reported], y_by_split[reported], fit, options, elsewhere)


def figures_of(
    L_mnc: Tensor,
    y: Tensor,
    validation: tuple[Tensor, Tensor] | None,
    options: Ensemble,
    elsewhere: Tensor | None = None,
) -> dict[str, float | None]:
    """FIGURES of members' averaged predictions, in their units.

    Those of temperature only with a validation split, those of other data only with predictions on some, (M, n', C).
    """
    together, unsure = ensembles.averaged(L_mnc), ensembles.uncertainty(L_mnc)
    wrong = (together.argmax(1) != y).numpy()
    found = {
        "error": ensembles.error(together, y),
        "nll": ensembles.nll(together, y),
        "brier": ensembles.brier(together, y),
        "ece": ensembles.calibration_error(together, y, options.bins),
        "ece_mass": ensembles.calibration_error(together, y, options.bins, equal_mass=True),
        "auroc_total": ensembles.auroc(unsure.total, wrong),
        # One member agrees with itself.
        "auroc_epistemic": ensembles.auroc(unsure.epistemic, wrong) if len(L_mnc) > 1 else math.nan,
    }
    if validation is not None:
        T = ensembles.temperature(ensembles.averaged(validation[0]), validation[1])
        found |= {"temperature": T, "nll_tempered": ensembles.nll(ensembles.tempered(together, T), y)}
    if elsewhere is not None:
        other = ensembles.uncertainty(elsewhere)
        foreign = np.arange(len(unsure.total) + len(other.total)) >= len(unsure.total)
        found["ood_total"] = ensembles.auroc(np.concatenate([unsure.total, other.total]), foreign)
        found["ood_epistemic"] = math.nan
        if len(L_mnc) > 1:
            found["ood_epistemic"] = ensembles.auroc(np.concatenate([unsure.epistemic, other.epistemic]), foreign)
    figures = {c.name: c.scale * found[c.name] for c in FIGURES if c.name in found}
    return {k: None if math.isnan(v) else v for k, v in figures.items()}


def sets_of(members: int, size: int, most: int) -> list[tuple[int, ...]]:
    """Every set of so many of the members, or ``most`` different ones drawn at random, the same ones every time."""
    if math.comb(members, size) <= most:
        return [*itertools.combinations(range(members), size)]
    rng, drawn = np.random.default_rng([members, size]), set[tuple[int, ...]]()
    while len(drawn) < most:
        drawn.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(drawn)


def _means(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of every figure, over the sets that have one: without a wrong answer there is no AUROC of errors."""
    found = {k: [v for row in rows if (v := row[k]) is not None] for k in rows[0]}
    return {k: float(np.mean(values)) if values else None for k, values in found.items()}


def _growth(rows: Sequence[Mapping[str, Any]], heading: str) -> Figure:
    """Error, NLL and calibration error against the number of members."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    sizes = [row["members"] for row in rows]
    for axes, name in zip(figure.subplots(1, 3), ("error", "nll", "ece"), strict=True):
        column = next(c for c in FIGURES if c.name == name)
        axes.plot(sizes, [row[name] for row in rows], "o-", color="#0072B2", markersize=4)
        if name == "nll" and "nll_tempered" in rows[0]:
            axes.plot(
                sizes, [row["nll_tempered"] for row in rows], "s--", color="#D55E00", markersize=4, label="T fitted"
            )
            axes.legend(frameon=False)
        axes.set_xlabel("members")
        axes.set_title(column.heading, fontsize=10, parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure
