"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) for CIFAR.

Its classifier is that of Garipov et al. 2018 (``hidden``) or the one linear map of Jordan et al. 2022 (``linear``).
"""

from __future__ import annotations

from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.models.common import he_normal_convs, require_images, scaled

CHANNELS = (64, 128, 256, 512, 512)
CONVS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
HIDDEN = 512
SHRINKS = 2 ** len(CHANNELS)
CLASSIFIERS = ("hidden", "linear")


class VGG(nn.Module):
    """Images (N, C, H, W) of at least 32x32 -> logits (N, classes).

    BatchNorm, where asked for, stands between each convolution and its ReLU, as in Ioffe and Szegedy 2015.
    ``width`` multiplies the channels of the convolutions and the units of the classifier's hidden layers.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], classes: int, depth: int, batch_norm: bool, width: float, classifier: str
    ) -> None:
        super().__init__()
        channels, image_height, image_width = in_shape
        self.features = nn.Sequential()
        for stage_channels, convs in zip(CHANNELS, CONVS_PER_STAGE[depth], strict=True):
            for _ in range(convs):
                out_channels = scaled(stage_channels, width)
                self.features.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(out_channels))
                self.features.append(nn.ReLU())
                channels = out_channels
            self.features.append(nn.MaxPool2d(kernel_size=2, stride=2))
        flat = channels * (image_height // SHRINKS) * (image_width // SHRINKS)
        if classifier == "linear":
            self.classifier: nn.Module = nn.Linear(flat, classes)
        else:
            self.classifier = _hidden_layers(flat, scaled(HIDDEN, width), classes)
        he_normal_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _hidden_layers(features: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def build(
    in_shape: tuple[int, ...],
    classes: int,
    *,
    depth: int = 16,
    batch_norm: bool = False,
    width: float = 1.0,
    classifier: str = "hidden",
) -> VGG:
    """A :class:`VGG`.

    Raises:
        UserError: the depth or the classifier is unknown, the data are vectors or images smaller than 32x32.
    """
    if depth not in CONVS_PER_STAGE:
        raise UserError(f"vgg has no depth {depth}: set architecture.depth to 11, 13, 16 or 19")
    if classifier not in CLASSIFIERS:
        raise UserError(
            f"vgg has no classifier {classifier!r}: set architecture.classifier to {', '.join(CLASSIFIERS)}"
        )
    images = require_images(f"vgg{depth}", in_shape, SHRINKS)
    return VGG(images, classes, depth, batch_norm, width, str(classifier))
