"""Running a module that anyone may have written: its modes, and passes that leave it and its input as they were.

A module's train() and eval() may return nothing or hold a part in one mode; its forward pass may count, keep averages,
work in place or draw random numbers. What is measured of a network depends on none of it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from modeconn_cli.errors import UserError
from modeconn_cli.states import set_state
from modeconn_cli.weights import FlatModule, rest_of

EXAMPLES = 64  # that a pass is repeated on
ROUNDING = 1e-4  # of the largest answer: what kernels of an accelerator may differ by from run to run
M = TypeVar("M", bound=nn.Module)


def evaluating(module: M) -> M:
    """The module itself, in evaluation mode; an eval() of its own need not return it."""
    module.eval()
    return module


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Every part's mode, afterwards as before, whatever a train() or eval() of its own does."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def rest_kept(module: nn.Module) -> Iterator[None]:
    """Buffers and frozen parameters, afterwards as before."""
    rest = rest_of(module)
    try:
        yield
    finally:
        set_state(module, rest)


class Passes:
    """Forward passes in evaluation mode, after each of which the network and its input are as they were before.

    The first one is looked at; what it did to buffers or input is undone then, and after every later one.

    Raises:
        UserError: when called first, for a network that answers the same examples differently each time.
    """

    def __init__(self, net: FlatModule) -> None:
        evaluating(net.module)
        self.net = net
        self._rest = net.rest()
        self._begun = self._moves_buffers = self._works_in_place = False

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Any:
        """Whatever the module returns for a batch (N, ...)."""
        if not self._begun:
            self._begun = True
            return self._first(x)
        output = self.net(x.clone() if self._works_in_place else x)
        if self._moves_buffers:
            self.net.load_rest(self._rest)
        return output

    def _first(self, x: Tensor) -> Any:
        drawn, given = generators(x.device), x.clone()
        output = self.net(given)
        self._works_in_place = not torch.equal(x, given)
        after = self.net.rest()
        self._moves_buffers = any(not identical(v, after[k]) for k, v in self._rest.items())
        if self._moves_buffers:
            self.net.load_rest(self._rest)
        if generators(x.device) != drawn:
            with rest_kept(self.net.module):
                require_repeatable(self.net, self.net.module, x[:EXAMPLES])
        return output


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN being the same as NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


@torch.no_grad()
def require_repeatable(run: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> None:
    """Run a network twice on the same examples x (N, ...).

    Raises:
        UserError: its answers differ; with the operation that is random, and where it is, as far as that can be found.
    """
    first, second = _tensors(run(x.clone())), _tensors(run(x.clone()))
    scale = max((float(v.abs().max()) for v in first if v.numel()), default=0.0)
    alike = len(first) == len(second) and all(
        a.shape == b.shape and bool(((a - b).abs() <= ROUNDING * scale).all() or identical(a, b))
        for a, b in zip(first, second, strict=False)
    )
    if not alike:
        raise UserError(
            "the network answers the same inputs differently each time, in evaluation mode too: its forward pass is "
            f"random{_culprit(run, module, x)}, so nothing can be said of its loss. Let it be random in training "
            "alone, as F.dropout(x, p, self.training) is."
        )


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor in what a network returned, as real numbers."""
    leaves = [v for v in pytree.tree_leaves(output) if isinstance(v, Tensor)]
    if not leaves:  # an object that holds its answer
        leaves = [v for v in getattr(output, "__dict__", {}).values() if isinstance(v, Tensor)]
    return [(torch.view_as_real(v) if v.is_complex() else v).double() for v in leaves]


def generators(device: torch.device) -> dict[str, Any]:
    """The states of the generators that a module may draw from unasked, by what they are called."""
    found: dict[str, Any] = {"torch": torch.get_rng_state().numpy().tobytes()}
    if device.type == "cuda":
        found["torch on the GPU"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    _, keys, place, *rest = np.random.get_state()  # noqa: NPY002 - what others draw from
    return {**found, "numpy": (np.asarray(keys).tobytes(), place, rest), "Python's random": random.getstate()}


def _culprit(run: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> str:
    """What draws random numbers in a pass, in brackets."""
    before = generators(x.device)
    with _FirstDraw(module, x.device) as seen:
        run(x.clone())
    if seen.found is not None:
        return f" ({seen.found})"
    moved = [name for name, state in generators(x.device).items() if state != before[name]]
    return f" ({' and '.join(moved)})" if moved else ""


class _FirstDraw(TorchFunctionMode):
    """Finds the first of torch's functions that moves a generator, and the layer and line that called it."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.names = {part: name for name, part in module.named_modules()}
        self.device = device
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = generators(self.device)
        output = func(*args, **(kwargs or {}))
        if self.found is None and generators(self.device) != before:
            self.found = f"{getattr(func, '__name__', func)}{self._where()}"
        return output

    def _where(self) -> str:
        layer = line = ""
        frame = sys._getframe(2)
        ours = str(Path(torch.__file__).parent), str(Path(__file__).parent)
        while frame is not None and not (layer and line):
            part = frame.f_locals.get("self")
            if not layer and isinstance(part, nn.Module) and part in self.names:
                kind, name = type(part).__name__, self.names[part]
                layer = f" in {name} ({kind})" if name else f" in {kind}"
            file = frame.f_code.co_filename
            if not line and Path(file).is_file() and not file.startswith(ours):
                line = f", {Path(file).name} line {frame.f_lineno}"
            if isinstance(part, nn.Module) and self.names.get(part) == "":
                break
            frame = frame.f_back  # type: ignore[assignment]
        return layer + line
