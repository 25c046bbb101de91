"""BatchNorm statistics are not coordinates: at a point of a path they are estimated anew on training data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modeconn_cli.weights import FlatModule


def norm_layers(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def reestimate(net: FlatModule, batches: Iterable[Tensor]) -> None:
    """Set running means and variances to their averages over batches, each weighted by its examples.

    Dropout stays off, and every layer but BatchNorm stays in evaluation mode. The variance is the batches' own
    unbiased one, averaged, as in Izmailov et al. 2018 (arXiv:1803.05407), section 3.2.
    """
    layers = norm_layers(net.module)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    seen = dict.fromkeys(layers, 0)

    def weigh(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Every use counts by itself, for layers that a network uses more than once.
        assert isinstance(layer, _BatchNorm)
        seen[layer] += len(inputs[0])
        layer.momentum = len(inputs[0]) / seen[layer]

    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    net.module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        for x in batches:
            net(x)
    finally:
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            hook.remove()
            layer.momentum = momentum
            layer.eval()
