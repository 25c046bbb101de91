"""Which stages a command needs, in order; what each would do; and carrying them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.chance import at_chance
from modeconn_cli.plugins import load
from modeconn_cli.report.plots import PathResult
from modeconn_cli.report.tables import barrier_rows, read_path, verdict_sentence
from modeconn_cli.results import SUMMARY, Result, read_summary
from modeconn_cli.runs.directory import Run, writable
from modeconn_cli.runs.lock import in_use
from modeconn_cli.settings import Config, check
from modeconn_cli.work.command import COMMANDS, Request
from modeconn_cli.work.context import Context
from modeconn_cli.work.machine import room
from modeconn_cli.work.measuring import MeasuredPath
from modeconn_cli.work.reporting import Reporter
from modeconn_cli.work.stage import Stage, execute

MANY_STEPS = 10_000_000  # whoever asks for more is told so before they begin
SECTIONS = ("endpoints", "aligned", "merged")  # that every answer has, empty or not


@dataclass
class Plan:
    """Stages in the order they run, each once however many need it.

    own: the command's, which --force computes again. keep_going: a stage that fails stops only those that need it.
    """

    context: Context
    stages: list[Stage]
    own: list[Stage]
    keep_going: bool = False
    twins: Mapping[str, Sequence[Stage]] = field(default_factory=dict)  # stage objects by digest

    def rows(self) -> list[dict[str, Any]]:
        """What each stage would do now, and why; for --dry-run."""
        rows = []
        for stage in self.stages:
            run = stage.locate(self._forced(stage))
            steps = 0 if run.status == "cached" else stage.gradient_steps
            rows.append({**_row(stage, run), "gradient_steps": steps})
        return rows

    def execute(self, done: list[dict[str, Any]]) -> None:
        """Carry it out; ``done`` is given a row for each stage as it ends.

        Raises:
            RunFailed, UserError: a stage failed; not where the plan keeps going, which says so in the stage's row.
        """
        lost: dict[str, str] = {}
        with writable(self.context.root):  # a name that no file system takes is refused here
            steps = sum(row["gradient_steps"] for row in self.rows())
        if steps > MANY_STEPS:
            self.context.reporter.say(f"{steps:,} gradient steps are ahead; --dry-run shows how many each stage takes")
        with self.context.signals.caught(), closing(self.context.trackers), self._in_use():
            for stage in self.stages:
                missing = next((lost[u.identity.digest] for u in stage.upstream() if u.identity.digest in lost), None)
                if missing is not None:
                    self._lose(stage, done, lost, "skipped", f"needs {missing}")
                    continue
                try:
                    run = execute(stage, self._forced(stage))
                    for twin in self.twins.get(stage.identity.digest, ()):
                        twin.done = run
                    done.append(_row(stage, run))
                except (RunFailed, UserError) as failure:
                    if not self.keep_going:
                        raise
                    self._lose(stage, done, lost, "failed", str(failure))

    def _in_use(self) -> AbstractContextManager[None]:
        """Keeps others from removing what these stages read, where there is anything to compute from it."""
        root = self.context.root
        if all(stage.locate(self._forced(stage)).status == "cached" for stage in self.stages):
            return nullcontext()
        return in_use(root, [stage.identity.folder(root) for stage in self.stages])

    def _lose(self, stage: Stage, done: list[dict[str, Any]], lost: dict[str, str], status: str, why: str) -> None:
        lost[stage.identity.digest] = stage.doing
        done.append({**_row(stage, stage.locate(False)), "status": status, "why": why})
        self.context.reporter.say(f"{status}: {stage.doing}: {why}")

    def measured(self) -> list[PathResult]:
        """The measured paths that are finished, with the intervals that each one's request asks for."""
        found = []
        for stage in self.stages:
            run = stage.locate(False)
            if not isinstance(stage, MeasuredPath) or run.status != "cached":
                continue
            path = read_path(run.folder, stage.question)
            # Of two files of the same content the run has one's name, and this request may have given the other.
            path.summary["task"]["endpoints"] = stage.between
            if not stage.question.same_intervals(path.summary["intervals"]):
                own = path.summary["intervals"]
                self.context.reporter.say(
                    f"{stage.doing} kept no scores, so its intervals are its own (confidence "
                    f"{own['confidence']:g}, {own['resamples']} resamples); --force measures it again"
                )
            found.append(path)
        return found

    def findings(self) -> dict[str, Any]:
        """What finished stages found, read from their directories: by section, barriers, verdicts, pictures."""
        finished = {s: run for s in self.stages if (run := s.locate(False)).status == "cached"}
        measured = self.measured()
        pictures = [str(run.folder / "plot.png") for s, run in finished.items() if s.makes == "picture"]
        others = {s: Result.read(run.folder) for s, run in finished.items() if not s.makes}
        parts = {s.identity.digest for whole in others for s in _behind(whole)}
        whole_first = sorted(others, key=lambda s: s.identity.digest in parts)
        pictures += [str(finished[s].folder / picture) for s in whole_first for picture in others[s].pictures]
        summaries = (read_summary(run.folder) for run in finished.values() if (run.folder / SUMMARY).exists())
        sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
        for stage, run in finished.items():
            for section, entry in stage.found(run).items():
                sections.setdefault(section, []).append(entry)
        ends = {e["from"].removesuffix(" aligned"): e for e in sections["endpoints"]}
        lost = at_chance(ends, self.context.task_on_host)
        return {
            "task": next((s["task"] for s in summaries if "columns" in s.get("task", {})), {}),
            **sections,
            "barriers": barrier_rows(measured),
            "verdicts": [
                {
                    "path": p.title,
                    "endpoints": p.summary["task"]["endpoints"],
                    **p.summary["verdict"],
                    "confidence": p.summary["intervals"]["confidence"],
                    "sentence": verdict_sentence(p),
                }
                for p in measured
            ],
            # What is no endpoint, path or picture: its figures, and its tables' columns and rows; and whether another
            # one here is made from it.
            "results": [
                {
                    "stage": s.name,
                    "directory": str(finished[s].folder),
                    "part": s.identity.digest in parts,
                    **result.plain(s.label),
                }
                for s, result in others.items()
            ],
            "remarks": [lost] if lost and (measured or sections["merged"]) else [],
            "plot": pictures[0] if pictures else None,
            "plots": pictures,
        }

    def _forced(self, stage: Stage) -> bool:
        return self.context.config.runtime.force and stage in self.own


def _behind(stage: Stage) -> Iterator[Stage]:
    """Every stage that one is made from, however far up."""
    for above in stage.upstream():
        yield above
        yield from _behind(above)


def _row(stage: Stage, run: Run) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "name": stage.label,
        "status": run.status,
        "why": run.why,
        "directory": str(run.folder),
    }


def make_plan(command: str, config: Config, reporter: Reporter, **arguments: Any) -> Plan:
    """The stages behind a command. Nothing is written; what can be wrong with the request is found here.

    Args:
        command: a key of COMMANDS.
        arguments: of that command's own.

    Raises:
        UserError: see the message.
    """
    load()
    check(config)
    context = Context(config, reporter)
    # The device is there, and the network fits the data.
    require_room(context, f"{context.config.architecture.name}", 3 * 4 * context.parameters)
    context.settle_threads()
    plan = plan_of(context, COMMANDS[command].request(context, **arguments))
    for stage in plan.stages:
        require_room(context, stage.doing, stage.memory)
    return plan


def require_room(context: Context, what: str, wanted: int) -> None:
    """Raise UserError for what this machine cannot hold, before anything is written or waited for."""
    there = room(context.device)
    if there is not None and wanted > there:
        raise UserError(
            f"{what} would hold {wanted / 1e9:,.0f} GB at once, and this machine has {there / 1e9:,.0f}: ask for less "
            "(a smaller architecture, fewer curve.bends, interpolation.points or interpolation.train_examples)."
        )


def plan_of(context: Context, request: Request) -> Plan:
    """The stages that a request asks for, and all that they stand on."""
    stages, twins = ordered([*request.beside, *request.own])
    own = {s.identity.digest for s in request.own}
    return Plan(context, stages, [s for s in stages if s.identity.digest in own], request.keep_going, twins)


def ordered(wanted: Sequence[Stage]) -> tuple[list[Stage], dict[str, list[Stage]]]:
    """Wanted stages and all that they stand on, each result once: what is needed first, else in the order asked for.

    The second value has every stage by its digest: several objects may describe one result.
    """
    twins: dict[str, list[Stage]] = {}
    needs: dict[str, list[str]] = {}

    def visit(stage: Stage) -> None:
        above = stage.upstream()
        for upstream in above:
            visit(upstream)
        digest = stage.identity.digest
        if not any(stage is twin for twin in twins.setdefault(digest, [])):
            twins[digest].append(stage)
        needs.setdefault(digest, [u.identity.digest for u in above])

    for stage in wanted:
        visit(stage)
    rank = {digest: i for i, digest in enumerate(needs)}
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    ready: list[str] = []
    order = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=rank.__getitem__)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return [twins[digest][0] for digest in order], twins
