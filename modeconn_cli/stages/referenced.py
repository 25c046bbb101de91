"""The network that a reference names: one that is kept in a file, or a point of a path."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.options import Interpolation, Renormalise
from modeconn_cli.families.base import Array, Family, coefficients_at
from modeconn_cli.families.bezier import segment
from modeconn_cli.networks import CHECKPOINT, Network, Networks, read_networks, read_state
from modeconn_cli.runs.find import Found, endpoints_behind, require_undamaged, run_around, upstream_of
from modeconn_cli.runs.references import Reference, file_names, parse
from modeconn_cli.runs.sums import sha256
from modeconn_cli.settings import Config, choices, fields_off_default
from modeconn_cli.work.context import Context
from modeconn_cli.work.options import Runtime
from modeconn_cli.work.recorded import OBJECT, recorded_config
from modeconn_cli.work.reporting import Reporter, Silent

_KEPT = re.compile(r"^checkpoint-(epoch|step)(\d+)\.safetensors$")
_MEMBER = re.compile(r"^member-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Machine:
    """Where a network is computed that is kept nowhere, and who is told.

    made: makes a request's context, of networks and data that settings describe or that are at hand.
    """

    runtime: Runtime
    reporter: Reporter
    made: Callable[[Config, Reporter], Context] = Context


class Referenced(ABC):
    """One network, by reference.

    Attributes:
        text: the reference as it was written.
        names: what it may be called, shortest first, each longer one telling it from more others.
        what: as Network.what.
        upstream: the run directories that it comes from.
        own: whether its names are those that modeconn_cli.states.named_state gives.
    """

    own = True
    text: str
    names: list[str]
    what: str
    upstream: list[Path]

    @property
    @abstractmethod
    def content(self) -> str:
        """SHA-256, in hex, of what determines it: the content of files, not where they lie."""

    @abstractmethod
    def state(self, machine: Machine | None = None) -> dict[str, Tensor]:
        """Its weights and buffers, on the CPU; BatchNorm statistics re-estimated where it is kept in no file."""

    @abstractmethod
    def outline(self) -> dict[str, Tensor]:
        """:meth:`state`, quickly: the buffers may be those of another network."""


class Stored(Referenced):
    """A network that is a whole file, buffers included; ``strip`` as checkpoints.read_state takes it."""

    def __init__(self, text: str, file: Path, names: list[str], what: str, upstream: list[Path]) -> None:
        self.text, self.file, self.names, self.what, self.upstream = text, file, names, what, upstream
        self.own = what != "file" or bool(upstream)
        self.strip: str | None = None

    @cached_property
    def content(self) -> str:
        with self.file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256")
        found.update(b"" if self.strip is None else f"\nwithout {self.strip}".encode())
        return found.hexdigest()

    def state(self, machine: Machine | None = None) -> dict[str, Tensor]:
        return read_state(self.file, self.strip)

    outline = state


@dataclass(frozen=True)
class StoredPath:
    """The control points of a path, and the endpoints whose buffers its ends have.

    points: (K,) files and rows. held: whether each end of the path is its endpoint still. run: whose settings hold.
    """

    run: Found
    networks: Networks
    ends: tuple[Found, Found]
    held: tuple[bool, bool]

    @property
    def family(self) -> str:
        return self.networks.family or "segment"

    @property
    def shape(self) -> Family:
        """The family whose control points these are.

        Raises:
            UserError: it is not installed here.
        """
        if self.networks.family is None:
            return segment()
        curve = recorded_config(self.run, Runtime()).curve
        if curve.kind not in choices("curve"):
            raise UserError(
                f"{self.run.folder} holds a {curve.kind} curve, whose family is not here: where it was an object of "
                "Python, take its points from what mc.fit_curve gave."
            )
        found: Family = curve.family()
        return found

    def coefficients(self, t: float) -> Array:
        """c(t), (K,)."""
        return coefficients_at(self.shape, t)

    def end_at(self, c: Array) -> Found | None:
        """The endpoint that coefficients are, where they are one."""
        for end, row, held in zip(self.ends, (0, -1), self.held, strict=True):
            if c[row] == 1 and held:
                return end
        return None


class OnPath(Referenced):
    """A point of a path that is none of its endpoints: weights c @ W, and buffers as the path's measurement sets them.

    Raises:
        UserError: the path was measured with REPAIR, which is in no network's weights.
    """

    what = "point of a path"

    def __init__(self, text: str, path: StoredPath, c: Array, where: str) -> None:
        self.text, self.path, self.c = text, path, c
        short, digest = f"{path.family} {where}", path.run.digest[:6]
        self.names = [short, f"{path.family} {digest} {where}", f"{path.run.stage}/{path.run.name} {where}"]
        self.upstream = [path.run.folder]
        self.config = recorded_config(path.run, Runtime())
        measured = (path.run.folder / "path.csv").is_file()
        if measured and self.config.interpolation.renormalise is not Renormalise.none:
            raise UserError(
                f"{text}: networks along this path were measured with {self.config.interpolation.renormalise}, which "
                "is in no weights; take the path without interpolation.renormalise."
            )

    @property
    def options(self) -> Interpolation:
        """How its buffers are found."""
        asked = self.config.interpolation
        return Interpolation(batch_norm=asked.batch_norm, bn_examples=asked.bn_examples)

    @cached_property
    def content(self) -> str:
        files = dict.fromkeys([n.file for n in self.path.networks] + [e.folder / CHECKPOINT for e in self.path.ends])
        what = {
            "files": [sha256(f) for f in files if f is not None],
            "family": self.path.family,
            "coefficients": self.c.tolist(),
            "buffers": fields_off_default(self.options),
            "data": self.path.run.read("provenance.json").get("dataset_sha256"),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def state(self, machine: Machine | None = None) -> dict[str, Tensor]:
        machine = machine or Machine(Runtime(), Silent())
        if self.config.architecture.family == OBJECT and machine.made is Context:
            raise UserError(
                f"{self.text}: that run was made from a torch module, which no setting describes: give the module and "
                "its data, mc.load(RUN, model=, data=), or take its points from what mc.connect or mc.fit_curve gave."
            )
        context = machine.made(replace(self.config, runtime=machine.runtime), machine.reporter)
        context.settle_threads()
        net = context.net(0)
        states = [read_state(end.folder / CHECKPOINT) for end in self.path.ends]
        W_kp = torch.stack([net.flatten(self._fitted(n, net.names)) for n in self.path.networks])
        buffers = [{k: v.to(net.point.device) for k, v in s.items() if k not in {*net.names}} for s in states]
        recorded = self.path.run.read("provenance.json").get("dataset_sha256")
        if recorded != context.checksum:
            raise UserError(
                f"{self.text}: the data set is not what it was when {self.path.run.folder} was made, so its statistics "
                "cannot be re-estimated."
            )
        context.evaluator(net, self.options).at(W_kp, self.c, buffers, (False, False))
        return {k: v.cpu() for k, v in net.state().items()}

    def outline(self) -> dict[str, Tensor]:
        points = [n.state() for n in self.path.networks]
        ends = read_state(self.path.ends[0].folder / CHECKPOINT)
        moved = [k for k, v in points[0].items() if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex())]
        return ends | {k: sum(c * p[k] for c, p in zip(self.c.tolist(), points, strict=True)) for k in moved}

    def _fitted(self, network: Network, names: Sequence[str]) -> dict[str, Tensor]:
        state = network.state()
        missing = [n for n in names if n not in state]
        if missing:
            raise UserError(f"{self.text}: {network.file} lacks {missing[0]} that the network of that run has.")
        return state


def networks_in(run: Found) -> Networks:
    """What a run holds, in the order that #1, #2, ... count; the control points, of a measured path.

    Raises:
        UserError: it holds no network.
    """
    checkpoint = run.folder / CHECKPOINT
    numbered = ((int(m.group(1)), p) for p in run.folder.glob("member-*.safetensors") if (m := _MEMBER.match(p.name)))
    members = tuple(Network(f"member {n}", "member", file) for n, file in sorted(numbered))
    if not checkpoint.is_file() and members:
        return Networks(members)
    if not checkpoint.is_file():
        path = path_of(run)
        if path is None:
            raise UserError(f"{run.folder} holds no network: it is a result of {run.stage}.")
        return path.networks
    found = read_networks(checkpoint, run.kind or "network")
    kept = sorted(
        (m.group(1) == "step", int(m.group(2)), p)
        for p in run.folder.glob("checkpoint-*.safetensors")
        if (m := _KEPT.match(p.name))
    )
    more = [Network(f"{'step' if step else 'epoch'} {n}", "kept", file) for step, n, file in kept]
    midpoint = run.folder / "merged.safetensors"
    more += [Network("midpoint", "merged", midpoint)] if midpoint.is_file() else []
    return replace(found, networks=(*found.networks, *more, *members))


def path_of(run: Found) -> StoredPath | None:
    """The path that a run fitted or measured, if it did.

    Raises:
        UserError: what it was made from is gone.
    """
    own = require_undamaged(run).folder / CHECKPOINT
    if own.is_file():
        networks = read_networks(own)
        if networks.family is None:
            return None
        ends = _ends(run)
        curve = recorded_config(run, Runtime()).curve
        return StoredPath(run, networks, ends, (curve.fix_start, curve.fix_end))
    if not (run.folder / "path.csv").is_file():
        return None
    above = upstream_of(run)
    if len(above) == 1:
        fitted = path_of(above[0])
        return None if fitted is None else replace(fitted, run=run)
    ends = _ends(run)
    files = (Network(f"end {k + 1}", "endpoint", e.folder / CHECKPOINT) for k, e in enumerate(ends))
    return StoredPath(run, Networks(tuple(files)), ends, (True, True))


def networks_of(text: str, root: Path) -> Networks | None:
    """Every network of a whole file or run; None for a reference that selects one.

    Raises:
        UserError: there is no such thing, or no network in it.
    """
    reference = parse(text)
    if reference.selects and not reference.every:
        return None
    if reference.file is not None:
        run_around(reference.file)
    return read_networks(reference.file) if reference.file is not None else networks_in(reference.run(root))


def referenced(text: str, root: Path) -> Referenced:
    """The one network that a reference names.

    Raises:
        UserError: there is none, it is not kept, or there are several.
    """
    reference = parse(text)
    if reference.every:
        raise UserError(f"{text} is every network of a run, and one is wanted: give one, as {reference.place}#2.")
    if reference.file is not None:
        file = reference.file
        upstream = run_around(file)
        several = read_networks(file)
        if len(several) > 1:
            raise UserError(
                f"{text} holds {len(several)} control points of a {several.family} and no one network: give its run, "
                "as RUN@t=0.3 or RUN#2."
            )
        return Stored(text, file, file_names(file), "file", upstream)
    run = reference.run(root)
    if reference.t is not None:
        path = path_of(run)
        if path is None:
            raise UserError(f"{text}: {run.folder} is no path; @t takes one that was measured or fitted.")
        return _on_path(reference, path, path.coefficients(reference.t), f"at t={reference.t:g}")
    networks = networks_in(run)
    if reference.number is not None:
        return _numbered(reference, run, networks)
    if reference.epoch is not None or reference.step is not None:
        return _kept(reference, run, networks)
    if not (run.folder / CHECKPOINT).is_file() or networks.family is not None:
        along = (", along a path", f"{text}@t=0.5 or ") if networks[0].what != "member" else ("", "")
        raise UserError(f"{text} holds {len(networks)} networks{along[0]}: give one, as {along[1]}{text}#2.")
    return _stored(text, run, networks[0])


def _on_path(reference: Reference, path: StoredPath, c: Array, where: str) -> Referenced:
    end = path.end_at(c)
    if end is not None:
        return _stored(reference.text, end, networks_in(end)[0])
    return OnPath(reference.text, path, c, where)


def _numbered(reference: Reference, run: Found, networks: Networks) -> Referenced:
    number = reference.number
    assert number is not None
    if number > len(networks):
        held = f"{len(networks)} network" + ("s" if len(networks) > 1 else "")
        raise UserError(f"{reference.text}: {run.folder} holds {held}: {', '.join(networks.names)}.")
    path = path_of(run)
    if path is not None:
        return _on_path(reference, path, np.eye(len(networks))[number - 1], f"control point {number}")
    return _stored(reference.text, run, networks[number - 1])


def _kept(reference: Reference, run: Found, networks: Networks) -> Referenced:
    """The network that was kept after an epoch or a step, by whichever of the two it is called."""
    per_epoch = _steps_per_epoch(run)
    step = reference.step if reference.epoch is None else per_epoch and reference.epoch * per_epoch
    unit, count = ("epoch", reference.epoch) if reference.step is None else ("step", reference.step)
    for network in networks:
        if network.what == "kept":
            kind, number = network.name.split()
            after = int(number) if kind == "step" else per_epoch and int(number) * per_epoch
            if network.name == f"{unit} {count}" or (step is not None and after == step):
                return _stored(reference.text, run, network)
    kept = [n.name for n in networks if n.what == "kept"]
    there = f"kept are {', '.join(kept)}" if kept else "none was kept"
    raise UserError(f"{reference.text}: {unit} {count} is not kept; {there} (endpoints.keep_{unit}s=[{count}]).")


def _stored(text: str, run: Found, network: Network) -> Stored:
    name = called(run)
    if network.what == "kept":
        name = f"{name} at {network.name}"
    elif network.name == "midpoint":
        name = f"midpoint of {name}"
    elif network.what == "member":
        name = f"{network.name} of {name}"
    assert network.file is not None
    names = [name, f"{name} ({run.digest[:6]})", f"{name} ({run.stage}/{run.name}/{run.version})"]
    return Stored(text, network.file, names, network.what, [run.folder])


def called(run: Found) -> str:
    """What people call a run's network: "seed 0", a file's name, "seed 1 aligned"."""
    summary = run.read("summary.json")
    if "seed" in summary:
        return f"seed {summary['seed']}"
    if "name" in summary:
        return str(summary["name"])
    if "file" in summary:
        return Path(summary["file"]).name
    if "merged" in summary:
        return "mean of " + ", ".join(summary["networks"])
    ends = endpoints_behind(run)
    return f"{called(ends[-1])} aligned" if ends and ends[-1] != run else run.digest


def _steps_per_epoch(run: Found) -> int | None:
    steps = run.read("summary.json").get("gradient_steps")
    config: Config = recorded_config(run, Runtime())
    return int(steps) // config.endpoints.epochs if steps else None


def _ends(run: Found) -> tuple[Found, Found]:
    above = upstream_of(run)
    if len(above) != 2 or not all((e.folder / CHECKPOINT).is_file() for e in above):
        raise UserError(f"{run.folder} was made from endpoints that are gone, or are not two.")
    return require_undamaged(above[0]), require_undamaged(above[1])
