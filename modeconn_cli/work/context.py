"""What every stage of one request shares: the configuration, the data and networks it makes, the way to report."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from modeconn_cli.data import dataset as data
from modeconn_cli.data.dataset import Data
from modeconn_cli.data.options import Inputs
from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import Interpolation
from modeconn_cli.evaluation.statistics import STATISTICS_VERSION, norm_layers
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import InputForm, form_of, taken
from modeconn_cli.models import build as models
from modeconn_cli.settings import Config, fields_off_default, plain
from modeconn_cli.symmetry.fusing import Fusion, find_fusion, fused
from modeconn_cli.symmetry.graph import CannotTrace
from modeconn_cli.targets import Target, first_line
from modeconn_cli.tasks.base import Task
from modeconn_cli.tasks.make import make_task
from modeconn_cli.tracking import Trackers
from modeconn_cli.training.precision import set_tf32
from modeconn_cli.training.recipe import Training
from modeconn_cli.weights import FlatModule
from modeconn_cli.work.machine import _device, default_threads, deterministic_kernels
from modeconn_cli.work.options import ChannelsLast
from modeconn_cli.work.reporting import Reporter
from modeconn_cli.work.signals import Signals

SMALL = 200_000  # parameters
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
T = TypeVar("T")
_recent: dict[str, tuple[str, Any]] = {}  # of every request of the process


class Context:
    """One request: its configuration, and what its stages make from it, made once."""

    def __init__(
        self,
        config: Config,
        reporter: Reporter,
        signals: Signals | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.config, self.reporter = config, reporter
        self.root = Path(config.runtime.output_dir)
        self.signals = signals or Signals()
        self.trackers = trackers or Trackers(config.runtime.trackers, self.root, reporter.say)
        self.label = f"{safe(config.dataset.name)}-{safe(config.architecture.name)}"
        self.kept = _recent

    def having(self, **changes: Any) -> Context:
        """A context with other settings that shares this one's reporter, signals and trackers."""
        if all(plain(getattr(self.config, k)) == plain(v) for k, v in changes.items()):
            return self
        return Context(dataclasses.replace(self.config, **changes), self.reporter, self.signals, self.trackers)

    def recent(self, place: str, key: str, make: Callable[[], T]) -> T:
        """What was last made for a place, where it is the one wanted: the next job of a sweep most often wants it."""
        if place not in self.kept or self.kept[place][0] != key:
            self.kept.pop(place, None)
            self.kept[place] = key, make()
        return cast(T, self.kept[place][1])

    @cached_property
    def device(self) -> torch.device:
        """The device asked for, with PyTorch's switches set as the configuration says."""
        runtime = self.config.runtime
        device = _device(runtime.device)
        default_threads()
        if runtime.threads:
            torch.set_num_threads(runtime.threads)
        if runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            deterministic_kernels(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        set_tf32(False)  # training turns it on around its own work
        return device

    @cached_property
    def checksum(self) -> str:
        """Of the data set's files, or of what it is generated from."""
        return data.checksum(self.config.dataset)

    @cached_property
    def data_on_host(self) -> Data:
        dataset, wanted = self.config.dataset, self.config.task.targets
        found = self.recent("read", f"{self.checksum} {dataset} {wanted}", lambda: data.load(dataset, wanted))
        asked = getattr(dataset, "inputs", Inputs.auto)
        return found if asked == Inputs.integers or self._takes_integers(found) else found.continuous()

    @cached_property
    def data(self) -> Data:
        return self.task.data

    @cached_property
    def task(self) -> Task:
        """The data on the device with the objective that networks are scored by."""
        host, config = self.task_on_host, self.config
        asked = f"{config.dataset} {config.task} {config.interpolation.connected_below} {host.data.integers}"
        return self.recent("device", f"{self.task_fields()} {asked} {self.device}", lambda: host.to(self.device))

    @cached_property
    def task_on_host(self) -> Task:
        """The same on the CPU.

        Raises:
            UserError: the data's targets are not what the task learns.
        """
        config = self.config
        task = make_task(config.task, self.data_on_host, config.interpolation.connected_below)
        for training in (config.endpoints, config.curve):
            task.smoothed(training.label_smoothing)
        return task

    def training_task(self, training: Training) -> Task:
        """:attr:`task` as a network is trained on it."""
        return self.task.smoothed(training.label_smoothing)

    def module(self, task: tuple[tuple[int, ...], int] | None = None) -> nn.Module:
        """The architecture, freshly initialised from the global generator, on the present default device.

        With endpoints.fuse it is without the norms that can be folded into the layers before them.

        Args:
            task: shape of one input, and classes; None: those of the data set.

        Raises:
            UserError: it does not fit the data set.
        """
        if task is not None:
            return models.build(str(self.config.architecture.family), *task, **self._options)
        return fused(self._whole(), self.fusion) if self.config.endpoints.fuse else self._whole()

    def _whole(self) -> nn.Module:
        mine, family = self.task_on_host, str(self.config.architecture.family)
        shape, largest = mine.data.shape, mine.data.largest
        labels = mine.data.classes is not None
        return models.build(family, shape, mine.outputs, mine.answers, largest, labels, **self._options)

    @property
    def fusion(self) -> Fusion:
        """The norms of the architecture that endpoints.fuse folds into the layers before them.

        Raises:
            UserError: there are none, or the network cannot be traced.
        """
        return self.recent("fusion", f"{self.task_fields()}", self._find_fusion)

    def _find_fusion(self) -> Fusion:
        data = self.data_on_host
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                module = evaluating(self._whole())
                found = find_fusion(module, taken(module, data.inputs(data.train, slice(0, 2))))
        except CannotTrace as error:
            raise UserError(f"{error}. Its norms cannot be found: go without endpoints.fuse.") from None
        if not found.pairs:
            raise UserError(
                f"endpoints.fuse=true folds BatchNorm into the layer before it, and this network has none that can be: "
                f"{found.remark or 'it has no norm'}. Go without it."
            )
        return found

    @property
    def _options(self) -> dict[str, Any]:
        """The architecture's own, as its builder takes them."""
        node = self.config.architecture
        options = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.name not in ("name", "family")}
        return {k: str(v) if isinstance(v, Enum) else v for k, v in options.items()}

    def _takes_integers(self, found: Data) -> bool:
        """Whether the architecture is one that integer inputs can go into: it is tried with zeros."""
        if not found.integers:
            return False
        outputs = make_task(self.config.task, found, 1.0).outputs
        try:
            with torch.random.fork_rng(devices=[]):
                models.build(str(self.config.architecture.family), found.shape, outputs, (), 0, **self._options)
        except (UserError, RunFailed):
            return False
        return True

    @cached_property
    def blueprint(self) -> nn.Module:
        """The architecture without its weights, where it can be made so: to be counted and looked at."""
        return self._outlined(self.module)

    def _outlined(self, make: Callable[[], nn.Module]) -> nn.Module:
        _ = self.task_on_host  # which is not to be made on that device
        try:
            with torch.device("meta"):
                return make()
        except Exception:  # it cannot be made there; or nowhere, which is said then
            return make()

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        """What identifies how statistics of the architecture's norms are found, folded ones' too."""
        return statistics_fields(self._outlined(self._whole) if self.config.endpoints.fuse else self.blueprint)

    @property
    def parameters(self) -> int:
        """Trainable parameters of the architecture."""
        return sum(p.numel() for p in self.blueprint.parameters() if p.requires_grad)

    def settle_threads(self) -> None:
        """Leave one thread to small fully connected networks: several only wait for one another."""
        if self.config.runtime.threads == 0 and self.device.type == "cpu":
            layers = [m for m in self.blueprint.modules() if not [*m.children()]]
            dense = not any(isinstance(m, CONVOLUTIONS) for m in layers) and self.config.architecture.family != "vit"
            torch.set_num_threads(1 if dense and self.parameters < SMALL else default_threads())

    def net(self, seed: int) -> FlatModule:
        """The network on the device, initialised by a seed on the CPU, so that every device starts alike."""
        _ = self.task_on_host  # made before the seed is set, for it may draw
        torch.manual_seed(seed)
        module = self.module().to(self.device)
        return FlatModule(module, takes=self._takes(module))

    def _takes(self, module: nn.Module) -> InputForm:
        """The form in which a network takes batches; what it does not take is said once."""

        def find() -> InputForm:
            x = self.task.batch(self.task.data.train, slice(0, 2)).x
            form, refusal = form_of(module, x, self._channels_last(module))
            if refusal is not None:
                self.reporter.say(
                    f"this network does not take images laid out channels-last ({first_line(refusal)}), so they enter "
                    "contiguous: .reshape in place of .view takes both"
                )
            return form

        asked = f"{self.task_fields()} {self.config.runtime.channels_last} {self.device}"
        return self.recent("takes", asked, find)

    def evaluator(self, net: FlatModule, options: Interpolation | None = None) -> Evaluator:
        return Evaluator(net, self.task, options or self.config.interpolation)

    def task_fields(self) -> dict[str, Any]:
        """What identifies the learning task: data set, its content, architecture."""
        dataset, architecture = self.config.dataset, self.config.architecture
        fields: dict[str, Any] = {
            "dataset": {"source": str(dataset.source), **fields_off_default(dataset)},
            "data": self.checksum,
            "architecture": {"family": str(architecture.family), **fields_off_default(architecture)},
        }
        if str(self.config.task.kind) not in ("auto", "classify"):  # for those the data say what is learnt
            fields["task"] = {"kind": str(self.config.task.kind), **fields_off_default(self.config.task)}
            if target := getattr(self.config.task, "target", None):
                fields["task"]["code"] = Target(target, "task").checksum
        if self.config.endpoints.fuse:
            fields["architecture"]["fused"] = True
        target = getattr(architecture, "target", None)
        if target:
            fields["architecture"]["code"] = models.source_checksum(target)
        return fields | self._statistics

    def _channels_last(self, module: nn.Module) -> bool:
        choice = self.config.runtime.channels_last
        if choice is not ChannelsLast.auto:
            return choice is ChannelsLast.on
        return any(isinstance(m, nn.Conv2d) for m in module.modules())


def statistics_fields(module: nn.Module) -> dict[str, Any]:
    """How statistics are estimated, of networks that have some."""
    return {"statistics": STATISTICS_VERSION} if norm_layers(module) else {}


def safe(label: str) -> str:
    """A label fit for a directory's name, which is no longer than file systems take beside others."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", label)[:80] or "_"
