"""Which arithmetic float32 products run in, set around the work that asked for it.

TF32 is a switch of the process: matrix products have one and cuDNN another, each reachable by an old name
(``allow_tf32``) and, from PyTorch 2.9 on, by a new one (``fp32_precision``) that wins where it was set. Both are set
here, to agree: PyTorch refuses to read the old name where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from modeconn_cli.training.recipe import Precision


def set_tf32(on: bool) -> None:
    """Let CUDA's matrix products, convolutions and recurrent layers run in TF32, or in full float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    for switch in _switches():
        switch.fp32_precision = "tf32" if on else "ieee"


@contextmanager
def arithmetic(kind: Precision) -> Iterator[None]:
    """TF32 where ``kind`` asks for it and full float32 where it does not; afterwards as before."""
    matmul, cudnn = (_allowed(where) for where in (torch.backends.cuda.matmul, torch.backends.cudnn))
    before = [switch.fp32_precision for switch in _switches()]
    set_tf32(kind is Precision.tf32)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        for switch, value in zip(_switches(), before, strict=True):
            switch.fp32_precision = value


def autocast(kind: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context that a forward pass in bfloat16 needs; for another precision, nothing."""
    return torch.autocast(device.type, torch.bfloat16) if kind is Precision.bfloat16 else nullcontext()


def _switches() -> list[Any]:
    backends = torch.backends
    found = [backends.cuda.matmul, getattr(backends.cudnn, "conv", None), getattr(backends.cudnn, "rnn", None)]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


def _allowed(where: Any) -> bool:
    try:
        return bool(where.allow_tf32)
    except RuntimeError:  # the new name was set, to something else
        return str(getattr(where, "conv", where).fp32_precision) == "tf32"
