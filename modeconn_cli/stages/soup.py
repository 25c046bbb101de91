"""soup: several networks made one, and how that does beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.barriers import barrier_intervals, resampled_means
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.evaluation.rare import is_counted, with_counts
from modeconn_cli.matching.options import Method, Together
from modeconn_cli.merging.given import Given, Merging
from modeconn_cli.merging.judge import Judge
from modeconn_cli.merging.options import Every, Merge, ways
from modeconn_cli.merging.vectors import wide
from modeconn_cli.results import Result, Table
from modeconn_cli.runs.directory import Run
from modeconn_cli.settings import rechosen
from modeconn_cli.stages.curve import WEIGHT
from modeconn_cli.stages.endpoints import Endpoint, TrainedEndpoint, endpoints, named_by
from modeconn_cli.stages.fused import fused_endpoints
from modeconn_cli.stages.imported import ImportedEndpoint
from modeconn_cli.stages.merge import Merged
from modeconn_cli.stages.rebasin import aligned_end
from modeconn_cli.tasks.base import Column
from modeconn_cli.work.command import Request, command
from modeconn_cli.work.context import Context
from modeconn_cli.work.stage import Stage

BETWEEN = ("weight", "distance", "barrier", "low", "high")


@command(
    "soup",
    panel="align",
    help="Merge networks into one: averages, task arithmetic, TIES, DARE, SLERP; and measure it beside them.",
    more="soup=uniform, greedy, least_squares or learned average endpoints.seeds, or any networks by reference "
    "(endpoints.from=\\[REF,REF]); task_arithmetic, ties and dare merge what training changed of soup.parent; slerp "
    "takes two; soup=all is every one of these that what is given admits. Works after rebasin=METHOD too.",
    examples=["soup=all endpoints.seeds=\\[0,1,2,3] dataset.validation_size=200"],
    networks=True,
)
def request(context: Context) -> Request:
    options = context.config.soup
    networks, parent = endpoints(context), parent_of(context)
    named = [*networks, *([parent] if parent else [])]
    if len({n.identity.digest for n in named}) < len(named):
        raise UserError("two of the networks to be merged are the same one: drop one, or give another.")
    if isinstance(options, Every):
        names = options.methods or [n for n in ways() if refusal(way_of(context, n), context, networks, parent) is None]
        souped = [made(way_of(context, n), networks, parent) for n in names]
        if not souped:
            raise UserError(f"soup=all: a soup needs two networks, and {len(networks)} is given: give more.")
        return Request(own=[*souped, Compared(context, souped)], beside=named)
    for idle in sorted(options.aside):
        context.reporter.say(f"soup.{idle} changes nothing with soup={options.method}")
    return Request(own=[made(context, networks, parent)], beside=named)


def way_of(context: Context, name: str) -> Context:
    """The context with another way of merging, by its name."""
    if name not in ways():
        raise UserError(f"soup.methods: no way {name!r}; there are {', '.join(ways())}.")
    return context.having(soup=rechosen(context.config.soup, "soup", name))


def made(context: Context, networks: Sequence[Endpoint], parent: Endpoint | None) -> Souped:
    """The soup that a context asks for.

    Raises:
        UserError: what is given does not admit it.
    """
    wrong = refusal(context, context, networks, parent)
    if wrong is not None:
        raise UserError(wrong)
    way = context.config.soup
    parent = parent if isinstance(way, Merge) and way.takes_parent else None
    rebasin, first = context.config.rebasin, parent or networks[0]
    if isinstance(rebasin, Together):
        matched = Merged(context, [*([parent] if parent else []), *networks])
        matched.check()
        return Souped(context, networks, parent, matched)
    if isinstance(rebasin, Method):
        networks = [n if n is first else aligned_end(context, first, n) or n for n in networks]
    return Souped(context, networks, parent)


def refusal(asked: Context, context: Context, networks: Sequence[Endpoint], parent: Endpoint | None) -> str | None:
    """Why what is given does not admit a way of merging, in a line; None where it does."""
    way = asked.config.soup
    assert isinstance(way, Merge)
    what, n = f"soup={way.method}", len(networks)
    if n < way.least:
        return (
            f"{what} needs {'two networks' if way.least == 2 else 'a network'}, and {n} is given: name more, as "
            "endpoints.seeds=[0,1,2] or endpoints.from=[REF,REF]."
        )
    if way.most is not None and n > way.most:
        return f"{what} merges {way.most} networks, and {n} are given: give two, or choose another soup."
    if way.takes_parent and parent is None:
        return (
            f"{what} merges what training changed of a common parent, and none is given: name the network that all "
            "were trained on from, soup.parent=REF, or train them so with endpoints.init_from=REF."
        )
    if way.chooses and context.data_on_host.validation is None:
        return (
            f"{what} {way.chooses} on the validation split, and there is none: set dataset.validation_size to the "
            "number of training examples to hold out."
        )
    if way.compares_answers and not hasattr(context.task_on_host, "predicted"):
        kind = context.config.task.kind
        return f"{what} compares answers with targets, and task={kind} has none that it knows: use soup=learned."
    return None


def count_of(networks: Sequence[Endpoint]) -> str:
    """As "3 networks"."""
    return f"{len(networks)} network" + ("" if len(networks) == 1 else "s")


def parent_of(context: Context) -> Endpoint | None:
    """The network that all were trained on from, by soup.parent or endpoints.init_from."""
    options = context.config.endpoints
    key = "soup.parent" if context.config.soup.parent else "endpoints.init_from"
    reference = context.config.soup.parent or options.init_from
    if reference is None:
        return None
    found = named_by(key, reference, context)
    parent = ImportedEndpoint(context.having(endpoints=options.having(fuse=False)), found, found.names[0])
    parent.check()
    return fused_endpoints(context, [parent])[0]


class Souped(Endpoint):
    """checkpoint.safetensors: the soup, statistics re-estimated; soup.csv: it and its ingredients; lines.csv: between.

    Each line from the soup to an ingredient is measured on the reported split, at soup.points points.
    """

    name = "soup"
    makes = ""
    groups: ClassVar[tuple[str, ...]] = ("soup",)

    def __init__(
        self, context: Context, networks: Sequence[Endpoint], parent: Endpoint | None, matched: Merged | None = None
    ) -> None:
        """``matched``: what permuted the parent, if any, and these networks together."""
        super().__init__(context)
        self._upstream = [*([parent] if parent else []), *networks, *([matched] if matched else [])]
        self.networks, self.parent, self.matched = list(networks), parent, matched
        way = context.config.soup
        assert isinstance(way, Merge)
        self.way = way
        self.short_name = f"{self._title} of {', '.join(n.short_name for n in self.networks)}"

    @property
    def _title(self) -> str:
        return self.way.title or self.way.method

    @property
    def label(self) -> str:
        originals = [n.original for n in self.networks]
        seeds = [str(o.seed) for o in originals if isinstance(o, TrainedEndpoint)]
        names = f"s{'-'.join(seeds)}" if len(seeds) == len(originals) else f"{len(originals)}-files"
        return f"{self.context.label}-{names}-{self.way.method}"

    def fields(self) -> dict[str, Any]:
        return {"method": str(self.way.method), **self.way.own()}

    @property
    def memory(self) -> int:  # type: ignore[override]
        """The networks, as many vectors again while they are merged, and one."""
        return (2 * len(self.networks) + 1) * self.context.parameters * WEIGHT

    def metrics(self) -> dict[str, float]:
        """Of the splits of every network."""
        return {k: v for k, v in super().metrics().items() if k.startswith(("train_", "test_"))}

    def compute(self, run: Run) -> Result:
        net = self.context.net(0)
        evaluator = self.context.evaluator(net, Interpolation())
        every = self._states()
        judge = Judge(
            evaluator, every[1:] if self.parent else every, getattr(self.way, "by", None) or self._judged.name
        )
        for note in evaluator.notes(judge.buffers):
            self.context.reporter.say(note)
        given = Given(
            judge.points,
            [n.short_name for n in self.networks],
            net.views,
            net.size,
            net.flatten(every[0]) if self.parent else None,
            judge.alone,
            judge.score,
            judge.gradient,
            judge.residuals,
            self.context.reporter.progress,
            self.context.signals.check,
        )
        found = self.way.merge(given)
        with evaluator.merged(judge.points, found.point, judge.buffers, found.shares):
            soup = net.state()
        lines = self._lines(evaluator, every, soup, found)
        rows = self._rows(evaluator, every)
        net.load(soup)
        result = self.measured(run, evaluator, net, self._note(found))
        figures = {**result.metrics, **self._validation(evaluator)}
        rows.append({"network": "the soup", **figures})
        own = [row[f"test_{self._judged.name}"] for row in rows[len(every) - len(self.networks) : -1]]
        reached = figures[f"test_{self._judged.name}"]
        best = min(own) if self._judged.better == "lower" else max(own)
        figures |= {"above_mean": reached - float(np.mean(own)), "above_best": reached - best}
        figures["barrier"] = max(line["barrier"] for line in lines)
        columns, name = self._columns([*figures]), Column("network", "network")
        beside = [c for c in columns if c.name in rows[-1]]
        named = {c.name: c for c in columns}
        between = [named.get(k, Column(k, k)) for k in BETWEEN if k in lines[0]]
        return replace(
            result,
            title=f"{self._title} of {count_of(self.networks)}",  # without seeds, which are averaged over
            metrics=figures,
            columns=columns,
            tables=[
                Table("soup.csv", "The soup beside its ingredients", [name, *beside], rows),
                Table("lines.csv", "The straight line from the soup to each", [name, *between], lines),
            ],
        )

    @property
    def _judged(self) -> Column:
        """The column of the task's verdict."""
        columns = self.context.task_on_host.columns
        return next((c for c in columns if c.name == self.context.task_on_host.verdict.column), columns[0])

    @property
    def _named(self) -> list[Endpoint]:
        """The parent, if any, and the networks."""
        return [*([self.parent] if self.parent else []), *self.networks]

    def _states(self) -> list[dict[str, Tensor]]:
        return self.matched.matched_states() if self.matched else [n.state() for n in self._named]

    def _columns(self, figures: Sequence[str]) -> list[Column]:
        """How these figures read."""
        of_task = {
            f"{split}_{c.name}": Column(f"{split}_{c.name}", f"{split} {c.title or c.name}", c.unit, c.digits)
            for split in ("train", "validation", "test")
            for c in self.context.task.columns
        }
        c = self._judged
        of_task |= {
            name: Column(name, f"{title}, test {c.title or c.name}", c.difference, c.digits)
            for name, title in (
                ("above_mean", "above their mean"),
                ("above_best", "above the best"),
                ("barrier", "barrier"),
            )
        }
        return [of_task[name] for name in figures]

    def _note(self, found: Merging) -> dict[str, Any]:
        """What the summary says besides figures."""
        data, usual = self.context.task.data, Interpolation()
        if self.way.chooses and data.test is data.validation:
            self.context.reporter.say("the soup was chosen by the split that is reported, and its figures flatter it")
        return {
            "name": self.short_name,
            "method": str(self.way.method),
            "networks": [n.short_name for n in self.networks],
            "parent": self.parent.short_name if self.parent else None,
            "merging": found.note,
            "barrier": {"column": self._judged.name, "convention": self.context.task.verdict.convention},
            "intervals": {"resamples": usual.bootstrap, "confidence": usual.confidence},
        }

    def _validation(self, evaluator: Evaluator) -> dict[str, float]:
        """The network's means on the validation split, where that is not the one that is reported anyway."""
        data = self.context.task.data
        if data.validation is None or data.validation is data.test:
            return {}
        return {f"validation_{k}": v for k, v in evaluator.score(data.validation).means.items()}

    def _rows(self, evaluator: Evaluator, every: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
        """A row a network: its own figures as they were measured, and those of the validation split."""
        rows = []
        for network, state in zip(self._named, every, strict=True):
            evaluator.net.load(state)
            rows.append({"network": network.short_name, **network.metrics(), **self._validation(evaluator)})
        return rows

    def _lines(
        self, evaluator: Evaluator, every: Sequence[dict[str, Tensor]], soup: dict[str, Tensor], found: Merging
    ) -> list[dict[str, Any]]:
        """A row a network: its weight, its distance from the soup, and the barrier between, with an interval."""
        net, task, column = evaluator.net, self.context.task, self._judged
        device, coordinates = net.point.device, {*net.names}
        points = [net.flatten(s) for s in (soup, *every)]
        buffers = [{k: v.to(device) for k, v in s.items() if k not in coordinates} for s in (soup, *every)]
        t, usual = np.linspace(0, 1, self.way.points), Interpolation()
        weights = found.note.get("weights", [])
        rows = []
        for k, network in enumerate(self._named, 1):
            ends, scores = torch.stack([points[0], points[k]]), []
            for at in t.tolist():
                with evaluator.placed(ends, np.array([1 - at, at]), [buffers[0], buffers[k]]):
                    scores.append(column.scale * evaluator.score(task.data.test).columns[column.name].double())
                self.context.signals.check()
            L = torch.stack(scores)
            around = resampled_means(L, usual.bootstrap)
            barriers = barrier_intervals(t, L.mean(1).numpy(), around, usual.confidence)
            if is_counted(L / column.scale):
                barriers = with_counts(barriers, t, L / column.scale, column.scale, usual.confidence)
            barrier = barriers[task.verdict.convention]
            self.context.reporter.progress(k, len(self._named), f"line to {network.short_name}")
            rows.append(
                {
                    "network": network.short_name,
                    **({"weight": weights[k - 1]} if weights else {}),
                    "distance": float((wide(ends[1]) - wide(ends[0])).norm()),
                    "barrier": barrier["value"],
                    "low": barrier["low"],
                    "high": barrier["high"],
                }
            )
        return rows


class Compared(Stage):
    """soups.csv: several soups of the same networks, a row each."""

    name = "soups"

    def __init__(self, context: Context, soups: Sequence[Souped]) -> None:
        super().__init__(context, soups)
        self.soups = list(soups)

    def fields(self) -> dict[str, Any]:
        return {}

    @property
    def label(self) -> str:
        return self.soups[-1].label.rpartition("-")[0]

    def compute(self, run: Run) -> Result:
        found = [Result.read(s.result.folder) for s in self.soups]
        rows = [{"soup": s._title, **f.metrics} for s, f in zip(self.soups, found, strict=True)]
        columns = [Column("soup", "soup"), *found[0].columns]
        return Result("Soups", tables=[Table("soups.csv", "Every soup of these networks", columns, rows)])
