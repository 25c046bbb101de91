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
    net.module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        seen = 0
        for x in batches:
            seen += len(x)
            for layer in layers:
                layer.momentum = len(x) / seen
            net(x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
