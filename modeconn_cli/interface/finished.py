"""Commands run from Python, and what finished runs hold."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.forward import evaluating
from modeconn_cli.interface.joining import live_of
from modeconn_cli.interface.live import Live, LiveContext
from modeconn_cli.interface.options import configured
from modeconn_cli.interface.paths import Measured
from modeconn_cli.interface.process import at_work
from modeconn_cli.networks import CHECKPOINT, Networks, read_state
from modeconn_cli.report.plots import PathResult
from modeconn_cli.report.tables import read_path
from modeconn_cli.results import Result
from modeconn_cli.runs.find import Found, endpoints_behind
from modeconn_cli.runs.references import parse
from modeconn_cli.settings import Config
from modeconn_cli.stages.referenced import Machine, networks_in, referenced
from modeconn_cli.states import matching_state, unpacked
from modeconn_cli.work.context import Context
from modeconn_cli.work.options import Runtime
from modeconn_cli.work.recorded import OBJECT, recorded_config
from modeconn_cli.work.reporting import Reporter, Silent

TABLES = ("path.csv", "metrics.csv")


@dataclass(frozen=True)
class FinishedRun(Measured):
    """A finished run directory; :func:`load` finds one.

    Attributes:
        folder: the run directory.
        device: where its networks are made, as runtime.device.
        live: the module and the task that it was made from, where no setting describes them.
    """

    folder: Path
    device: str = "auto"
    live: Live | None = None

    def __repr__(self) -> str:
        return f"<{self._found.stage} {self._found.name}>" + (f" {self.verdict}" if self._is_path else "")

    @property
    def kind(self) -> str:
        """What kind of result it is: endpoint, aligned, merged, curve, path or picture."""
        return self._found.kind

    @cached_property
    def config(self) -> Config:
        """The settings that it was made with."""
        return recorded_config(self._found, Runtime(device=self.device))

    @cached_property
    def networks(self) -> Networks:
        """Every network that it holds; of a path, the control points.

        Raises:
            UserError: it holds none.
        """
        return networks_in(self._found)

    @cached_property
    def result(self) -> PathResult:
        if not self._is_path:
            raise UserError(f"{self.folder} is no measured path, but a result of {self._found.stage}.")
        return read_path(self.folder)

    @property
    def title(self) -> str:
        return self.result.title if self._is_path else Result.read(self.folder).title or self._found.name

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a point of a path, or an epoch of training; else the first table of the result.

        Raises:
            UserError: it has no table.
        """
        for name in TABLES:
            if (self.folder / name).is_file():
                return pd.read_csv(self.folder / name)
        tables = Result.read(self.folder).tables
        if not tables:
            raise UserError(f"{self.folder} has no table: it is a result of {self._found.stage}.")
        return pd.DataFrame([dict(row) for row in tables[0].rows])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none."""
        return self._found.read("summary.json")

    def state_dict(self, t: float | None = None) -> dict[str, Tensor]:
        """Its network, on the CPU: that at t in [0, 1] of a path; None: the one that it holds.

        Raises:
            UserError: there is no such network.
        """
        with at_work(progress=False):
            place = "" if t is None else f"@t={float(t)!r}"
            network = referenced(f"{self.folder}{place}", self.folder)
            return unpacked(network.state(Machine(Runtime(device=self.device), Silent(), self._made)))

    def at(self, t: float | None = None) -> nn.Module:
        """The same as a module in evaluation mode, on the device.

        Raises:
            UserError: there is no such network, or its architecture was an object of a Python session.
        """
        if self.config.architecture.family == OBJECT and self.live is None:
            raise UserError(
                f"{self.folder} was made from a torch module, which no setting describes: give the module and its "
                "data, mc.load(RUN, model=, data=), or load .networks[0].state() into one."
            )
        state = self.state_dict(t)
        with at_work(progress=False):
            context = self._made(self.config, Silent())
            module = context.module()
            matching_state(module, state, str(self.folder), own=True)
            return evaluating(module.to(context.device))

    @property
    def _made(self) -> Callable[[Config, Reporter], Context]:
        live = self.live
        return Context if live is None else lambda config, reporter: LiveContext(config, live, reporter)

    @property
    def _found(self) -> Found:
        return Found(self.folder)

    @property
    def _is_path(self) -> bool:
        return (self.folder / TABLES[0]).is_file()


def load(
    run: str | Path,
    root: str | Path = "outputs",
    device: str = "auto",
    *,
    model: nn.Module | None = None,
    data: Any = None,
    task: Any = "auto",
) -> FinishedRun:
    """A finished run.

    Args:
        run: its directory, or the beginning of its digest or name.
        root: where runs are looked for.
        device: where its networks are made: auto, cpu, cuda, cuda:1 or mps.
        model, data, task: of a run that was made from live objects, what :func:`modeconn_cli.connect` was given: a
            module of its architecture with any weights, the same data and the same task.

    Raises:
        UserError: there is none, several fit, or it is not finished; the model or the data are not those of the run.

    >>> load("outputs/interpolate/.../v1").at(0.3)                                              # doctest: +SKIP
    """
    reference = parse(str(run))
    if reference.selects:
        raise UserError(f"{run} is one network of a run: give {reference.place} alone, or use open_networks.")
    found = FinishedRun(reference.run(Path(root)).folder, device)
    return found if model is None else replace(found, live=_live(found, model, data, task))


def _live(run: FinishedRun, model: nn.Module, data: Any, task: Any) -> Live:
    """What a run was made from, held to what the run says of it."""
    if run.config.architecture.family != OBJECT:
        raise UserError(f"{run.folder} was made from settings, which say its network and its data: give no model.")
    if data is None and not hasattr(task, "data"):
        raise UserError("give data with the model, as connect was given them: BatchNorm is re-estimated on them.")
    config = run.config
    if isinstance(data, str):
        config = replace(config, dataset=configured((), {}, [f"dataset={data}"]).dataset)
    end = endpoints_behind(run._found)[0].folder / CHECKPOINT
    matching_state(copy.deepcopy(model), read_state(end), str(end), own=True)
    with at_work(progress=False) as listener:
        live = live_of((model, model), None, data, task, config, listener.notes)
    recorded = run._found.read("provenance.json").get("dataset_sha256")
    if recorded != live.task.data.checksum:
        raise UserError(f"these are not the data that {run.folder} was made with: give the same, in the same order.")
    return live


@dataclass(frozen=True)
class FinishedRuns(Sequence[FinishedRun]):
    """What one command computed or found: its runs, in the order in which they were needed.

    Attributes:
        answer: what the command prints with --json.
    """

    runs: tuple[FinishedRun, ...]
    answer: dict[str, Any]

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[FinishedRun]:
        return iter(self.runs)

    @property
    def paths(self) -> list[FinishedRun]:
        """The measured paths."""
        return [r for r in self.runs if r.kind == "path"]

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each measured path."""
        return [v["sentence"] for v in self.answer["verdicts"]]


def run(command: str, overrides: Sequence[str] = (), *, progress: bool | None = None, **arguments: Any) -> FinishedRuns:
    """Any command that computes, a plugin's too, as the command line runs it: into run directories.

    Args:
        command: its name.
        overrides: as on the command line, ["dataset=two_spirals", "seed=1"].
        progress: whether a bar shows; None: in a notebook and at a terminal.
        arguments: of the command's own.

    Raises:
        UserError: there is no such command, or the request is wrong; nothing is written then.
        RunFailed: the computation failed. Interrupted: Ctrl-C; what is finished is kept.

    >>> run("interpolate", ["dataset=two_spirals"]).paths[0].table                              # doctest: +SKIP
    """
    from modeconn_cli.front.compose import compose
    from modeconn_cli.front.explain import suggest
    from modeconn_cli.plugins import load as load_all
    from modeconn_cli.work.command import COMMANDS
    from modeconn_cli.work.plan import make_plan

    load_all()
    if command not in COMMANDS:
        known = [*COMMANDS]
        near = suggest(command, known, "did you mean {}?", f"there are {', '.join(known)}.")
        raise UserError(f"{command}: no such command{near}")
    if isinstance(overrides, str):
        raise UserError(f"overrides are a list: write [{overrides!r}].")
    chosen = [f"{k}={v}" for k, v in COMMANDS[command].chooses.items() if not any(o.startswith(k) for o in overrides)]
    with at_work(progress) as listener:
        (job,) = compose([*chosen, *overrides])
        os.environ["MODECONN_COMMAND"] = shlex.join(["modeconn", command, *overrides])
        plan = make_plan(command, job.config, listener, **arguments)
        rows: list[dict[str, Any]] = []
        plan.execute(rows)
        failed = [r for r in rows if r["status"] in ("failed", "skipped")]
        if failed:
            raise RunFailed(
                f"{len(failed)} of {len(rows)} stages failed or need one that did; the first, {failed[0]['stage']} "
                f"{failed[0]['name']}: {failed[0]['why']} The others are kept."
            )
        device = job.config.runtime.device
        runs = tuple(FinishedRun(Path(r["directory"]), device) for r in rows)
        return FinishedRuns(runs, {"stages": rows, **plan.findings()})
