"""Networks, data and objective as live objects, in the form that stages know: a context, endpoints."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeconn_cli.data.convert import array_of
from modeconn_cli.data.custom import content_digest
from modeconn_cli.data.dataset import Data
from modeconn_cli.errors import UserError
from modeconn_cli.settings import Config
from modeconn_cli.stages.imported import ImportedEndpoint
from modeconn_cli.stages.referenced import Machine, Referenced, referenced
from modeconn_cli.states import EXTRA, Versioned, inside, named_state, pack
from modeconn_cli.targets import first_line
from modeconn_cli.tasks.base import Task
from modeconn_cli.tracking import Trackers
from modeconn_cli.work.context import Context, statistics_fields
from modeconn_cli.work.recorded import OBJECT
from modeconn_cli.work.reporting import Reporter
from modeconn_cli.work.signals import Signals

Model = nn.Module | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True, eq=False)
class Live:
    """What a call is about.

    architecture: a module on the CPU, to be copied and never run. task: on the CPU.
    """

    architecture: nn.Module
    task: Task

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What identifies the task. Code is known by its text, where there is one, and by the values that it holds."""
        objective = [repr(getattr(self.task, k, None)) for k in ("columns", "likelihood", "delta", "outputs")]
        return {
            "data": self.task.data.checksum,
            "architecture": {"family": OBJECT, "code": _digest(_described(self.architecture))},
            "objective": _digest([*objective, _source(getattr(self.task, "inner", self.task))]),
            **statistics_fields(self.architecture),
        }


class LiveContext(Context):
    """A request about live objects; its configuration says how, and names no data set and no architecture."""

    def __init__(
        self,
        config: Config,
        live: Live,
        reporter: Reporter,
        signals: Signals | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        super().__init__(config, reporter, signals, trackers)
        self.live = live
        self.kept = {}

    def having(self, **changes: Any) -> LiveContext:
        return LiveContext(replace(self.config, **changes), self.live, self.reporter, self.signals, self.trackers)

    @property
    def checksum(self) -> str:
        return self.live.task.data.checksum

    @property
    def data_on_host(self) -> Data:
        return self.live.task.data

    @property
    def task_on_host(self) -> Task:
        return self.live.task

    @cached_property
    def task(self) -> Task:
        self.live.task.smoothed(self.config.curve.label_smoothing)
        return self.live.task.to(self.device)

    def module(self, task: tuple[tuple[int, ...], int] | None = None) -> nn.Module:
        """A copy of the architecture, in which all weights move where none was to."""
        made = copy.deepcopy(self.live.architecture)
        if not any(p.requires_grad for p in made.parameters()):
            for p in made.parameters():
                p.requires_grad_(p.is_floating_point())
        return made

    @cached_property
    def blueprint(self) -> nn.Module:
        return self.module()

    def task_fields(self) -> dict[str, Any]:
        return self.live.fields


class Held(Referenced):
    """A network that is an object: its state_dict, copied to the CPU."""

    what = "endpoint"

    def __init__(self, name: str, state: Mapping[str, Tensor], own: bool = True) -> None:
        self.text, self.names, self.upstream, self.own = name, [name], [], own
        self._state = Versioned.like(state, {k: v.detach().cpu().clone() for k, v in state.items()})

    @cached_property
    def content(self) -> str:
        return content_digest({k: array_of(v) for k, v in self._state.items()})

    def state(self, machine: Machine | None = None) -> dict[str, Tensor]:
        return self._state

    def outline(self) -> dict[str, Tensor]:
        return self._state


class LiveEndpoint(ImportedEndpoint):
    """A network that was given, called as the caller calls it."""

    @property
    def label(self) -> str:
        return self.context.label


def given_ends(
    context: LiveContext, models: tuple[Model, Model], names: tuple[str, str]
) -> tuple[LiveEndpoint, LiveEndpoint]:
    """The two networks that a call joins.

    Raises:
        UserError: one is of another architecture, or both are the same network.
    """
    first, second = (
        LiveEndpoint(context, _network(model, name), name) for model, name in zip(models, names, strict=True)
    )
    a, b = first.check(), second.check()
    if all(torch.equal(value, b[key]) for key, value in a.items()):
        raise UserError(
            f"{names[0]} and {names[1]} hold the same weights, so there is no path between them: give two networks."
        )
    return first, second


def _network(model: Model, name: str) -> Referenced:
    if isinstance(model, nn.Module):
        return Held(name, named_state(inside(model)))
    if isinstance(model, Mapping):
        if not all(isinstance(v, Tensor) or str(k).endswith(EXTRA) for k, v in model.items()):
            raise UserError(f"{name} is a dictionary of more than tensors: give its state_dict.")
        state = {k: v if isinstance(v, Tensor) else pack(v, f"{name}: {k}") for k, v in model.items()}
        return Held(name, Versioned.like(model, state), own=False)
    if isinstance(model, str | Path):
        try:
            return referenced(str(model), Path("outputs"))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    raise UserError(
        f"{name} is a {type(model).__name__}: give a torch module, its state_dict, a checkpoint file or a reference "
        "such as RUN@t=0.3."
    )


def architecture_of(models: tuple[Model, Model], given: nn.Module | None) -> tuple[nn.Module, torch.device]:
    """A copy, on the CPU, of the module that says what network it is, and the device where it was.

    Raises:
        UserError: there is none, or it cannot be copied.
    """
    named = {"architecture": given, "model_a": models[0], "model_b": models[1]}
    name, module = next(((k, inside(m)) for k, m in named.items() if isinstance(m, nn.Module)), ("", None))
    if module is None:
        raise UserError(
            "no torch module among model_a, model_b and architecture=: state_dicts and files say no architecture; give "
            "architecture=, a module of it with any weights."
        )
    like = next(module.parameters(), None)
    if like is None:
        raise UserError(f"{name} has no parameters, so there is no weight space to move in.")
    device = like.device
    try:
        made = copy.deepcopy(module).cpu()
    except Exception as error:
        raise UserError(
            f"{name} cannot be copied ({type(error).__name__}: {first_line(error)}), and a path is walked on a copy: "
            "give a module that copy.deepcopy takes."
        ) from error
    for p in made.parameters():
        p.grad = None
    return made, device


def _described(module: nn.Module) -> list[str]:
    """The parts of a module, the text of their code, and the plain values that they hold."""
    found = []
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str) and k != "training"}
        found += [name, repr(part), _source(part), repr(sorted(plain.items()))]
    return [*found, *(f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for n, p in module.named_parameters())]


def _source(thing: Any) -> str:
    code = thing if inspect.isfunction(thing) else type(thing)
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):  # of a class without a file, or of torch's own
        return f"{code.__module__}.{code.__qualname__}"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
