"""What every architecture can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modeconn_cli.settings import Name, choice, option


class Norm(Name):
    batch = "batch"
    layer = "layer"
    none = "none"


class Activation(Name):
    relu = "relu"
    gelu = "gelu"
    tanh = "tanh"


@dataclass
class Architecture:
    name: str = option("mlp", "Label used in directory names.", identity=False)
    family: str = option("mlp", "Which builder makes the network.", names="architecture")


@choice("architecture", "mlp")
@dataclass
class MLP(Architecture):
    width: int = option(128, "Units of every hidden layer.", ge=1)
    depth: int = option(3, "Hidden layers; a network of n linear layers has n - 1.", ge=0)
    activation: Activation = option(Activation.relu, "Non-linearity after every hidden layer.")


@choice("architecture", "convfc")
@dataclass
class ConvFC(Architecture):
    pass


@choice("architecture", "vgg")
@dataclass
class VGG(Architecture):
    depth: int = option(16, "11, 13, 16 or 19.")
    batch_norm: bool = option(False, "BatchNorm after every convolution.")
    width: float = option(1.0, "Multiplier of every convolution's channels.", gt=0)


@choice("architecture", "resnet")
@dataclass
class ResNet(Architecture):
    depth: int = option(20, "6n + 2: 20, 32, 44, 56 or 110.", ge=8)
    width: float = option(1.0, "Multiplier of the 16, 32, 64 channels.", gt=0)
    norm: Norm = option(Norm.batch, "Normalisation after every convolution: batch, layer or none.")


@choice("architecture", "preresnet")
@dataclass
class PreResNet(Architecture):
    depth: int = option(110, "110 or 164 (bottlenecks, 9n + 2); below 44 basic blocks, 6n + 2.", ge=8)


@choice("architecture", "wrn")
@dataclass
class WRN(Architecture):
    depth: int = option(28, "6n + 4.", ge=10)
    widen: int = option(10, "Widening factor.", ge=1)
    dropout: float = option(0.0, "Dropout inside every block.", ge=0, lt=1)


@choice("architecture", "vit")
@dataclass
class ViT(Architecture):
    patch: int = option(4, "Side of a patch in pixels; it must divide the image's.", ge=1)
    dim: int = option(192, "Width of the token embeddings; heads must divide it.", ge=1)
    depth: int = option(6, "Transformer blocks.", ge=1)
    heads: int = option(3, "Attention heads.", ge=1)
    mlp_ratio: float = option(2.0, "Hidden width of each block's MLP over dim.", gt=0)
    dropout: float = option(0.0, "Dropout in attention output and MLP.", ge=0, lt=1)


@choice("architecture", "torchvision")
@dataclass
class Torchvision(Architecture):
    model: str = option("resnet18", "Any classifier of torchvision.models, by its name.")
    kwargs: dict[str, Any] = option({}, "Further arguments of that model's builder.")


@choice("architecture", "custom")
@dataclass
class Custom(Architecture):
    target: str = option("", "my_package.my_module:build or path/to/file.py:Net, called to make the module.")
    kwargs: dict[str, Any] = option({}, "Arguments of that call; in_shape and classes are passed where it takes them.")
