"""Pre-activation residual networks (He et al. 2016, arXiv:1603.05027) in the sizes of Garipov et al. 2018.

As in their code, depths from 44 on (so both PreResNet110 and PreResNet164) are made of bottlenecks, 9n + 2
layers, and smaller ones of basic blocks, 6n + 2 layers. Shortcuts that change shape are 1x1 convolutions of
the block's raw input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import he_normal_convs, require_images

CHANNELS = (16, 32, 64)
FIRST_BOTTLENECK_DEPTH = 44
SMALLEST = 4  # two stages halve the image


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = make_shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return out + self.shortcut(x)


class Bottleneck(nn.Module):
    """BatchNorm, ReLU, convolution, thrice: 1x1 down, 3x3, 1x1 up to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        out = self.conv3(F.relu(self.norm3(out)))
        return out + self.shortcut(x)


class PreResNet(nn.Module):
    """Images (N, C, H, W) of at least 4x4 -> logits (N, classes)."""

    def __init__(
        self, channels: int, classes: int, block: type[BasicBlock | Bottleneck], blocks_per_stage: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, CHANNELS[0], 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        in_channels = CHANNELS[0]
        for stage, stage_channels in enumerate(CHANNELS):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(block(in_channels, stage_channels, stride))
                in_channels = stage_channels * block.expansion
        self.norm = nn.BatchNorm2d(in_channels)
        self.head = nn.Linear(in_channels, classes)
        he_normal_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv1(x))
        x = F.relu(self.norm(x))
        return self.head(x.mean(dim=(2, 3)))


def build(in_shape: tuple[int, ...], classes: int, *, depth: int = 110) -> PreResNet:
    """A :class:`PreResNet`. Raises UserError for another depth, for vectors and for images under 4x4."""
    block = Bottleneck if depth >= FIRST_BOTTLENECK_DEPTH else BasicBlock
    layers_per_n = 9 if block is Bottleneck else 6
    if depth < 8 or (depth - 2) % layers_per_n:
        raise UserError(
            f"preresnet has no depth {depth}, it must be 6n + 2 below {FIRST_BOTTLENECK_DEPTH} and 9n + 2 "
            "from there on: set architecture.depth to 20, 32, 56, 110 or 164"
        )
    channels, _, _ = require_images(f"preresnet{depth}", in_shape, SMALLEST)
    return PreResNet(channels, classes, block, (depth - 2) // layers_per_n)
