"""Whether a transformed network is the same function: compared in float64 on real inputs, beside a broken control."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modeconn_cli.errors import RunFailed, UserError
from modeconn_cli.states import set_state
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.tasks.outputs import tensor_of

TOLERANCE = 1e-10  # relative to the largest output, in float64
CONTROL = 1e-6  # a control that differs by this much is clear enough, and no further group is broken


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
    if not worst["difference"] <= TOLERANCE:
        raise RunFailed(
            f"the permuted network is not the same function: outputs differ by {worst['difference']:.1e} of the "
            "largest. Where the groups come from a file, they are not the network's; where not, please report the "
            "network."
        )
    if not worst["control"] > TOLERANCE:
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
    """How far the permuted network's outputs are from the original's, in float64 on real inputs.

    ``difference``: the largest over outputs, relative to the largest output. ``control``: the same for a permutation
    that is broken on purpose, moving one group in a single tensor; it shows that a wrong one would be seen.
    """
    exact = copy.deepcopy(module).double().eval()

    def outputs(state: dict[str, Tensor]) -> Tensor:
        set_state(exact, state)
        return tensor_of(exact(x.double() if x.is_floating_point() else x))

    wanted = outputs(before)
    scale = float(wanted.abs().max()) or 1.0
    control = 0.0
    for i, group in enumerate(symmetry.groups):
        permutations = symmetry.identity()
        permutations[i] = torch.arange(group.size).roll(1)
        name = group.tensor
        broken = {**before, name: symmetry.permute({name: before[name]}, permutations)[name]}
        control = max(control, float((outputs(broken) - wanted).abs().max()) / scale)
        if control > CONTROL:
            break
    difference = float((outputs(after) - wanted).abs().max()) / scale
    return {"difference": difference, "control": control, "examples": len(x), "dtype": "float64"}


def refuse_wrong(module: nn.Module, symmetry: Symmetry, x: Tensor, file: str) -> None:
    """Raise UserError for groups from a file that an untrained network does not have."""
    state = module.state_dict()
    generator = torch.Generator().manual_seed(0)
    moved = symmetry.permute(state, [torch.randperm(g.size, generator=generator) for g in symmetry.groups])
    difference = certify(module, symmetry, state, moved, x)["difference"]
    if not difference <= TOLERANCE:
        listed = {g.tensor for g in symmetry.groups}
        raise UserError(
            f"the groups in {file} are not the network's: permuted by them its outputs differ by {difference:.1e} of "
            f"the largest. Every tensor that reads or makes the units of {', '.join(sorted(listed))} has to name them; "
            "a tensor that is left out stays in place."
        )
