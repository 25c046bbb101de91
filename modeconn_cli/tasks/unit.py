"""A network that learnt normalised targets, rewritten to answer in their own unit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.states import matching_state
from modeconn_cli.tasks.outputs import tensor_of

TOLERANCE = 1e-6  # relative to the largest answer, in float64


@torch.no_grad()
def in_unit(module: nn.Module, state: Mapping[str, Tensor], note: Mapping[str, Any], x: Tensor) -> dict[str, Tensor]:
    """The state of the network that answers mean + std * z where this one answers z.

    Rows of its last linear layer are scaled, and its biases shifted; which layer that is, the answers show. Of answers
    that go on with log-variances s of z, these become s + 2 log std.

    Args:
        module: of the network's architecture; it stays as it is.
        state: its state_dict.
        note: as :meth:`modeconn_cli.tasks.targets.Scale.note` has it, for T targets.
        x: examples (N, *shape) that both are compared on, in float64.

    Raises:
        UserError: no linear layer with a bias gives the network's answers.

    >>> net = nn.Linear(1, 1)
    >>> note = {"mean": [5.0], "std": [2.0], "log_variances": False}
    >>> changed, x = in_unit(net, net.state_dict(), note, torch.ones(3, 1)), torch.ones(1, 1)
    >>> torch.allclose(x @ changed["weight"].T + changed["bias"], 5 + 2 * net(x))
    True
    """
    mean, std = (torch.tensor(note[k], dtype=torch.float64) for k in ("mean", "std"))
    factor, shift = std, mean
    if note["log_variances"]:
        factor, shift = torch.cat([std, torch.ones_like(std)]), torch.cat([mean, 2 * std.log()])
    wanted = _answers(module, state, x, len(factor)) * factor + shift
    for name, layer in reversed([*module.named_modules()]):
        if not isinstance(layer, nn.Linear) or layer.out_features != len(factor) or layer.bias is None:
            continue
        weight, bias = (f"{name}.{part}".lstrip(".") for part in ("weight", "bias"))
        changed = dict(state)
        changed[weight] = (state[weight].double() * factor[:, None]).to(state[weight].dtype)
        changed[bias] = (state[bias].double() * factor + shift).to(state[bias].dtype)
        off = (_answers(module, changed, x, len(factor)) - wanted).abs().max()
        if off <= TOLERANCE * wanted.abs().max():
            return changed
    raise UserError(
        "no linear layer with a bias gives this network's answers, so their unit cannot be put into its weights: use "
        "the mean and deviation that export prints."
    )


def _answers(module: nn.Module, state: Mapping[str, Tensor], x: Tensor, outputs: int) -> Tensor:
    """(N, outputs) in float64."""
    made = copy.deepcopy(module).cpu()
    matching_state(made, state, "the network", own=True)
    answer = tensor_of(made.double().eval()(x.double() if x.is_floating_point() else x))
    return answer.double().reshape(len(x), outputs)
