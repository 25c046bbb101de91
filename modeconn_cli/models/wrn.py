"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) as Garipov et al. 2018 use them.

As in their code every convolution has a bias, a block's second convolution carries its stride, and weights
start from PyTorch's defaults. Their last BatchNorm has momentum 0.9; here it is the usual 0.1, since the
running statistics, all that momentum changes, are re-estimated at every evaluated point.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import require_images

CHANNELS = (16, 32, 64)
SMALLEST = 4  # two stages halve the image


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, with dropout between; beside a shortcut of the raw input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(F.relu(self.norm1(x))))
        out = self.conv2(F.relu(self.norm2(out)))
        return out + self.shortcut(x)


class WRN(nn.Module):
    """Images (N, C, H, W) of at least 4x4 -> logits (N, classes); 6n + 4 layers, three stages of n blocks."""

    def __init__(self, channels: int, classes: int, depth: int, widen: int, dropout: float) -> None:
        super().__init__()
        in_channels = CHANNELS[0]
        self.conv1 = nn.Conv2d(channels, in_channels, 3, padding=1)
        self.blocks = nn.Sequential()
        for stage, stage_channels in enumerate(CHANNELS):
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(WideBlock(in_channels, stage_channels * widen, stride, dropout))
                in_channels = stage_channels * widen
        self.norm = nn.BatchNorm2d(in_channels)
        self.head = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv1(x))
        x = F.relu(self.norm(x))
        return self.head(x.mean(dim=(2, 3)))


def build(in_shape: tuple[int, ...], classes: int, *, depth: int = 28, widen: int = 10, dropout: float = 0.0) -> WRN:
    """A :class:`WRN`. Raises UserError for another depth, for vectors and for images under 4x4."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(f"wrn has no depth {depth}, it must be 6n + 4: set architecture.depth to 10, 16, 22, 28 or 40")
    channels, _, _ = require_images(f"wrn{depth}-{widen}", in_shape, SMALLEST)
    return WRN(channels, classes, depth, widen, dropout)
