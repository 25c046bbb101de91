"""Whether a transformed network is the same function: compared on real inputs, beside a broken control."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.forward import evaluating
from modeconn_cli.inputs import dtype_of, taken
from modeconn_cli.states import named_state, set_state
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.tasks.outputs import tensor_of

# Relative to the largest output: what sums in another order come to at most, even in a deep network; and by how much a
# control has to differ to be clear enough, so that no further group is broken.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
CLEAR = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 3e-1}


def certify_all(
    module: nn.Module,
    symmetry: Symmetry,
    before: Sequence[dict[str, Tensor]],
    after: Sequence[dict[str, Tensor]],
    x: Tensor,
) -> dict[str, Any]:
    """:func:`certify` of every network, the worst of them.

    Raises:
        RunFailed: one is not the same function as before.
    """
    found = [certify(module, symmetry, b, a, x) for b, a in zip(before, after, strict=True)]
    differences, controls = ([f[k] for f in found] for k in ("difference", "control"))
    # Of numpy's, which find a nan to be the worst there is.
    worst = {**found[0], "difference": float(np.max(differences)), "control": float(np.min(controls))}
    if not worst["difference"] <= worst["tolerance"]:
        raise RunFailed(
            f"the permuted network is not the same function: outputs differ by {worst['difference']:.1e} of the "
            "largest. Where the groups come from a file, they are not the network's; where not, please report the "
            "network."
        )
    if not worst["control"] > worst["tolerance"]:
        raise RunFailed(
            "the certificate shows nothing: not even a broken permutation changes the outputs of a network that is to "
            "be permuted, so they do not depend on its hidden units. Is it dead? Look at its loss; a lower "
            "endpoints.lr may keep it alive."
        )
    return worst


@torch.no_grad()
def certify(
    module: nn.Module, symmetry: Symmetry, before: dict[str, Tensor], after: dict[str, Tensor], x: Tensor
) -> dict[str, Any]:
    """How far the permuted network's outputs are from the original's on real inputs, and whether that is rounding.

    They are computed in float64; where the module names another type in its forward pass, in what it names, which
    ``dtype`` says and ``tolerance`` is for.

    ``difference``: the largest over outputs, relative to the largest output. ``control``: the same for a permutation
    that is broken on purpose, moving one group in a single tensor; it shows that a wrong one would be seen.
    """
    network = Computed(module, before, x)
    wanted, tolerance = network.outputs, TOLERANCES[network.dtype]
    scale = float(wanted.abs().max()) or 1.0
    control = 0.0
    for i, group in enumerate(symmetry.groups):
        permutations = symmetry.identity()
        permutations[i] = torch.arange(group.size).roll(1)
        moved = symmetry.permute({group.tensor: before[group.tensor]}, permutations)[group.tensor]
        broken = {**before, **dict.fromkeys(network.names_of(group.tensor), moved)}
        control = max(control, float((network.at(broken) - wanted).abs().max()) / scale)
        if control > CLEAR[network.dtype]:
            break
    difference = float((network.at(after) - wanted).abs().max()) / scale
    dtype = str(network.dtype).removeprefix("torch.")
    return {"difference": difference, "control": control, "examples": len(x), "dtype": dtype, "tolerance": tolerance}


class Computed:
    """A copy of a module that is computed as exactly as it can be.

    dtype: the narrowest type that a real number passes through. outputs: at the first state.
    """

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> None:
        self.module, self.x = _exact(module), x.double() if x.is_floating_point() else x
        passed = _Narrowest()
        try:
            with passed:
                self.outputs = self.at(state)
        except Exception:  # it names a type, which its weights have to have too; what else is wrong is raised below
            self.module = evaluating(copy.deepcopy(module))
            self.x = taken(self.module, x)
            passed = _Narrowest(dtype_of(module) or torch.float32)
            with passed:
                self.outputs = self.at(state)
        self.dtype = passed.dtype
        self._tied = {name: id(value) for name, value in named_state(module).items()}

    def at(self, state: Mapping[str, Tensor]) -> Tensor:
        """Its outputs at a state."""
        set_state(self.module, state)
        return tensor_of(self.module(self.x.clone()))

    def names_of(self, name: str) -> list[str]:
        """Every name of a tensor."""
        return [other for other, value in self._tied.items() if value == self._tied[name]]


def _exact(module: nn.Module) -> nn.Module:
    """A copy whose numbers are all in double precision."""
    exact = evaluating(copy.deepcopy(module).double())
    for value in [*exact.parameters(), *exact.buffers()]:
        if value.is_complex():
            value.data = value.data.to(torch.complex128)
    return exact


class _Narrowest(TorchDispatchMode):
    """Watches for the least exact type that numbers are cast to, from a wider one."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype in TOLERANCES:
            read = [a.dtype for a in args if isinstance(a, Tensor) and a.dim() and a.dtype in TOLERANCES]
            if any(torch.finfo(r).eps < torch.finfo(found.dtype).eps for r in read):
                self.dtype = max(self.dtype, found.dtype, key=lambda t: torch.finfo(t).eps)
        return found


def refuse_wrong(module: nn.Module, symmetry: Symmetry, x: Tensor, file: str) -> None:
    """Raise UserError for groups from a file that an untrained network does not have."""
    state = module.state_dict()
    generator = torch.Generator().manual_seed(0)
    moved = symmetry.permute(state, [torch.randperm(g.size, generator=generator) for g in symmetry.groups])
    found = certify(module, symmetry, state, moved, x)
    difference = found["difference"]
    if not difference <= found["tolerance"]:
        listed = {g.tensor for g in symmetry.groups}
        raise UserError(
            f"the groups in {file} are not the network's: permuted by them its outputs differ by {difference:.1e} of "
            f"the largest. Every tensor that reads or makes the units of {', '.join(sorted(listed))} has to name them; "
            "a tensor that is left out stays in place."
        )
