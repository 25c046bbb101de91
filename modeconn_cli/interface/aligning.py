"""align: a live network permuted to lie near another, without a change of its function."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.buffers import midpoint
from modeconn_cli.forward import evaluating
from modeconn_cli.interface.given import Unlabelled, unlabelled_data
from modeconn_cli.interface.joining import NAMES, carry_out, method_of, request
from modeconn_cli.interface.live import Model, architecture_of
from modeconn_cli.matching.options import Pairwise, Sees
from modeconn_cli.networks import read_state
from modeconn_cli.settings import choices
from modeconn_cli.stages.rebasin import Aligned
from modeconn_cli.states import inside, matching_state, named_state, set_state

GROUPS = (*Aligned.groups, "runtime", "task")


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """A network as it lies nearest to another among those that compute the same.

    Attributes:
        module: in evaluation mode, where the second network was.
        state: its state_dict, on the CPU.
        permutations: for every ``<tensor>:<dim>``, the indices (n,) with which ``index_select`` along that dimension
            makes the aligned tensor from the second network's; for a ``<tensor>`` alone, the flat position of every
            element's source.
        objective_before, objective_after: what was lowered or raised, by the second network and by the aligned one.
        certificate: how far the two are from being the same function, in float64 or what the network names (``dtype``):
            ``difference``, the largest of outputs, relative; ``control``, the same of a permutation that is broken on
            purpose.
        summary: all that is known of it: method, groups and how many of their units moved, what was pinned.
    """

    module: nn.Module
    state: dict[str, Tensor]
    permutations: dict[str, Tensor]
    objective_before: float
    objective_after: float
    certificate: dict[str, Any]
    summary: dict[str, Any]

    def __repr__(self) -> str:
        moved = sum(g["moved"] for g in self.summary["groups"])
        units = sum(g["size"] for g in self.summary["groups"])
        return (
            f"<aligned by {self.summary['method']}: {moved} of {units} units moved, {self.summary['objective_is']} "
            f"{self.objective_before:.4f} before, {self.objective_after:.4f} after, outputs differ by "
            f"{self.certificate['difference']:.1e}>"
        )

    def midpoint(self, other: nn.Module) -> nn.Module:
        """The module halfway between the aligned network and the first one, given again; statistics are averaged.

        Raises:
            UserError: it is of another architecture.
        """
        found = copy.deepcopy(self.module)
        state = matching_state(found, named_state(inside(other)), "the other network", own=True)
        set_state(found, midpoint(self.module, {k: v.cpu() for k, v in state.items()}, self.state))
        return found


def align(
    model_a: Model,
    model_b: Model,
    data: Any = None,
    method: str = "weight",
    *,
    task: Any = "auto",
    architecture: nn.Module | None = None,
    names: tuple[str, str] = NAMES,
    output_dir: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Alignment:
    """The second network permuted so that it lies near the first and computes what it did.

    The networks given stay as they are.

    Args:
        model_a, model_b, task, architecture, names, output_dir, progress: as for :func:`modeconn_cli.connect`.
        data: as there; or inputs x (N, ...) alone, which is enough for "weight" and "activation"; None: for "weight",
            inputs are drawn at random, where the network's first layer tells their shape.
        method: "weight" (Ainsworth et al. 2023), "activation" (Li et al. 2015), "straight_through" (Ainsworth et al.
            2023) or "sinkhorn" (Peña et al. 2023).
        options: restarts, sweeps, seed, examples, steps, lr, groups ...

    Raises:
        UserError: the network cannot be traced or has no symmetry, or the data do not fit.
        RunFailed: the permuted network is not the same function. Interrupted: Ctrl-C.

    >>> a, b = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    >>> found = align(a, b)
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(found.module(x), b(x), atol=1e-6), sorted(found.permutations)
    (True, ['0.bias:0', '0.weight:0', '2.weight:1'])
    """
    chosen = method_of(method, "method")
    if data is None or isinstance(data, torch.Tensor):
        task = _without_labels(data, chosen, architecture_of((model_a, model_b), architecture)[0])
        data = None
    options |= {GROUPS[0]: method}
    asked = request((model_a, model_b), data, task, architecture, names, output_dir, progress, GROUPS, options)
    with asked as (context, _, start, end):
        stage = Aligned(context, start, end)
        stage.check()
        carry_out(context, [stage], (start, end))
        folder = stage.result.folder
        summary = json.loads((folder / "summary.json").read_text())
        module = copy.deepcopy(context.live.architecture)
        state = stage.state()
        set_state(module, state)
        return Alignment(
            evaluating(module.to(context.device)),
            state,
            read_state(folder / "permutation.safetensors"),
            summary["objective_before"],
            summary["objective_after"],
            summary["certificate"],
            summary,
        )


def _without_labels(x: torch.Tensor | None, method: str, module: nn.Module) -> Unlabelled:
    """Inputs alone, where a method is content with them."""
    chosen: type[Pairwise] = choices(GROUPS[0])[method]
    if chosen.sees == Sees.targets or (x is None and chosen.sees != Sees.weights):
        needs = "inputs and targets, as (x, y)" if chosen.sees == Sees.targets else "inputs, as a tensor x (N, ...)"
        raise UserError(f"method={method} aligns by what networks compute: give data, {needs}.")
    return Unlabelled(unlabelled_data(x, module))
