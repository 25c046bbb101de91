"""Stages: artifacts in, computation, artifacts out. Each is a description and an idempotent runner."""

from __future__ import annotations

import importlib
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import yaml

from modeconn_cli.errors import Interrupted, RunFailed, UserError
from modeconn_cli.failures import place_of, unforeseen
from modeconn_cli.results import Result
from modeconn_cli.runs.directory import Identity, Run, claim, locate, writable
from modeconn_cli.runs.lock import holder
from modeconn_cli.runs.provenance import provenance
from modeconn_cli.settings import fields_off_default, plain
from modeconn_cli.work.context import Context


class Stage(ABC):
    """One result that can be computed, resumed, or found.

    What it found it returns as a Result, which is written as summary.json.
    VERSION is raised when a change of the code changes results, so that old ones are not taken for new.
    """

    name: ClassVar[str]  # of its directories and, where it has one, its command
    makes: ClassVar[str] = ""  # the kind of result, as provenance.json records it: "endpoint" is where paths end
    groups: ClassVar[tuple[str, ...]] = ()  # of the configuration, that it reads itself; its upstream's come on top
    VERSION: ClassVar[int] = 1
    gradient_steps: int = 0
    memory: int = 0  # bytes that it has to hold at once, where that can be much

    def __init__(self, context: Context, upstream: Sequence[Stage] = ()) -> None:
        self.context, self._upstream = context, list(upstream)
        self.done: Run | None = None

    def upstream(self) -> Sequence[Stage]:
        """The stages whose results this one is made from."""
        return self._upstream

    def found(self, run: Run) -> dict[str, dict[str, Any]]:
        """What a finished run found, by the list of a command's answer that it is an entry of."""
        return {}

    @property
    def label(self) -> str:
        """The readable part of the directory's name; that of what it is made from, where it says no other."""
        return self.upstream()[-1].label if self.upstream() else self.context.label

    @property
    def doing(self) -> str:
        """What a person is told is done."""
        return f"{self.name} {self.label}"

    def fields(self) -> dict[str, Any]:
        """What, besides upstream results, determines the result: the settings of its groups, where it says no other."""
        return {g: fields_off_default(getattr(self.context.config, g)) for g in self.groups}

    @abstractmethod
    def compute(self, run: Run) -> Result | None:
        """Write the result's files, and return what was found; begun work is found in the directory."""

    @property
    def shaped_by(self) -> list[str]:
        """Every group of the configuration that the result depends on."""
        return [*dict.fromkeys([g for u in self.upstream() for g in u.shaped_by] + [*self.groups])]

    def made_from(self) -> Sequence[Path]:
        """Finished runs besides upstream stages that the result is made from, by reference; they are kept with it."""
        return ()

    @cached_property
    def identity(self) -> Identity:
        return Identity(
            self.name, self.VERSION, self.label, self.fields(), [u.identity.digest for u in self.upstream()]
        )

    def locate(self, force: bool) -> Run:
        return locate(self.identity, self.context.root, force)

    @property
    def result(self) -> Run:
        """The finished run of this stage."""
        if self.done is None:
            raise RunFailed(f"{self.name} {self.label} was needed before it was computed")
        return self.done


def stage_names() -> set[str]:
    """What every stage here is called, those from outside too."""
    import modeconn_cli.stages as room

    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    found, waiting = set[str](), [*Stage.__subclasses__()]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if isinstance(getattr(cls, "name", None), str):
            found.add(cls.name)
    return found


def execute(stage: Stage, force: bool) -> Run:
    """Bring a stage's result into being: from cache, resumed, or computed. Its upstream must be done."""
    context = stage.context

    told = False

    def waiting(folder: Any) -> None:
        nonlocal told
        if not told:
            context.reporter.say(f"another process is computing {folder}; waiting for it{holder(folder)}")
        told = True
        context.signals.check()

    with claim(stage.identity, context.root, force, waiting) as run:
        context.reporter.begin(stage.doing, run)
        started = time.time()
        if run.status != "cached":
            with writable(run.folder), context.trackers.following(run, plain(context.config)):
                _compute(stage, run, started)
        context.reporter.end(stage.doing, run, time.time() - started)
    stage.done = run
    return run


def _compute(stage: Stage, run: Run, started: float) -> None:
    context = stage.context
    run.write_text("config.yaml", yaml.safe_dump(plain(context.config), sort_keys=False))
    upstream = [*(u.result.folder for u in stage.upstream()), *stage.made_from()]
    # From the beginning, so that what begun work stands on is not removed.
    run.write_json("provenance.json", provenance(upstream, {"kind": stage.makes, "groups": stage.shaped_by}))
    run.log(f"{run.status}: {run.why}")
    try:
        result = stage.compute(run)
    except Interrupted as stop:
        run.log(str(stop))
        raise
    except (UserError, RunFailed) as error:
        run.log(f"failed: {error}")
        raise
    except Exception as error:
        # In the process's own words where the system refuses to write, which the caller has a line for.
        if isinstance(error, OSError) and error.errno is not None and place_of(error) is None:
            run.log(f"failed: {error}")
            raise
        raise unforeseen(error, run.folder) from error
    if result is not None:
        result.write(run)
    more = {
        "kind": stage.makes,
        "groups": stage.shaped_by,
        "identity": {
            "stage": stage.name,
            "version": stage.VERSION,
            "digest": stage.identity.digest,
            "fields": dict(stage.identity.fields),
            "upstream": list(stage.identity.upstream),
        },
        "dataset_sha256": context.checksum,
        "device": str(context.device),
        "status": run.status,
        "seconds": round(time.time() - started, 3),
    }
    run.write_json("provenance.json", provenance(upstream, more))
    run.log("finished")
    run.finish()
