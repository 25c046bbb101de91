"""A guard for what must stay on the device: it refuses, on any device, what would stop a GPU from replaying it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DROPOUT = {aten.native_dropout.default, aten.bernoulli_.float, aten.bernoulli.p}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class DeviceOnly(TorchDispatchMode):
    """Raises RuntimeError inside its block at an operation that reads a tensor on the host (``.item()``, an index of
    no dimension), whose result's shape depends on values (``nonzero``, a mask as an index), that makes a tensor of
    host values or moves one between devices, or that draws random numbers.

    Args:
        dropout: let dropout draw, which is the network's own.

        >>> with DeviceOnly():
        ...     torch.ones(3)[torch.tensor(1)]
        Traceback (most recent call last):
        RuntimeError: aten.lift_fresh.default makes a tensor of host values
    """

    def __init__(self, dropout: bool = False) -> None:
        super().__init__()
        self.dropout = dropout

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        fault = self._fault(func, args)
        if fault:
            raise RuntimeError(f"{func} {fault}")
        result = func(*args, **(kwargs or {}))
        places = {x.device for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        if len(places) > 1:
            raise RuntimeError(f"{func} has tensors on {' and '.join(sorted(map(str, places)))}")
        return result

    def _fault(self, func: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
        tags = getattr(func, "tags", ())
        if torch.Tag.data_dependent_output in tags:
            return "reads a tensor on the host"
        if func in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            return "takes a mask, whose values say the result's shape" if masks else None
        if torch.Tag.dynamic_output_shape in tags:
            return "has a result whose shape depends on values"
        if func in (aten.lift_fresh.default, aten.lift_fresh_copy.default):
            return "makes a tensor of host values"
        if torch.Tag.nondeterministic_seeded in tags and not (self.dropout and func in DROPOUT):
            return "draws random numbers"
        return None
