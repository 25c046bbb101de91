"""What several architectures share: checks of the data's shape, and He initialisation."""

from __future__ import annotations

from torch import nn

from modeconn_cli.errors import UserError


def require_images(model: str, in_shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """``in_shape`` as (channels, height, width).

    Raises:
        UserError: the examples are not images, or a side is shorter than ``smallest`` pixels.
    """
    if len(in_shape) != 3:
        raise UserError(
            f"{model} needs images (channels, height, width), this data set's examples have shape "
            f"{tuple(in_shape)}: use an architecture for vectors, such as architecture=mlp"
        )
    channels, height, width = in_shape
    if min(height, width) < smallest:
        raise UserError(
            f"{model} needs images of at least {smallest}x{smallest}, this data set's are {height}x{width}: "
            f"add dataset.pad_to={max(smallest, height, width)}"
        )
    return channels, height, width


def scaled(channels: int, width: float) -> int:
    """``channels`` times a width multiplier, at least one."""
    return max(1, round(channels * width))


def he_normal_convs(model: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / (kernel area * output channels)) and zero its biases.

    He et al. 2015 (arXiv:1502.01852), eq. 14: the variant that preserves the backward signal.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
