"""A network's weights as one point of R^P: a flat vector that the module's parameters are views into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.inputs import InputForm
from modeconn_cli.states import named_state, set_state

ALIGNMENT = 128  # floats, where a GPU reads in whole lines


class FlatModule:
    """A module whose trainable parameters lie side by side in one vector.

    Coordinates are the parameters that require gradients, in the module's own order, tied ones once; of a complex one,
    the real and the imaginary parts. Frozen parameters and buffers are not coordinates.

    On a GPU each parameter begins at a multiple of ALIGNMENT, after zeros that stay zero, and convolutions' weights
    lie channels-last where batches do: its kernels are slower, or other ones, anywhere else. :meth:`views`,
    :meth:`named` and :meth:`flatten` know the places; no one else should.

    Attributes:
        point: (P,) the coordinates; writing to it moves the network.
        size: how many of P are coordinates; on a CPU, all, but for a zero that may stand before complex ones.
        channels_last: whether image batches are laid out NHWC in memory before they enter.
        takes: the form in which batches enter; by default in the parameters' type.
    """

    def __init__(
        self,
        module: nn.Module,
        channels_last: bool = False,
        alignment: int | None = None,
        takes: InputForm | None = None,
    ) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise UserError("this network has no trainable parameters, so there is no weight space to move in.")
        kinds = {(p.dtype.to_real(), p.device) for _, p in named}
        if len(kinds) > 1:
            raise UserError(f"parameters must share one type and device; found {sorted(map(str, kinds))}.")
        self.module = module
        self.takes = InputForm(named[0][1].dtype.to_real(), channels_last) if takes is None else takes
        self.channels_last = self.takes.channels_last
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.shapes = [p.shape for p in self.parameters]
        self._counts = [p.numel() * (2 if p.is_complex() else 1) for p in self.parameters]
        self.size = sum(self._counts)
        self._alignment = alignment or (ALIGNMENT if self.parameters[0].device.type == "cuda" else 1)
        ends = [0]
        self._starts = []
        for p, count in zip(self.parameters, self._counts, strict=True):
            at = max(self._alignment, 2) if p.is_complex() else self._alignment  # where pairs can be read as one number
            self._starts.append(-(-ends[-1] // at) * at)
            ends.append(self._starts[-1] + count)
        self._length = ends[-1]
        self.point = self._fill([p.detach() for p in self.parameters], self.parameters[0])
        self.bind(self.point)

    def __call__(self, x: Tensor) -> Any:
        """Whatever the module returns for a batch (N, ...)."""
        return self.module(self.takes(x))

    def views(self, vector: Tensor) -> list[Tensor]:
        """One view into a (P,) vector for each parameter, of that parameter's shape."""
        found = []
        for start, count, shape in zip(self._starts, self._counts, self.shapes, strict=True):
            part = vector[start : start + count]
            if count > shape.numel():
                found.append(torch.view_as_complex(part.view(*shape, 2)))
            elif self._alignment > 1 and self.channels_last and len(shape) == 4:
                found.append(part.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2))
            else:
                found.append(part.view(shape))
        return found

    def bind(self, vector: Tensor) -> None:
        """Make a (P,) vector the network's point, without copying it: moving either moves the other."""
        for parameter, view in zip(self.parameters, self.views(vector), strict=True):
            parameter.data = view
        self.point = vector

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """The gradient of a scalar loss at the point, a tensor for each parameter, the caller's to change.

        Zero for a parameter that the loss does not depend on.
        """
        # Not autograd.grad, which may give two parameters one and the same tensor.
        loss.backward()
        gradients, seen = [], set[int]()
        for p in self.parameters:
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            if gradient.layout is not torch.strided:
                gradient = gradient.to_dense()
            # Parameters that are views of their shape when they are added may be given views of one memory.
            memory = gradient.untyped_storage().data_ptr()
            gradients.append(gradient.clone() if memory in seen else gradient)
            seen.add(memory)
            p.grad = None
        return gradients

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a (P,) vector by parameter name."""
        return dict(zip(self.names, self.views(vector), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything the module is, copied: coordinates, frozen parameters, buffers and extra state; see states.py."""
        return {k: v.detach().clone() for k, v in named_state(self.module).items()}

    def rest(self) -> dict[str, Tensor]:
        """The part of :meth:`state` that is not coordinates: buffers and frozen parameters."""
        return rest_of(self.module)

    def load_rest(self, rest: Mapping[str, Tensor]) -> None:
        """Set buffers and frozen parameters from a dict with the keys of :meth:`rest`."""
        set_state(self.module, rest)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Become the network of a state as :meth:`state` gives it, the point's vector kept."""
        self.point.copy_(self.flatten(state))
        self.bind(self.point)
        self.load_rest({k: v for k, v in state.items() if k not in self._coordinate_keys()})

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """The (P,) point of a state as :meth:`state` gives it, on this module's device."""
        return self._fill([state[n] for n in self.names], self.point)

    def _fill(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        vector = torch.zeros(self._length, dtype=like.dtype.to_real(), device=like.device)
        for view, value in zip(self.views(vector), values, strict=True):
            view.copy_(value)
        return vector

    def _coordinate_keys(self) -> set[str]:
        return {n for n, p in self.module.named_parameters(remove_duplicate=False) if p.requires_grad}


def rest_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state that no training moves by gradients, copied: buffers and frozen parameters."""
    moving = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {k: v.detach().clone() for k, v in named_state(module).items() if k not in moving}


@torch.no_grad()
def combine(coefficients: Sequence[float], rows: Tensor, out: Tensor) -> None:
    """Write c @ W into ``out`` (P,), for rows W (K, P) and any coefficients c (K,), one of them at least not zero.

    A row whose coefficient is zero is not looked at; a one-hot c copies its row exactly.
    """
    # On a CPU, blocks that stay in cache from one term to the next cost a fraction of whole vectors.
    block = 1 << 17 if out.device.type == "cpu" else out.numel()
    used = [(float(c), row.split(block)) for c, row in zip(coefficients, rows, strict=True) if c != 0]
    (first, start), *others = used
    convex = all(c > 0 for c, _ in used) and abs(sum(c for c, _ in used) - 1) < 1e-9
    for i, part in enumerate(out.split(block)):
        if first == 1 and not others:
            part.copy_(start[i])
        elif convex:  # which leaves what all rows agree in exactly as it is
            so_far, before = first, start[i]
            for c, row in others:
                so_far += c
                before = torch.lerp(before, row[i], c / so_far, out=part)
        else:
            torch.mul(start[i], first, out=part)
            for c, row in others:
                part.add_(row[i], alpha=c)
