"""Residual networks for CIFAR: He et al. 2016 (arXiv:1512.03385), section 4.2.

Where a block changes the shape, its shortcut is He's option A (``pad``, no parameters), his option B (``conv1x1``), or
the 3x3 convolution (``conv3x3``) of the ResNet20 of Ainsworth et al. 2023 (arXiv:2209.04836) and Jordan et al. 2022
(arXiv:2211.08403). ``pad`` ties the channels of all three stages to one another, which a convolution does not.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import he_normal_convs, require_images, scaled

CHANNELS = (16, 32, 64)
SMALLEST = 4  # two stages halve the image
NORMS = ("batch", "layer", "layer2d", "none")
SHORTCUTS = {"pad": 0, "conv1x1": 1, "conv3x3": 3}  # side of the kernel


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of every pixel by itself: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def normalisation(norm: str, channels: int) -> nn.Module:
    """``layer`` normalises over channels and pixels together, as LayerNorm over (C, H, W) with C weights."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "layer2d":
        return LayerNorm2d(channels)
    return nn.Identity()


def conv(in_channels: int, out_channels: int, kernel: int, stride: int, norm: str) -> nn.Conv2d:
    """A convolution that keeps the size, but for its stride.

    A shift after BatchNorm makes a bias before it redundant. A layer's own mean takes off what all its channels share,
    so a bias before it is not; ``layer2d`` has it, as in Jordan et al. 2022, ``layer`` does without.
    """
    bias = norm in ("layer2d", "none")
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


class OptionAShortcut(nn.Module):
    """(N, C, H, W) -> (N, C + new, H / stride, W / stride): subsampled, the new channels zero."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(in_channels: int, out_channels: int, stride: int, norm: str, shortcut: str) -> nn.Module:
    """What carries a block's input past it: as it is where the shape stays."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if shortcut == "pad":
        return OptionAShortcut(out_channels - in_channels, stride)
    kernel = SHORTCUTS[shortcut]
    return nn.Sequential(conv(in_channels, out_channels, kernel, stride, norm), normalisation(norm, out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride, norm)
        self.norm1 = normalisation(norm, out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, 1, norm)
        self.norm2 = normalisation(norm, out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride, norm, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, C, H, W) of at least 4x4 -> logits (N, classes); 6n + 2 layers, three stages of n blocks."""

    def __init__(self, channels: int, classes: int, depth: int, width: float, norm: str, shortcut: str) -> None:
        super().__init__()
        widths = [scaled(c, width) for c in CHANNELS]
        self.conv1 = conv(channels, widths[0], 3, 1, norm)
        self.norm1 = normalisation(norm, widths[0])
        self.blocks = nn.Sequential()
        in_channels = widths[0]
        for stage, out_channels in enumerate(widths):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(BasicBlock(in_channels, out_channels, stride, norm, shortcut))
                in_channels = out_channels
        self.head = nn.Linear(in_channels, classes)
        he_normal_convs(self)
        if norm == "none":
            self._keep_scale_without_norm()

    def _keep_scale_without_norm(self) -> None:
        """Fixup's rules 2 and 3 (Zhang et al. 2019, arXiv:1901.09321) for its convolutions.

        With He initialisation alone and nothing to normalise, the signal doubles its variance in every block.
        """
        for block in self.blocks:
            assert isinstance(block, BasicBlock)
            block.conv1.weight.data.mul_(len(self.blocks) ** -0.5)
            nn.init.zeros_(block.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.blocks(x)
        return self.head(x.mean(dim=(2, 3)))


def build(
    in_shape: tuple[int, ...],
    classes: int,
    *,
    depth: int = 20,
    width: float = 1.0,
    norm: str = "batch",
    shortcut: str = "pad",
) -> ResNet:
    """A :class:`ResNet`.

    Raises:
        UserError: another depth than 6n + 2, an unknown norm or shortcut, vectors, or images under 4x4.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(
            f"resnet has no depth {depth}, it must be 6n + 2: set architecture.depth to 20, 32, 44, 56 or 110"
        )
    if norm not in NORMS:
        raise UserError(f"resnet has no norm {norm!r}: set architecture.norm to {', '.join(NORMS)}")
    if shortcut not in SHORTCUTS:
        raise UserError(f"resnet has no shortcut {shortcut!r}: set architecture.shortcut to {', '.join(SHORTCUTS)}")
    channels, _, _ = require_images(f"resnet{depth}", in_shape, SMALLEST)
    return ResNet(channels, classes, depth, width, str(norm), str(shortcut))
