"""REPAIR: an interpolated network whose units keep the statistics of its ends (Jordan et al. 2022, arXiv:2211.08403).

Averaging two networks shrinks the variance of what their units compute, layer upon layer. Here every layer's output
is set back, channel by channel, to the mean and standard deviation interpolated between those of the two ends. A layer
that BatchNorm follows is left to it, and BatchNorm's own output is what is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from modeconn_cli.evaluation.statistics import norm_layers, reestimate
from modeconn_cli.forward import Passes, evaluating, rest_kept
from modeconn_cli.weights import FlatModule

Moments = dict[nn.Module, tuple[Tensor, Tensor]]  # mean and standard deviation of every channel (C,)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)


class Repair:
    """Keeps the statistics of two or more ends, and sets a network between them to what lies between those.

    Args:
        batches: gives clean training inputs, the same whenever it is called.
        shift: REPAIR, which sets means and deviations; False: RESCALE, which only multiplies by their ratio.
        norms: layers whose statistics are estimated, as ``estimable`` gave them; None: ``norm_layers``.
    """

    def __init__(
        self,
        net: FlatModule,
        batches: Callable[[], Iterable[Tensor]],
        shift: bool,
        norms: Sequence[nn.Module] | None = None,
    ) -> None:
        self.net, self.batches, self.shift = net, batches, shift
        self.norms = norm_layers(net.module) if norms is None else norms
        self.sites = _sites(net, next(iter(batches())))
        self.ends: list[Moments] = []
        self._handles: list[RemovableHandle] = []

    @torch.no_grad()
    def add_end(self) -> None:
        """Take the statistics of the network as it is now, with its own buffers, for those of the next end."""
        sums: dict[nn.Module, list[Any]] = {site: [0, 0.0, 0.0] for site in self.sites}

        def collect(site: nn.Module, _inputs: Any, output: Tensor) -> None:
            x = _by_channel(site, output).double()
            kept = sums[site]
            kept[0] += x.shape[1]
            kept[1] = kept[1] + x.sum(1)
            kept[2] = kept[2] + x.square().sum(1)

        handles = [site.register_forward_hook(collect) for site in self.sites]
        try:
            passes = Passes(self.net)
            for x in self.batches():
                passes(x)
        finally:
            for handle in handles:
                handle.remove()
        moments: Moments = {}
        for site, (n, total, squares) in sums.items():
            mean = total / n
            moments[site] = (mean.float(), (squares / n - mean.square()).clamp(min=0).sqrt().float())
        self.ends.append(moments)

    @torch.no_grad()
    def set(self, shares: Sequence[float]) -> None:
        """Repair the network as it is now, the mean of the ends by these shares; :meth:`release` undoes it.

        One pass over the data in which every layer is set by its batch's own statistics, so that the next layer
        sees what it will see; their averages are what stays.
        """
        target = {
            site: tuple(
                torch.stack([share * end[site][k] for share, end in zip(shares, self.ends, strict=True)]).sum(0)
                for k in range(2)
            )
            for site in self.sites
        }
        met: dict[nn.Module, list[Any]] = {site: [0, 0.0, 0.0] for site in self.sites}

        def by_batch(site: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            x = _by_channel(site, output)
            mean, variance = x.mean(1), x.var(1, unbiased=False)
            kept = met[site]
            kept[0] += x.shape[1]
            kept[1] = kept[1] + x.shape[1] * mean.double()
            kept[2] = kept[2] + x.shape[1] * variance.double()
            return self._moved(site, output, mean, variance.sqrt(), *target[site])

        self._handles = [site.register_forward_hook(by_batch) for site in self.sites]
        try:
            if self.norms:
                reestimate(self.net, self.batches(), self.norms)
            else:
                passes = Passes(self.net)
                for x in self.batches():
                    passes(x)
        finally:
            self.release()
        found = {s: ((m / n).float(), (v / n).sqrt().float()) for s, (n, m, v) in met.items()}

        def as_found(site: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return self._moved(site, output, *found[site], *target[site])

        self._handles = [site.register_forward_hook(as_found) for site in self.sites]

    def release(self) -> None:
        """Leave the network as it is without repair."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _moved(
        self, site: nn.Module, output: Tensor, mean: Tensor, std: Tensor, new_mean: Tensor, new_std: Tensor
    ) -> Tensor:
        # A channel that does not vary has no deviation to set: it gets the mean alone.
        varies = std > 1e-6 * (std.max() + 1e-30)
        ratio = torch.where(varies, new_std / std.clamp(min=1e-30), 1.0 if not self.shift else 0.0)
        shape = [-1] if isinstance(site, nn.Linear) else [-1] + [1] * (output.dim() - 2)
        scale = ratio.view(shape).to(output.dtype)
        if not self.shift:
            return output * scale
        return (output - mean.view(shape)) * scale + new_mean.view(shape)


def _by_channel(site: nn.Module, x: Tensor) -> Tensor:
    """(C, everything else); a linear layer's channels are last, others' second."""
    return x.reshape(-1, x.shape[-1]).T if isinstance(site, nn.Linear) else x.movedim(1, 0).flatten(1)


@torch.no_grad()
def _sites(net: FlatModule, x: Tensor) -> list[nn.Module]:
    """The layers to set, in the order in which they compute: all but the last, and those that BatchNorm follows."""
    order: list[nn.Module] = []
    maker: dict[int, nn.Module] = {}
    outputs: list[Tensor] = []  # kept, so that no address is used twice

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        before = maker.get(id(x))
        if isinstance(layer, _BatchNorm) and before in order:
            order.remove(before)
        if layer in order:
            order.remove(layer)
        order.append(layer)
        maker[id(output)] = layer
        outputs.append(output)

    layers = [m for m in net.module.modules() if isinstance(m, LAYERS)]
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        with rest_kept(evaluating(net.module)):
            net(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    return order[:-1]
