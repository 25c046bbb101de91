"""What every architecture can be told, and which builder makes it; that is imported when a network is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modeconn_cli.settings import Name, choice, option

if TYPE_CHECKING:
    from torch import nn


class Norm(Name):
    """What stands before every non-linearity of a perceptron: BatchNorm1d, LayerNorm over the units, or nothing."""

    batch = "batch"
    layer = "layer"
    none = "none"


class ImageNorm(Name):
    """What stands after every convolution of a residual network: (N, C, H, W) -> (N, C, H, W); see
    models/resnet.py.
    """

    batch = "batch"
    layer = "layer"
    layer2d = "layer2d"
    none = "none"


class Shortcut(Name):
    """Where a block of He et al. 2016 (arXiv:1512.03385) changes the shape: their option A (pad) or B (conv1x1), or
    the 3x3 convolution of Ainsworth et al. 2023 (arXiv:2209.04836) and Jordan et al. 2022 (arXiv:2211.08403).
    """

    pad = "pad"
    conv1x1 = "conv1x1"
    conv3x3 = "conv3x3"


class Classifier(Name):
    """After VGG's convolutions: as Garipov et al. 2018 (arXiv:1802.10026, hidden) or Jordan et al. 2022 (linear)."""

    hidden = "hidden"
    linear = "linear"


class Activation(Name):
    """The non-linearity of a perceptron's hidden layers."""

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
    """A perceptron on flattened examples: (N, *in_shape) -> (N, classes), with ``depth`` hidden layers of ``width``
    units.

    The default is sized for the embedded digits. Depths count hidden layers, so that "five layers" of a paper that
    counts linear maps is ``depth=4``.
    """

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
    """Three convolutions and three linear layers (Garipov et al. 2018, arXiv:1802.10026): images (N, C, H, W) of at
    least 15x15 -> (N, classes).
    """

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import convfc

        return convfc.build


@choice("architecture", "vgg")
@dataclass
class VGG(OfThisPackage):
    """Simonyan and Zisserman 2015 (arXiv:1409.1556) for small images: (N, C, H, W) of at least 32x32 -> (N,
    classes).

    ``depth`` is 11, 13, 16 or 19, the layers with weights in the original with its three linear ones. ``width``
    multiplies 64 to 512 channels and the hidden units; 1 is the published network.
    """

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
    """He et al. 2016 (arXiv:1512.03385), section 4.2: images (N, C, H, W) of at least 4x4 -> (N, classes).

    ``depth`` is 6n + 2 layers of weights, n blocks a stage. ``width`` multiplies 16, 32 and 64 channels; 1 is the
    published network. With layer2d and conv3x3 it is the ResNet20 of Ainsworth et al. 2023 (arXiv:2209.04836),
    theirs up to 32 wide.
    """

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
    """He et al. 2016 (arXiv:1603.05027) in the sizes of Garipov et al. 2018: images (N, C, H, W) of at least 4x4 ->
    (N, classes). 110 and 164 are theirs.
    """

    depth: int = option(110, "110 or 164 (bottlenecks, 9n + 2); below 44 basic blocks, 6n + 2.", ge=8, le=2000)

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import preresnet

        return preresnet.build


@choice("architecture", "wrn")
@dataclass
class WRN(OfThisPackage):
    """Zagoruyko and Komodakis 2016 (arXiv:1605.07146): images (N, C, H, W) of at least 4x4 -> (N, classes).

    ``depth`` is 6n + 4 layers, ``widen`` multiplies 16, 32 and 64 channels: 28 and 10 are the WRN-28-10 of Garipov
    et al. 2018. ``dropout`` is a probability.
    """

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
    """Dosovitskiy et al. 2021 (arXiv:2010.11929): images (N, C, H, W) whose sides ``patch`` pixels divide -> (N,
    classes).

    A small one of no paper's size: (H / patch) * (W / patch) + 1 tokens of ``dim`` numbers, hidden layers of
    ``mlp_ratio`` * dim units. ``dropout`` is a probability.
    """

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
    """Any classifier of torchvision, untrained: images (N, 3, H, W) -> (N, classes); see models/external.py."""

    model: str = option("resnet18", "Any classifier of torchvision.models, by its name.")
    kwargs: dict[str, Any] = option({}, "Further arguments of that model's builder.")

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import external

        return external.build_torchvision


@choice("architecture", "custom")
@dataclass
class Custom(Architecture):
    """Any module: called as the code behind ``target`` says, it takes (N, *in_shape) and answers (N, classes) or
    what its task reads.
    """

    target: str = option("", "my_package.my_module:build or path/to/file.py:Net, called to make the module.")
    kwargs: dict[str, Any] = option({}, "Arguments of that call; in_shape and classes are passed where it takes them.")

    @staticmethod
    def builder() -> Callable[..., nn.Module]:
        from modeconn_cli.models import external

        return external.build_custom
