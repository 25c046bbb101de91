"""What every architecture can be told, and which builder makes it; that is imported when a network is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modeconn_cli.settings import Name, choice, option

if TYPE_CHECKING:
    from torch import nn


class Norm(Name):
    batch = "batch"
    layer = "layer"
    none = "none"


class ImageNorm(Name):
    batch = "batch"
    layer = "layer"
    layer2d = "layer2d"
    none = "none"


class Shortcut(Name):
    pad = "pad"
    conv1x1 = "conv1x1"
    conv3x3 = "conv3x3"


class Classifier(Name):
    hidden = "hidden"
    linear = "linear"


class Activation(Name):
    relu = "relu"
    gelu = "gelu"
    tanh = "tanh"


@dataclass
class Architecture:
    """A network's options. A class registered by ``@choice("architecture", name)`` derives from it, with a builder."""

    name: str = option("mlp", "Label used in directory names.", identity=False)
    family: str = option("mlp", "Which builder makes the network.", names="architecture")
    # Tried on two examples before any training, where nothing else says what it takes and answers.
    tried: ClassVar[bool] = True

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        """What makes the network: ``builder(in_shape, classes, *, ...)``, its own options by keyword.

        in_shape: (channels, height, width) or (features,); classes: numbers that it answers one example with.
        """
        raise NotImplementedError


@dataclass
class OfThisPackage(Architecture):
    """Computes with real numbers and says itself what it cannot take."""

    tried: ClassVar[bool] = False


@choice("architecture", "mlp")
@dataclass
class MLP(OfThisPackage):
    width: int = option(128, "Units of every hidden layer.", ge=1)
    depth: int = option(3, "Hidden layers; a network of n linear layers has n - 1.", ge=0, le=1000)
    activation: Activation = option(Activation.relu, "Non-linearity after every hidden layer.")
    norm: Norm = option(Norm.none, "Normalisation before every non-linearity: batch, layer or none.")

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import mlp

        return mlp.build


@choice("architecture", "convfc")
@dataclass
class ConvFC(OfThisPackage):
    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import convfc

        return convfc.build


@choice("architecture", "vgg")
@dataclass
class VGG(OfThisPackage):
    depth: int = option(16, "11, 13, 16 or 19.")
    batch_norm: bool = option(False, "BatchNorm after every convolution.")
    width: float = option(1.0, "Multiplier of every convolution's channels.", gt=0)
    classifier: Classifier = option(
        Classifier.hidden, "After the convolutions: two hidden layers of 512 with dropout (hidden), or one linear map."
    )

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import vgg

        return vgg.build


@choice("architecture", "resnet")
@dataclass
class ResNet(OfThisPackage):
    depth: int = option(20, "6n + 2: 20, 32, 44, 56 or 110.", ge=8, le=2000)
    width: float = option(1.0, "Multiplier of the 16, 32, 64 channels.", gt=0)
    norm: ImageNorm = option(
        ImageNorm.batch,
        "Normalisation after every convolution: batch; layer, over channels and pixels together (GroupNorm of one "
        "group); layer2d, over the channels of every pixel, with biases before it; or none.",
    )
    shortcut: Shortcut = option(
        Shortcut.pad,
        "Where a block changes the shape: pad (subsampled, new channels zero), or conv1x1 or conv3x3 with a norm.",
    )

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import resnet

        return resnet.build


@choice("architecture", "preresnet")
@dataclass
class PreResNet(OfThisPackage):
    depth: int = option(110, "110 or 164 (bottlenecks, 9n + 2); below 44 basic blocks, 6n + 2.", ge=8, le=2000)

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import preresnet

        return preresnet.build


@choice("architecture", "wrn")
@dataclass
class WRN(OfThisPackage):
    depth: int = option(28, "6n + 4.", ge=10, le=2000)
    widen: int = option(10, "Widening factor.", ge=1)
    dropout: float = option(0.0, "Dropout inside every block.", ge=0, lt=1)

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import wrn

        return wrn.build


@choice("architecture", "vit")
@dataclass
class ViT(OfThisPackage):
    patch: int = option(4, "Side of a patch in pixels; it must divide the image's.", ge=1)
    dim: int = option(192, "Width of the token embeddings; heads must divide it.", ge=1)
    depth: int = option(6, "Transformer blocks.", ge=1, le=1000)
    heads: int = option(3, "Attention heads.", ge=1)
    mlp_ratio: float = option(2.0, "Hidden width of each block's MLP over dim.", gt=0)
    dropout: float = option(0.0, "Dropout in attention output and MLP.", ge=0, lt=1)

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import vit

        return vit.build


@choice("architecture", "torchvision")
@dataclass
class Torchvision(Architecture):
    model: str = option("resnet18", "Any classifier of torchvision.models, by its name.")
    kwargs: dict[str, Any] = option({}, "Further arguments of that model's builder.")

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import external

        return external.build_torchvision


@choice("architecture", "custom")
@dataclass
class Custom(Architecture):
    target: str = option("", "my_package.my_module:build or path/to/file.py:Net, called to make the module.")
    kwargs: dict[str, Any] = option({}, "Arguments of that call; in_shape and classes are passed where it takes them.")

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import external

        return external.build_custom
