"""ConvFC: three convolutions and three linear layers, from Garipov et al. 2018 (arXiv:1802.10026)."""

from __future__ import annotations

from torch import Tensor, nn

from modeconn_cli.models.common import he_normal_convs, require_images

CHANNELS = (32, 64, 128)
HIDDEN = 1000
SMALLEST = 15  # 15 -> 7 -> 3 -> 1 through the three poolings


class ConvFC(nn.Module):
    """Images (N, C, H, W) of at least 15x15 -> logits (N, classes)."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for out_channels in CHANNELS:
            self.features.append(nn.Conv2d(channels, out_channels, kernel_size=5, padding=2))
            self.features.append(nn.ReLU())
            self.features.append(nn.MaxPool2d(kernel_size=3, stride=2))
            channels, height, width = out_channels, (height - 1) // 2, (width - 1) // 2
        self.classifier = nn.Sequential(
            nn.Linear(channels * height * width, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, classes),
        )
        he_normal_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def build(in_shape: tuple[int, ...], classes: int) -> ConvFC:
    """A :class:`ConvFC`. Raises UserError for vectors and for images smaller than 15x15."""
    return ConvFC(*require_images("convfc", in_shape, SMALLEST), classes)
