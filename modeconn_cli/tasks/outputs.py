"""The one tensor in what a network returned, however it is wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modeconn_cli.errors import UserError


def tensor_of(output: Any) -> Tensor:
    """The tensor (B, ...) that an objective reads, from what a network returned for a batch.

    In this order: a tensor; an object with ``.logits``; a dictionary's "logits", or its only tensor; the first of a
    tuple or list. Half precision becomes float32.

    Raises:
        UserError: there is no such tensor, or its numbers are not real.
    """
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            raise UserError(
                f"the network returns a tensor of {str(output.dtype).removeprefix('torch.')}: an answer is real "
                "numbers, as logits before any argmax"
            )
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, Mapping):
        if "logits" in output:
            return tensor_of(output["logits"])
        tensors = [v for v in output.values() if isinstance(v, Tensor)]
        if len(tensors) == 1:
            return tensor_of(tensors[0])
        names = ", ".join(map(str, output)) or "nothing"
        raise UserError(f'the network returns a dictionary of {names}: call the one that is its answer "logits"')
    if hasattr(output, "logits"):
        return tensor_of(output.logits)
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0])
    raise UserError(
        f"the network returns {type(output).__name__}: a tensor, an object with .logits, a dictionary or a tuple of "
        "them is read"
    )
