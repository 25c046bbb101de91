"""Residual networks for CIFAR: He et al. 2016 (arXiv:1512.03385), section 4.2, with option-A shortcuts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import he_normal_convs, require_images, scaled

CHANNELS = (16, 32, 64)
SMALLEST = 4  # two stages halve the image
NORMS = ("batch", "layer", "none")


def normalisation(norm: str, channels: int) -> nn.Module:
    """``layer`` normalises over channels and pixels together, as LayerNorm over (C, H, W) with C weights."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    return nn.Identity()


def conv3x3(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Conv2d:
    """A normalisation's own shift makes a bias before it redundant; without one the bias is needed."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=norm == "none")


class OptionAShortcut(nn.Module):
    """(N, C, H, W) -> (N, C + new, H / stride, W / stride): subsampled, the new channels zero."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride, norm)
        self.norm1 = normalisation(norm, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, 1, norm)
        self.norm2 = normalisation(norm, out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        new_channels = out_channels - in_channels
        self.shortcut = OptionAShortcut(new_channels, stride) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, C, H, W) of at least 4x4 -> logits (N, classes); 6n + 2 layers, three stages of n blocks."""

    def __init__(self, channels: int, classes: int, depth: int, width: float, norm: str) -> None:
        super().__init__()
        widths = [scaled(c, width) for c in CHANNELS]
        self.conv1 = conv3x3(channels, widths[0], 1, norm)
        self.norm1 = normalisation(norm, widths[0])
        self.blocks = nn.Sequential()
        in_channels = widths[0]
        for stage, out_channels in enumerate(widths):
            for index in range((depth - 2) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(BasicBlock(in_channels, out_channels, stride, norm))
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
    in_shape: tuple[int, ...], classes: int, *, depth: int = 20, width: float = 1.0, norm: str = "batch"
) -> ResNet:
    """A :class:`ResNet`.

    Raises:
        UserError: the depth is not 6n + 2, the norm is unknown, the data are vectors or images under 4x4.
    """
    if depth < 8 or (depth - 2) % 6:
        raise UserError(
            f"resnet has no depth {depth}, it must be 6n + 2: set architecture.depth to 20, 32, 44, 56 or 110"
        )
    if norm not in NORMS:
        raise UserError(f"resnet has no norm {norm!r}: set architecture.norm to {', '.join(NORMS)}")
    channels, _, _ = require_images(f"resnet{depth}", in_shape, SMALLEST)
    return ResNet(channels, classes, depth, width, str(norm))
