"""Running statistics of norms are not coordinates: at a point of a path they are estimated anew on training data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from modeconn_cli.forward import evaluating, modes_kept, rest_kept
from modeconn_cli.weights import FlatModule

CALLS: dict[Callable[..., Any], inspect.Signature] = {f: inspect.signature(f) for f in (F.batch_norm, F.instance_norm)}
STATISTICS_VERSION = 2  # raised when the same network on the same data gets other statistics
STATISTICS = ("running_mean", "running_var")


def norm_layers(module: nn.Module) -> list[nn.Module]:
    """The norms whose running statistics training moves: those in training mode after ``module.train()``.

    A norm that a train() of the module's own holds in evaluation mode is frozen, and its statistics are constants; so
    is one with a momentum of 0. Besides PyTorch's own, a norm is what has a momentum, ``running_mean`` and
    ``running_var``.
    """
    with modes_kept(module):
        module.train()
        return [part for part in module.modules() if part.training and _moves_statistics(part)]


def statistics_names(module: nn.Module, layers: Sequence[nn.Module]) -> Iterator[str]:
    """The names of these layers' statistics and counters in the module's state."""
    for name, part in module.named_modules(remove_duplicate=False):
        if any(part is layer for layer in layers):
            kept = [k for k in (*STATISTICS, "num_batches_tracked") if isinstance(getattr(part, k, None), Tensor)]
            yield from (f"{name}.{k}" if name else k for k in kept)


def _moves_statistics(part: nn.Module) -> bool:
    tracked = getattr(part, "track_running_stats", True)
    kept = all(isinstance(part._buffers.get(k), Tensor) for k in STATISTICS)
    return bool(tracked and kept and getattr(part, "momentum", 0.0) != 0)


@torch.no_grad()
def estimable(net: FlatModule, x: Tensor) -> list[nn.Module]:
    """:func:`norm_layers`, without those of others' making that normalise in a way that is not known.

    x: a batch (N, ...), of at least two examples; it is run where there are any.
    """
    layers = norm_layers(net.module)
    if all(isinstance(layer, _NormBase) for layer in layers):
        return layers
    found = _estimated(net, layers, [x.clone()])
    return [layer for layer in layers if isinstance(layer, _NormBase) or layer in found]


@torch.no_grad()
def reestimate(net: FlatModule, batches: Iterable[Tensor], layers: Sequence[nn.Module] | None = None) -> None:
    """Set running means and variances to their averages over batches, each weighted by its examples.

    Dropout stays off, and every layer but the norms that train stays in evaluation mode; other buffers are afterwards
    as before. The variance is the batches' own unbiased one, averaged, as in Izmailov et al. 2018 (arXiv:1803.05407),
    section 3.2. Each batch's mean and variance are taken by ``torch.var_mean``, right to rounding in every memory
    layout: of images in channels-last order PyTorch 2.13's own kernel on a CPU gets the variance wrong in the third
    digit (tests/evaluation/test_statistics.py has how far).

    layers: those that :func:`estimable` gave; None: :func:`norm_layers`.
    """
    layers = norm_layers(net.module) if layers is None else layers
    if layers:
        for layer, found in _estimated(net, layers, batches).items():
            found.write(layer)


@dataclass
class Statistics:
    """Sums over batches, weighted by their examples, of means and unbiased variances (C,)."""

    examples: int = 0
    uses: int = 0
    sums: list[Tensor | float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, examples: int, mean: Tensor, variance: Tensor) -> None:
        self.examples += examples
        self.uses += 1
        for i, value in enumerate((mean, variance)):
            self.sums[i] = (
                self.sums[i] + examples * value.to("cpu" if value.device.type == "mps" else value.device).double()
            )

    def write(self, layer: nn.Module) -> None:
        """Into a layer's buffers."""
        for name, total in zip(STATISTICS, self.sums, strict=True):
            getattr(layer, name).copy_(total / self.examples)
        if isinstance(counter := getattr(layer, "num_batches_tracked", None), Tensor):
            counter.fill_(self.uses)


def _estimated(net: FlatModule, layers: Sequence[nn.Module], batches: Iterable[Tensor]) -> dict[nn.Module, Statistics]:
    """What each layer that is used finds over the batches; every use of a layer counts by itself."""
    evaluating(net.module)
    own = _OwnRule()
    with ExitStack() as stack:
        stack.enter_context(rest_kept(net.module))
        stack.enter_context(modes_kept(net.module))
        seen = stack.enter_context(_Estimation(layers))
        for layer in layers:
            if isinstance(layer, _NormBase):
                stack.callback(setattr, layer, "momentum", layer.momentum)
                stack.callback(layer.register_forward_pre_hook(own.weigh, with_kwargs=True).remove)
            layer.training = True
        for x in batches:
            net(x)
        own.read(seen.found)
    return seen.found


class _OwnRule:
    """For subclasses of PyTorch's norms that compute for themselves: their momentum is set so that they average."""

    def __init__(self) -> None:
        self.examples: dict[nn.Module, int] = {}
        self.uses: dict[nn.Module, int] = {}

    def weigh(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = max((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), key=Tensor.dim)  # others are settings
        assert isinstance(layer, _NormBase)
        if layer not in self.uses:
            layer.reset_running_stats()
        self.examples[layer] = self.examples.get(layer, 0) + len(x)
        self.uses[layer] = self.uses.get(layer, 0) + 1
        layer.momentum = len(x) / self.examples[layer]

    def read(self, found: dict[nn.Module, Statistics]) -> None:
        """Add what layers hold that were used, and not found otherwise."""
        for layer, uses in self.uses.items():
            if layer not in found:
                found[layer] = Statistics()
                found[layer].add(1, *(getattr(layer, k).clone() for k in STATISTICS))
                found[layer].uses = uses


class _Estimation(TorchFunctionMode):
    """Takes the place of PyTorch's normalisations in training, for layers known by where their running means lie."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = {layer.running_mean.data_ptr(): layer for layer in layers}  # type: ignore[operator]
        self.found: dict[nn.Module, Statistics] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            bound = CALLS[func].bind(*args, **kwargs)
            bound.apply_defaults()
            asked = bound.arguments
            mean, x = asked["running_mean"], asked["input"]
            layer = None if mean is None else self.layers.get(mean.data_ptr())
            if layer is not None and asked.get("training", asked.get("use_input_stats")):
                found = self.found.setdefault(layer, Statistics())
                return (_batch_norm if func is F.batch_norm else _instance_norm)(x, asked, found)
        return func(*args, **kwargs)


def _batch_norm(x: Tensor, asked: dict[str, Any], found: Statistics) -> Tensor:
    """Normalise x (N, C, ...) by its own mean and biased variance, and note the mean and the unbiased one."""
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"a batch of {tuple(x.shape)} has one value a channel, and so no variance")
    variance, mean = torch.var_mean(_wide(x), [0, *range(2, x.dim())], correction=1)
    found.add(len(x), mean, variance)
    kind = asked["running_mean"].dtype
    by = mean.to(kind), (variance * ((count - 1) / count)).to(kind)
    return F.batch_norm(x, *by, asked["weight"], asked["bias"], False, 0.0, asked["eps"])


def _instance_norm(x: Tensor, asked: dict[str, Any], found: Statistics) -> Tensor:
    """Normalise every example of x (N, C, ...) by its own, and note the examples' means and unbiased variances."""
    variance, mean = torch.var_mean(_wide(x).flatten(2), 2, correction=1)
    found.add(len(x), mean.mean(0), variance.mean(0))
    return F.instance_norm(x, None, None, asked["weight"], asked["bias"], True, 0.0, asked["eps"])


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
