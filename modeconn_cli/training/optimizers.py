"""Update rules for the trained rows: torch's own kernels, called without torch.optim.Optimizer around them.

Its bookkeeping is several percent of a small network's step, and the rows' gradients are computed, not
accumulated, so there is nothing for it to keep. A row is one flat vector, which one fused kernel moves, whole or by the
pieces its gradient comes in. Weight decay is not here: the loop applies it at the point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from modeconn_cli.training.recipe import Optimizer, Training

Tensors = list[Tensor]
Cut = Callable[[Tensor], Tensors]


class Update(Protocol):
    """What moves rows (P,) along gradients; ``memory`` is all that later steps depend on."""

    memory: dict[str, Tensors]

    def step(self, gradients: Tensors, lr: Tensor) -> None:
        """Move rows, given their gradients or pieces in turn and the learning rate (), which is not read back."""


class Momentum:
    """SGD with heavy-ball or Nesterov momentum."""

    def __init__(self, recipe: Training, rows: Tensors, cut: Cut) -> None:
        self.recipe = recipe
        # From zero, the first step's velocity is the gradient itself, as torch.optim.SGD has it.
        self.memory = {"velocity": [torch.zeros_like(p) for p in rows] if recipe.momentum else []}
        self._rows = [piece for row in rows for piece in cut(row)]
        self._velocity = [piece for row in self.memory["velocity"] for piece in cut(row)]

    def step(self, gradients: Tensors, lr: Tensor) -> None:
        sgd(
            self._rows,
            gradients,
            [*self._velocity] or [None] * len(gradients),
            fused=_has_fused_kernel(gradients) and not _is_left_as_it_is(gradients),
            weight_decay=0.0,
            momentum=self.recipe.momentum,
            lr=lr,  # type: ignore[arg-type]
            dampening=0.0,
            nesterov=self.recipe.nesterov,
            maximize=False,
        )


class Adam:
    """Adam; with decoupled decay, which is the loop's too, also AdamW."""

    def __init__(self, recipe: Training, rows: Tensors) -> None:
        self.recipe, self.rows = recipe, rows
        self.memory = {
            "mean": [torch.zeros_like(p) for p in rows],
            "square": [torch.zeros_like(p) for p in rows],
            "steps": [torch.zeros((), device=p.device) for p in rows],
        }

    def step(self, gradients: Tensors, lr: Tensor) -> None:
        adam(
            self.rows,
            gradients,
            self.memory["mean"],
            self.memory["square"],
            [],
            self.memory["steps"],
            fused=_has_fused_kernel(gradients),
            amsgrad=False,
            beta1=self.recipe.betas[0],
            beta2=self.recipe.betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=self.recipe.eps,
            maximize=False,
        )


def takes_pieces(recipe: Training) -> bool:
    """Whether the recipe's rule needs no gradient whole. Adam's kernel counts its steps once a tensor."""
    return recipe.optimizer is Optimizer.sgd


def make_update(recipe: Training, rows: Tensors, cut: Cut | None = None) -> Update:
    """The recipe's rule over rows of W, which it moves in place; ``cut`` gives the pieces that gradients come in."""
    return Momentum(recipe, rows, cut or (lambda row: [row])) if takes_pieces(recipe) else Adam(recipe, rows)


def _has_fused_kernel(tensors: Sequence[Tensor]) -> bool:
    return tensors[0].device.type in ("cpu", "cuda")


def _is_left_as_it_is(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch's fused SGD moves nothing: its kernel for half precision on a CPU, up to 2.13, but a remainder
    (github.com/pytorch/pytorch/issues/191763)."""
    return tensors[0].device.type == "cpu" and tensors[0].dtype in (torch.float16, torch.bfloat16)
