"""budgets: what ensembles and averages of equal cost are worth, over replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.report.gather import aggregate
from modeconn_cli.report.plots import save_png
from modeconn_cli.results import Result, Table
from modeconn_cli.runs.directory import Run
from modeconn_cli.stages.curve import FitCurve, curve_between
from modeconn_cli.stages.endpoints import endpoints
from modeconn_cli.stages.ensemble import FIGURES, figures_on
from modeconn_cli.stages.fge import FGE
from modeconn_cli.stages.kept import Kept, starts
from modeconn_cli.stages.predicted import Predicted, PredictedCurve, PredictedMembers, Predictions
from modeconn_cli.stages.snapshot import Snapshot, from_initialisation
from modeconn_cli.stages.swa import SWA
from modeconn_cli.stages.swag import SWAG
from modeconn_cli.tasks.base import Column
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.training.cycles import Continued
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.stage import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE = "budgets.csv"
INDEPENDENT = "independent"
CONFIDENCE = 0.95
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKS = "os^Dvx"
METHODS: dict[str, type[Kept]] = {k.name: k for k in (Snapshot, FGE, SWA, SWAG)}
ALL = [INDEPENDENT, *METHODS, FitCurve.name]
COST = (
    Column("budgets", "budgets", digits=0),
    Column("epochs", "epochs", digits=0),
    Column("members", "members", digits=0),
)


@command(
    "budgets",
    panel="look",
    help="Compare at equal cost: independent networks, snapshots, FGE, SWA, SWAG, for 1, 2, 3 trainings.",
    more="One budget is endpoints.epochs. pipeline.replicates=\\[0,1,2] repeats it all with other seeds, and gives "
    "intervals. budgets.methods chooses; each method has the settings of its own group.",
    examples=["pipeline.replicates=\\[0,1,2]"],
)
def request(context: Context) -> Request:
    options, seed = context.config.pipeline, context.config.seed
    if not isinstance(context.task_on_host, Classify):
        raise UserError(f"modeconn budgets averages class probabilities, and task={context.config.task.kind} has none.")
    named = context.config.endpoints
    given = [k for k in ("seeds", "from", "checkpoints", "init_from") if getattr(named, k) is not None]
    if given:
        raise UserError(
            f"modeconn budgets trains networks of its own, by seed or pipeline.replicates: drop endpoints.{given[0]}."
        )
    replicates = [seed] if options.replicates is None else options.replicates
    trained = [line for r in replicates for line in trained_for(context, r)]
    if not trained:
        raise UserError(
            f"budgets.methods={context.config.budgets.methods}: nothing of it fits in {context.config.budgets.most} "
            "budgets; name more methods, raise budgets.most, or lower curve.epochs."
        )
    return Request(own=[Budgets(context, trained)])


@dataclass(frozen=True)
class Line:
    """What one training by one method gives, or one curve, which takes several.

    epochs: that it costs; budgets: how many of them that is. predicted: predictions of its members.
    """

    replicate: int
    method: str
    epochs: int
    predicted: Predictions
    budgets: int = 1


def trained_for(context: Context, replicate: int) -> list[Line]:
    """Every training of a replicate: ``budgets.most`` by each method, of seeds that no other replicate shares."""
    options, named = context.config.budgets, context.config.endpoints
    methods = ALL if options.methods is None else options.methods
    for method in methods:
        if method not in ALL:
            raise UserError(f"budgets.methods: no method {method!r}; there are {', '.join(ALL)}.")
    # Every method that goes on from a share of the ordinary training goes on from one and the same.
    groups = {m: getattr(context.config, m) for m in methods if m in METHODS}
    begun = {g.before(m, named.epochs) for m, g in groups.items() if isinstance(g, Continued)}
    seeds = [options.most * replicate + k for k in range(options.most)]
    keep = sorted({*named.keep_epochs, *begun})
    here = context.having(endpoints=named.having(seeds=seeds, keep_epochs=keep))
    found = []
    for method in methods:
        if method == INDEPENDENT:
            found += [Line(replicate, INDEPENDENT, named.epochs, Predicted(here, e)) for e in endpoints(here)]
            continue
        if method == FitCurve.name:
            found += _curve(here, replicate)
            continue
        kind = METHODS[method]
        places = from_initialisation(here) if kind is Snapshot else starts(here, kind.name)
        for stage in (kind(here, start) for start in places):
            epochs = stage.cycles.before + stage.cycles.training.epochs
            found.append(Line(replicate, kind.name, epochs, PredictedMembers(here, stage, stage.averaged)))
    return found


def _curve(context: Context, replicate: int) -> list[Line]:
    """The curve between the first two networks; none, with a word, where it takes more than the budgets at hand."""
    options, budget, curve = context.config.budgets, context.config.endpoints.epochs, context.config.curve
    epochs = 2 * budget + curve.epochs
    taken = -(-epochs // budget)
    if taken > options.most:
        context.reporter.say(
            f"a curve takes two trainings and curve.epochs={curve.epochs}, {taken} budgets of {budget}, and "
            f"budgets.most={options.most}: it is left out"
        )
        return []
    start, end = endpoints(context)[:2]
    fitted = curve_between(context.having(seed=replicate), start, end)
    return [Line(replicate, FitCurve.name, epochs, PredictedCurve(context, fitted, options.curve_points), taken)]


class Budgets(Stage):
    """budgets.csv: figures of every replicate, method and number of trainings; means.csv: over the replicates."""

    name = "budgets"
    groups: ClassVar[tuple[str, ...]] = ("budgets",)

    def __init__(self, context: Context, lines: Sequence[Line]) -> None:
        super().__init__(context, [line.predicted for line in lines])
        self.lines = list(lines)

    @property
    def label(self) -> str:
        return self.context.label

    def fields(self) -> dict[str, Any]:
        methods = [*dict.fromkeys(line.method for line in self.lines)]
        return {"budgets": {"methods": methods}, "ensemble": {"bins": self.context.config.ensemble.bins}}

    def compute(self, run: Run) -> Result:
        rows = [
            row
            for r, m in dict.fromkeys((line.replicate, line.method) for line in self.lines)
            for row in self._rows(r, m)
        ]
        present = [c for c in FIGURES if any(row.get(c.name) is not None for row in rows)]
        means = _means(rows, present)
        with run.writing("budgets.png") as file:
            save_png(_picture(means, self.context.label), file)
        who = Column("method", "method")
        spread = [
            Column(f"{c.name}{s}", f"{c.title}{w}", c.unit, c.digits)
            for c in present[:2]
            for s, w in (("", ""), ("_low", ", from"), ("_high", ", to"))
        ]
        return Result(
            f"equal budgets on {self.context.label}",
            {f"{row['method']}_{row['budgets']}_error": row["error"] for row in means},
            [
                *present,
                *(replace(FIGURES[0], name=f"{r['method']}_{r['budgets']}_error", title=_words(r)) for r in means),
            ],
            [
                Table(
                    "means.csv",
                    "Means over replicates, with 95% intervals",
                    [who, *COST, Column("n", "n", digits=0), *spread],
                    means,
                ),
                Table(
                    TABLE, "Every replicate", [Column("replicate", "replicate", digits=0), who, *COST, *present], rows
                ),
            ],
            pictures=["budgets.png"],
        )

    def _rows(self, replicate: int, method: str) -> list[dict[str, Any]]:
        """One for every number of trainings by a method, the first so many of a replicate."""
        options = self.context.config.ensemble
        own = [line for line in self.lines if (line.replicate, line.method) == (replicate, method)]
        kept = [_stacked(line.predicted.predictions()) for line in own]
        y = {k.removesuffix(".y"): v for k, v in kept[0].items() if k.endswith(".y")}
        test = self.context.task.data.test.name
        rows = []
        for count in range(1, len(own) + 1):
            L = {k: torch.cat([one[k] for one in kept[:count]]).float() for k in y}
            cost = {k: sum(getattr(line, k) for line in own[:count]) for k in ("budgets", "epochs")}
            cost["members"] = len(L[test])
            rows.append({"replicate": replicate, "method": method, **cost, **figures_on(test, L, y, options)})
        return rows


def _words(row: Mapping[str, Any]) -> str:
    """As "fge, 2 budgets: error"."""
    return f"{row['method']}, {row['budgets']} budget{'s' if row['budgets'] > 1 else ''}: error"


def _stacked(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Predictions (M, n, C) by split, of one network (1, n, C); labels as they are."""
    return {k: v[None] if v.dim() == 2 else v for k, v in kept.items()}


def _means(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Over replicates: a row for each method and number of trainings."""
    found = []
    for method, budgets in dict.fromkeys((row["method"], row["budgets"]) for row in rows):
        alike = [row for row in rows if (row["method"], row["budgets"]) == (method, budgets)]
        row: dict[str, Any] = {k: alike[0][k] for k in ("method", "budgets", "epochs", "members")}
        row["n"] = len(alike)
        for c in columns:
            values = [one[c.name] for one in alike if one.get(c.name) is not None]
            over = aggregate(values, "t", CONFIDENCE) if values else None
            several = over is not None and len(values) > 1
            row[c.name] = None if over is None else over.mean
            row[f"{c.name}_low"], row[f"{c.name}_high"] = (over.low, over.high) if over and several else (None, None)
        found.append(row)
    return found


def _picture(rows: Sequence[Mapping[str, Any]], heading: str) -> Figure:
    """Error and NLL by the number of trainings, a line each method, with intervals over several replicates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    methods = [*dict.fromkeys(row["method"] for row in rows)]
    panels = figure.subplots(1, 2)
    for axes, column in zip(panels, FIGURES[:2], strict=True):
        for i, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            # Beside one another, so that no interval hides another.
            x = [row["budgets"] + 0.06 * (i - (len(methods) - 1) / 2) for row in own]
            y = [row[column.name] for row in own]
            around = [
                [
                    0.0 if row[f"{column.name}_{s}"] is None else abs(row[f"{column.name}_{s}"] - row[column.name])
                    for row in own
                ]
                for s in ("low", "high")
            ]
            axes.errorbar(
                x,
                y,
                around,
                fmt=f"{MARKS[i % len(MARKS)]}-",
                color=COLOURS[i % len(COLOURS)],
                ms=4,
                lw=1.2,
                capsize=2,
                label=method,
            )
        axes.set_xlabel("trainings")
        axes.set_ylabel(f"test {column.heading}", parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure
