"""How a network takes its inputs: in which type and, for images, in which memory layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputForm:
    """What becomes of a batch (N, ...) before it enters a network.

    dtype: what real inputs are cast to; None: nothing. channels_last: whether images are laid out NHWC.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.dtype is not None and x.dtype is not self.dtype and x.is_floating_point():
            x = x.to(self.dtype)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The real type of a network's parameters, those that train before others; None where none is a real number."""
    parameters = sorted(module.parameters(), key=lambda p: not p.requires_grad)
    return next((p.dtype.to_real() for p in parameters if p.is_floating_point() or p.is_complex()), None)


def form_of(module: nn.Module, x: Tensor, channels_last: bool = False) -> tuple[InputForm, Exception | None]:
    """The form in which a network takes inputs like x (N, ...), and what it said to channels-last images, if not those.

    Its parameters' type is tried before the data's own, and the layout that is asked for before the usual one; nothing
    is tried where there is no choice. The module, its buffers and the random generators stay as they are.
    """
    types = dict.fromkeys([dtype_of(module), None] if x.is_floating_point() else [None])
    if x.dtype in types:
        types.pop(None, None)
    layouts = [True, False] if channels_last and x.dim() == 4 else [False]
    forms = [InputForm(dtype, layout) for dtype in types for layout in layouts]
    if len(forms) == 1:
        return InputForm(forms[0].dtype, channels_last), None
    refusals: dict[InputForm, Exception] = {}
    for form in forms:
        refusal = _refusal(module, form(x))
        if refusal is None:
            usual = InputForm(form.dtype, channels_last)
            return form, refusals.get(usual) if usual != form else None
        refusals[form] = refusal
    return InputForm(forms[0].dtype), None  # whoever runs it says what is wrong with it


@torch.no_grad()
def _refusal(module: nn.Module, x: Tensor) -> Exception | None:
    """What a network says to a batch, trained or evaluated; None where it takes it."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for training in (False, True):
            tried = copy.deepcopy(module)
            tried.train(training)
            try:
                tried(x.clone(memory_format=torch.preserve_format))
            except Exception as error:
                return error
    return None


def taken(module: nn.Module, x: Tensor) -> Tensor:
    """A batch in the form in which a network takes it, in the usual layout."""
    return form_of(module, x)[0](x)
