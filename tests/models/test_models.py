"""Architectures: published sizes, shapes, gradients, and what each refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeconn_cli import settings
from modeconn_cli.errors import UserError
from modeconn_cli.front.compose import compose
from modeconn_cli.models import build as models
from modeconn_cli.models import preresnet, resnet, vit
from modeconn_cli.models.options import Architecture
from modeconn_cli.torchvision_compat import import_torchvision

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)
CLASSES = 10


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def count(family, in_shape=CIFAR, classes=CLASSES, **options):
    with torch.device("meta"):
        model = models.build(family, in_shape, classes, **options)
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------- parameter counts


def conv(fan_in, fan_out, kernel, bias):
    return fan_in * fan_out * kernel**2 + (fan_out if bias else 0)


def linear(fan_in, fan_out):
    return fan_in * fan_out + fan_out


def vgg_formula(columns, classes, batch_norm):
    """Simonyan and Zisserman, table 1, columns A, B, D and E; then 512-512-512-classes."""
    convs = sum(conv(a, b, 3, bias=True) for a, b in pairwise([3, *columns]))
    norms = 2 * sum(columns) if batch_norm else 0
    return convs + norms + 2 * linear(512, 512) + linear(512, classes)


VGG_COLUMNS = {
    11: [64, 128, 256, 256, 512, 512, 512, 512],
    13: [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    16: [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    19: [64, 64, 128, 128, *[256] * 4, *[512] * 8],
}


@pytest.mark.parametrize("depth", VGG_COLUMNS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
def test_vgg_size(depth, batch_norm, classes):
    expected = vgg_formula(VGG_COLUMNS[depth], classes, batch_norm)
    assert count("vgg", classes=classes, depth=depth, batch_norm=batch_norm) == expected


def test_vgg16_size_published():
    # 14,714,688 convolutional parameters of VGG-16 (Keras's VGG16 without top) and 530,442 of three small
    # linear layers: Garipov's VGG16.
    assert count("vgg") == 14_714_688 + 530_442 == 15_245_130


def resnet_formula(depth, classes):
    """He et al. 2016a, section 4.2: 1 + 6n convolutions, no bias, BatchNorm after each; option A is free."""
    n = (depth - 2) // 6
    outputs = [16] * (2 * n + 1) + [32] * 2 * n + [64] * 2 * n
    convs = sum(conv(a, b, 3, bias=False) for a, b in pairwise([3, *outputs]))
    return convs + 2 * sum(outputs) + linear(64, classes)


# He et al. 2016a, table 6: 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
RESNET_MILLIONS = {
    20: (269_722, 0.27),
    32: (464_154, 0.46),
    44: (658_586, 0.66),
    56: (853_018, 0.85),
    110: (1_727_962, 1.7),
}


@pytest.mark.parametrize("depth", RESNET_MILLIONS)
def test_resnet_size(depth):
    exact, millions = RESNET_MILLIONS[depth]
    assert count("resnet", depth=depth) == resnet_formula(depth, 10) == exact
    assert round(exact / 1e6, 1 if depth == 110 else 2) == millions
    assert count("resnet", depth=depth, norm="layer") == exact
    channels = 16 + (depth - 2) // 3 * (16 + 32 + 64)  # each has one bias in the place of a scale and a shift
    assert count("resnet", depth=depth, norm="none") == exact - channels


@pytest.mark.parametrize("width", [1, 4])
def test_resnet_with_convolutions_as_shortcuts_size(width):
    """293 thousand parameters at width 1, where option A has 270: two more convolutions, each with its norm."""
    a, b, c = 16 * width, 32 * width, 64 * width
    for shortcut, kernel in (("conv1x1", 1), ("conv3x3", 3)):
        more = conv(a, b, kernel, False) + conv(b, c, kernel, False) + 2 * (b + c)
        assert count("resnet", width=width, shortcut=shortcut) == count("resnet", width=width) + more
    exact = {1: (292_954, 293_738), 4: (4_655_434, 4_658_570)}[width]  # counted in the authors' code
    assert count("resnet", width=width, shortcut="conv3x3") == exact[0]
    assert count("resnet", width=width, shortcut="conv3x3", norm="layer2d") == exact[1]


def reference_resnet(state, x):
    """Jordan et al.'s ResNet with norms in evaluation mode, from the equations, in the tensors' own order."""
    tensors = iter(state.values())

    def conv_norm(x, stride, batch):
        weight = next(tensors)
        bias = None if batch else next(tensors)
        x = F.conv2d(x, weight, bias, stride, padding=1)
        scale, shift = next(tensors), next(tensors)
        if batch:
            mean, variance, _ = next(tensors), next(tensors), next(tensors)
            x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
        else:
            x = x - x.mean(1, keepdim=True)
            x = x / x.std(1, keepdim=True, correction=0)
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    batch = "norm1.running_mean" in state
    x = conv_norm(x, 1, batch).relu()
    for stage in range(3):
        for block in range(3):
            stride = 2 if stage and not block else 1
            out = conv_norm(conv_norm(x, stride, batch).relu(), 1, batch)
            x = (out + (conv_norm(x, stride, batch) if stride == 2 else x)).relu()
    weight, bias = next(tensors), next(tensors)
    return x.mean((2, 3)) @ weight.T + bias


@pytest.mark.parametrize("norm", ["batch", "layer2d"])
def test_resnet20_conv_is_the_published_network(norm):
    net = models.build("resnet", CIFAR, 10, shortcut="conv3x3", norm=norm, width=0.5).double().eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "var" in name or tensor.dim() == 1 else tensor.uniform_(-0.3, 0.3)
        x = torch.randn(2, *CIFAR, dtype=torch.float64)
        torch.testing.assert_close(net(x), reference_resnet(net.state_dict(), x), rtol=1e-4, atol=1e-6)


def test_presets_of_the_renormalised_networks():
    (job,) = compose(["architecture=resnet20_conv"])
    assert (job.config.architecture.shortcut, job.config.architecture.depth) == ("conv3x3", 20)
    (job,) = compose(["architecture=vgg11_linear"])
    assert (job.config.architecture.classifier, job.config.architecture.depth) == ("linear", 11)
    convs = sum(conv(a, b, 3, bias=True) for a, b in pairwise([3, *VGG_COLUMNS[11]]))
    assert count("vgg", depth=11, classifier="linear") == convs + linear(512, 10)


INITIAL_SUMS = {  # of absolute values, PyTorch 2.13 on a CPU
    "mlp": 262.34801207839155,
    "vgg": 7675.127782479672,
    "resnet": 4281.701890766246,
    "resnet-layer": 4281.701890766246,
}


def test_initial_weights_are_what_they_were():
    """Sums over every weight of seed 0, so that an option added later moves no stored network."""
    sums = {}
    for name, options in (
        ("mlp", {"width": 8}),
        ("vgg", {"depth": 11, "width": 0.125}),
        ("resnet", {"depth": 8}),
        ("resnet-layer", {"depth": 8, "norm": "layer"}),
    ):
        torch.manual_seed(0)
        net = models.build(name.partition("-")[0], CIFAR, 10, **options)
        sums[name] = sum(float(p.detach().double().abs().sum()) for p in net.parameters())
    assert sums == pytest.approx(INITIAL_SUMS, rel=1e-9)


def preresnet_formula(depth, classes):
    """He et al. 2016b, bottlenecks (1x1, 3x3, 1x1) with a BatchNorm of each convolution's input."""
    n = (depth - 2) // 9
    total, before = conv(3, 16, 3, bias=False), 16
    for channels in (16, 32, 64):
        for index in range(n):
            total += conv(before, channels, 1, bias=False) + conv(channels, channels, 3, bias=False)
            total += conv(channels, 4 * channels, 1, bias=False) + 2 * (before + channels + channels)
            total += conv(before, 4 * channels, 1, bias=False) if index == 0 else 0
            before = 4 * channels
    return total + 2 * before + linear(before, classes)


@pytest.mark.parametrize(("depth", "exact"), [(110, 1_146_842), (164, 1_703_258)])
def test_preresnet_size(depth, exact):
    # He et al. 2016b, table 4, gives 1.7M for the 164-layer bottleneck network.
    assert count("preresnet", depth=depth) == preresnet_formula(depth, 10) == exact


def test_preresnet_of_basic_blocks():
    blocks = models.build("preresnet", CIFAR, 10, depth=14).blocks
    assert [type(block) for block in blocks] == [preresnet.BasicBlock] * 6


def test_wrn_28_10_size():
    # Zagoruyko and Komodakis, table 4: 36.5M, to the unit 36,479,194 without biases; Garipov's has them.
    biases = 16 + 9 * (160 + 320 + 640)
    assert count("wrn") == 36_479_194 + biases == 36_489_290


@pytest.mark.parametrize(("in_shape", "patch"), [(CIFAR, 4), (MNIST, 7)])
def test_vit_size(in_shape, patch):
    dim, depth, hidden = 192, 6, 384
    channels, side, _ = in_shape
    block = 4 * linear(dim, dim) + linear(dim, hidden) + linear(hidden, dim) + 2 * 2 * dim
    embedding = conv(channels, dim, patch, bias=True) + dim + (1 + (side // patch) ** 2) * dim
    expected = embedding + depth * block + 2 * dim + linear(dim, 10)
    assert count("vit", in_shape, patch=patch) == expected


def test_convfc_size():
    convs = conv(3, 32, 5, True) + conv(32, 64, 5, True) + conv(64, 128, 5, True)
    # 32 -> 15 -> 7 -> 3: the 1152 inputs of Garipov's first linear layer.
    assert count("convfc") == convs + linear(1152, 1000) + linear(1000, 1000) + linear(1000, 10)


def test_mlp_size():
    assert count("mlp", MNIST, width=300, depth=2) == linear(784, 300) + linear(300, 300) + linear(300, 10)
    assert count("mlp", (2,), depth=0) == linear(2, 10)
    hidden = 784 * 300 + 300 * 300
    assert count("mlp", MNIST, width=300, depth=2, norm="batch") == hidden + 2 * 2 * 300 + linear(300, 10)
    assert count("mlp", MNIST, width=300, depth=2, norm="layer") == hidden + 2 * 3 * 300 + linear(300, 10)


def test_width_multiplies_channels():
    model = models.build("vgg", CIFAR, 10, depth=11, width=0.25)
    assert model.features[0].out_channels == 16
    assert model.classifier[1].weight.shape == (128, 128)
    assert models.build("resnet", CIFAR, 10, depth=8, width=2.5).head.in_features == 160


# ----------------------------------------------------------------------------------------------- behaviour

SMALL = {
    "mlp": {"width": 16, "activation": "gelu"},
    "mlp-batch": {"width": 16, "norm": "batch"},
    "mlp-layer": {"width": 16, "norm": "layer"},
    "convfc": {},
    "vgg": {"depth": 11, "width": 0.125, "batch_norm": True},
    "vgg-plain": {"depth": 19, "width": 0.125},
    "resnet": {"depth": 8},
    "resnet-layer": {"depth": 8, "norm": "layer", "width": 0.5},
    "resnet-none": {"depth": 14, "norm": "none"},
    "resnet-conv3x3": {"depth": 8, "norm": "layer2d", "shortcut": "conv3x3", "width": 0.5},
    "resnet-conv1x1": {"depth": 8, "norm": "none", "shortcut": "conv1x1", "width": 0.5},
    "vgg-linear": {"depth": 11, "width": 0.125, "classifier": "linear"},
    "preresnet": {"depth": 47},
    "preresnet-basic": {"depth": 14},
    "wrn": {"depth": 10, "widen": 2, "dropout": 0.3},
    "vit": {"patch": 4, "dim": 24, "depth": 2, "heads": 3, "dropout": 0.1},
}
CASES = [
    (name, in_shape)
    for name in SMALL
    for in_shape in (CIFAR, MNIST)
    if not (name.startswith("vgg") and in_shape == MNIST)
]


def small(name, in_shape):
    return models.build(name.partition("-")[0], in_shape, CLASSES, **SMALL[name])


@pytest.mark.parametrize(("name", "in_shape"), CASES)
def test_forward_and_backward(name, in_shape):
    model = small(name, in_shape)
    x = torch.randn(4, *in_shape)
    loss = F.cross_entropy(model(x), torch.arange(4))
    loss.backward()
    assert torch.isfinite(loss)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key

    model.eval()
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (4, CLASSES)
        assert torch.equal(logits, model(x))


@pytest.mark.parametrize("name", SMALL)
def test_graph_can_be_traced(name):
    """The permutation groups are read off the traced graph."""
    model = small(name, CIFAR).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, *CIFAR)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_global_generator_decides_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in small(name, CIFAR).parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_vectors_and_rectangles():
    assert models.build("mlp", (2,), 3)(torch.zeros(5, 2)).shape == (5, 3)
    for family, options in [
        ("vgg", {"depth": 11, "width": 0.1}),
        ("convfc", {}),
        ("vit", {"patch": 8}),
        ("resnet", {"depth": 8}),
    ]:
        model = models.build(family, (2, 32, 64), 3, **options).eval()
        assert model(torch.zeros(1, 2, 32, 64)).shape == (1, 3)


def test_digits_images_suit_the_residual_networks():
    for family, options in [("resnet", {"depth": 8}), ("preresnet", {"depth": 8}), ("wrn", SMALL["wrn"])]:
        assert models.build(family, (1, 8, 8), 10, **options)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    shortcut = resnet.OptionAShortcut(new_channels=2, stride=2)
    assert list(shortcut.parameters()) == []
    assert torch.equal(shortcut(x)[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(shortcut(x)[:, 2:], torch.zeros(1, 2, 2, 2))


def test_convolutions_start_from_he_normal():
    for family in ("convfc", "vgg"):
        convs = [m for m in models.build(family, CIFAR, 10).modules() if isinstance(m, nn.Conv2d)]
        for layer in convs[1:]:
            expected = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
            assert not layer.bias.any()


def test_resnet_without_norm_keeps_its_scale_at_any_depth():
    model = models.build("resnet", CIFAR, 10, depth=110, norm="none")
    assert model(torch.randn(2, *CIFAR)).abs().max() < 100


def test_attention_is_multi_head_attention():
    attention = vit.Attention(dim=12, heads=3)
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        layers = (attention.query, attention.key, attention.value)
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        reference.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x), reference(x, x, x)[0])


# ------------------------------------------------------------------------------------------------- refusals


REFUSALS = [
    ("vgg", MNIST, {}, "vgg16 needs images of at least 32x32, this data set's are 28x28: add dataset.pad_to=32"),
    ("vgg", (3, 16, 64), {}, "are 16x64: add dataset.pad_to=64"),
    ("convfc", (1, 8, 8), {}, "convfc needs images of at least 15x15, this data set's are 8x8: add dataset.pad_to=15"),
    ("resnet", (1, 2, 2), {}, "resnet20 needs images of at least 4x4"),
    ("preresnet", (1, 2, 2), {}, "preresnet110 needs images of at least 4x4"),
    ("wrn", (1, 2, 2), {}, "wrn28-10 needs images of at least 4x4"),
    ("vgg", CIFAR, {"depth": 15}, "vgg has no depth 15: set architecture.depth to 11, 13, 16 or 19"),
    (
        "resnet",
        CIFAR,
        {"depth": 18},
        "resnet has no depth 18, it must be 6n + 2: set architecture.depth to 20, 32, 44, 56 or 110",
    ),
    ("resnet", CIFAR, {"depth": 2}, "resnet has no depth 2,"),
    (
        "resnet",
        CIFAR,
        {"norm": "group"},
        "resnet has no norm 'group': set architecture.norm to batch, layer, layer2d, none",
    ),
    (
        "resnet",
        CIFAR,
        {"shortcut": "B"},
        "resnet has no shortcut 'B': set architecture.shortcut to pad, conv1x1, conv3x3",
    ),
    ("vgg", CIFAR, {"classifier": "mlp"}, "vgg has no classifier 'mlp': set architecture.classifier to hidden, linear"),
    (
        "preresnet",
        CIFAR,
        {"depth": 50},
        "preresnet has no depth 50, it must be 6n + 2 below 44 and 9n + 2 from there on: set",
    ),
    ("preresnet", CIFAR, {"depth": 21}, "preresnet has no depth 21,"),
    (
        "wrn",
        CIFAR,
        {"depth": 20},
        "wrn has no depth 20, it must be 6n + 4: set architecture.depth to 10, 16, 22, 28 or 40",
    ),
    (
        "vit",
        CIFAR,
        {"patch": 5},
        "vit cannot cut this data set's 32x32 images into 5x5 patches: set architecture.patch to a divisor of "
        "both sides or dataset.pad_to=35",
    ),
    (
        "vit",
        CIFAR,
        {"dim": 100},
        "vit cannot share dim 100 among 3 heads: set architecture.dim to a multiple of heads, such as 102",
    ),
    ("mlp", CIFAR, {"activation": "swish"}, "mlp has no activation 'swish': use relu, gelu, tanh"),
    ("mlp", CIFAR, {"norm": "group"}, "mlp has no norm 'group': set architecture.norm to batch, layer, none"),
    ("mlp", CIFAR, {"widht": 3}, "mlp has no option 'widht' (did you mean width?): use width, depth, activation, norm"),
    ("convfc", CIFAR, {"depth": 3}, "convfc has no option 'depth': it takes none"),
    ("resnets", CIFAR, {}, "there is no architecture family 'resnets' (did you mean resnet?): use mlp, convfc"),
    (
        "torchvision",
        MNIST,
        {},
        "torchvision's resnet18 takes images of 3 channels, this data set's have 1: use another data set",
    ),
    (
        "torchvision",
        CIFAR,
        {"model": "resnet8"},
        "torchvision has no classifier 'resnet8': set architecture.model to resnet18",
    ),
    ("torchvision", CIFAR, {"model": "deeplabv3_resnet50"}, "has no classifier 'deeplabv3_resnet50'"),
    ("torchvision", CIFAR, {"kwargs": {"colour": 1}}, "argument 'colour'): correct them"),
    ("torchvision", CIFAR, {"kwargs": {"weights": "DEFAULT"}}, "remove weights from architecture.kwargs"),
    ("torchvision", CIFAR, {"model": "googlenet", "kwargs": {"aux_logits": True}}, "remove aux_logits"),
    (
        "torchvision",
        (3, 4, 4),
        {"model": "squeezenet1_1"},
        "torchvision's squeezenet1_1 cannot take this data set's examples of shape (3, 4, 4) (RuntimeError: ",
    ),
    (
        "custom",
        CIFAR,
        {"target": "nowhere"},
        "custom architecture has no usable target 'nowhere': set architecture.target",
    ),
    (
        "custom",
        CIFAR,
        {"target": "no_such_module_anywhere:Net"},
        "no_such_module_anywhere cannot be imported (ModuleNotFoundError: No module named",
    ),
    ("custom", CIFAR, {"target": "nowhere/net.py:Net"}, "net.py does not exist: correct architecture.target"),
    (
        "custom",
        CIFAR,
        {"target": "torch.nn:Identitty"},
        "torch.nn has no Identitty (did you mean Identity?): correct architecture.target",
    ),
    ("custom", CIFAR, {"target": "torch:pi"}, "torch:pi is a float object, not something that makes a network"),
    (
        "custom",
        CIFAR,
        {"target": "collections:OrderedDict"},
        "collections:OrderedDict returned OrderedDict, not a torch.nn.Module: point architecture.target",
    ),
    (
        "custom",
        CIFAR,
        {"target": "torch.nn:Linear", "kwargs": {"in_features": 3}},
        "missing a required argument: 'out_features'): correct architecture.kwargs",
    ),
    (
        "custom",
        CIFAR,
        {"target": "torch.nn:Linear", "kwargs": {"in_features": 3, "out_features": -1}},
        "torch.nn:Linear failed (RuntimeError: ",
    ),
    (
        "custom",
        CIFAR,
        {"target": "torch.nn:Identity"},
        "torch.nn:Identity answers two examples of shape (3, 32, 32) with (2, 3, 32, 32), not logits of shape "
        "(2, 10): change it",
    ),
    (
        "custom",
        CIFAR,
        {"target": "torch.nn:Linear", "kwargs": {"in_features": 3, "out_features": 10}},
        "torch.nn:Linear cannot take this data set's examples of shape (3, 32, 32) (RuntimeError: ",
    ),
]
REFUSALS += [
    (
        family,
        (2,),
        {},
        "needs images (channels, height, width), this data set's examples have shape (2,): use an architecture "
        "for vectors, such as architecture=mlp",
    )
    for family in ("convfc", "vgg", "resnet", "preresnet", "wrn", "vit", "torchvision")
]


@pytest.mark.parametrize(("family", "in_shape", "options", "message"), REFUSALS)
def test_refusals_are_one_clear_line(family, in_shape, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        models.build(family, in_shape, CLASSES, **options)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("config", settings.choices("architecture").values())
def test_builders_agree_with_the_schema(config):
    fields = {
        field.name: getattr(config(), field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("name", "family")
    }
    parameters = inspect.signature(config.builder()).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    defaults = {name: {} if name == "kwargs" else default for name, default in defaults.items()}
    assert defaults == fields


def test_an_architecture_from_outside_is_built_and_tried(monkeypatch):
    monkeypatch.setitem(settings.CHOICES, "architecture", {**settings.choices("architecture")})

    def linear(in_shape, classes, *, extra=0):
        return nn.Linear(in_shape[0], classes + extra)

    @settings.choice("architecture", "linear")
    @dataclasses.dataclass
    class Linear(Architecture):
        extra: int = settings.option(0, "Outputs too many.")

        @staticmethod
        def builder():
            return linear

    assert models.build("linear", (3,), 5)(torch.zeros(2, 3)).shape == (2, 5)
    with pytest.raises(UserError, match=r"linear answers two examples of shape \(3,\) with \(2, 6\)"):
        models.build("linear", (3,), 5, extra=1)


# ---------------------------------------------------------------------------------------------------- custom

NET = """
    from dataclasses import dataclass
    import torch

    @dataclass
    class Sizes:
        hidden: int = 4

    class Net(torch.nn.Module):
        def __init__(self, in_channels, num_classes, hidden=Sizes.hidden):
            super().__init__()
            self.conv = torch.nn.Conv2d(in_channels, hidden, 3)
            self.head = torch.nn.Linear(hidden, num_classes)
            self.conv.eval()  # whether a layer trains is its author's choice

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    def flat(input_shape, classes, *, bias=True):
        size = torch.Size(input_shape).numel()
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, classes, bias=bias))

    def greedy(**everything):
        assert not everything
        return flat((3, 32, 32), 10)

    built = flat((2,), 2)
"""


def forget_modules(*prefixes):
    for name in [name for name in sys.modules if name.startswith(prefixes)]:
        del sys.modules[name]


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_pkg_for_models").mkdir()
    path = tmp_path / "user_pkg_for_models" / "nets.py"
    path.write_text(textwrap.dedent(NET))
    yield path
    forget_modules("user_pkg_for_models", "modeconn_custom_")


@pytest.mark.parametrize("source", ["user_pkg_for_models.nets", "user_pkg_for_models/nets.py"])
def test_custom_gets_what_its_signature_names(user_code, source):
    search_path = list(sys.path)
    net = models.build("custom", (2, 9, 9), 5, target=f"{source}:Net", kwargs={"hidden": 7})
    assert net.conv.weight.shape == (7, 2, 3, 3)
    assert net(torch.zeros(3, 2, 9, 9)).shape == (3, 5)
    assert net.training
    assert not net.conv.training
    assert sys.path == search_path

    flat = models.build("custom", (2,), 5, target=f"{source}:flat", kwargs={"bias": False})
    assert flat[1].weight.shape == (5, 2)
    assert flat[1].bias is None
    assert models.build("custom", CIFAR, 10, target=f"{source}:greedy") is not None


def test_custom_kwargs_win_over_the_data_sets_shape(user_code):
    with pytest.raises(UserError, match=r"with \(2, 4\), not logits of shape \(2, 5\)"):
        models.build("custom", (2,), 5, target="user_pkg_for_models.nets:flat", kwargs={"classes": 4})


def test_custom_refuses_a_built_module_and_broken_code(user_code, tmp_path):
    with pytest.raises(UserError, match="nets:built is a Sequential object"):
        models.build("custom", (2,), 2, target="user_pkg_for_models.nets:built")
    (tmp_path / "broken.py").write_text("1 +\n")
    with pytest.raises(UserError, match=r"broken.py cannot be imported \(SyntaxError: "):
        models.build("custom", (2,), 2, target="broken.py:Net")


def test_source_checksum(user_code):
    expected = hashlib.sha256(user_code.read_bytes()).hexdigest()
    assert models.source_checksum("user_pkg_for_models/nets.py:Net") == expected
    assert models.source_checksum("user_pkg_for_models.nets:flat") == expected
    assert "user_pkg_for_models.nets" not in sys.modules
    user_code.write_text("changed = True\n")
    assert models.source_checksum("user_pkg_for_models/nets.py:Net") != expected
    for target in ("missing.py:Net", "user_pkg_for_models:Net", "missing_pkg.nets:Net", "sys:Net", "Net"):
        with pytest.raises(UserError):
            models.source_checksum(target)


# ----------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_classifier(model):
    net = models.build("torchvision", CIFAR, 7, model=model)
    assert net.training
    logits = net(torch.randn(2, *CIFAR))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_torchvision_kwargs_reach_the_builder():
    net = models.build("torchvision", CIFAR, 10, model="resnet18", kwargs={"norm_layer": nn.Identity})
    assert not list(net.buffers())


def test_googlenet_trains_on_plain_logits():
    with torch.device("meta"):
        net = models.build("torchvision", (3, 64, 64), 10, model="googlenet")
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_torchvision_imports_when_first_asked_for_and_without_warnings():
    result = run_python("""
        import sys
        import modeconn_cli.models
        assert "torchvision" not in sys.modules
        from modeconn_cli.torchvision_compat import import_torchvision
        torchvision = import_torchvision()
        import torchvision as plain
        assert plain is torchvision
        from torchvision import datasets, models
        from torchvision.transforms import v2
        import torch
        assert v2.RandomHorizontalFlip(1.0)(torch.eye(2)).tolist() == [[0, 1], [1, 0]]
        assert issubclass(datasets.FashionMNIST, datasets.MNIST)
        assert models.get_model("squeezenet1_1").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    """)
    assert result.returncode == 0, result.stderr


def test_import_torchvision_again_changes_nothing():
    from modeconn_cli import torchvision_compat

    torchvision = import_torchvision()
    declared = list(torchvision_compat._declared)
    assert import_torchvision() is torchvision
    torchvision_compat._declare_missing_operators()  # both exist by now
    assert torchvision_compat._declared == declared


@pytest.fixture
def fake_torchvision(tmp_path, monkeypatch):
    """A stand-in for the installed package; calling it writes the stand-in's __init__.py."""
    import_torchvision()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "part.py").write_text("runs = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda code: (package / "__init__.py").write_text(textwrap.dedent(code))
    forget_modules("torchvision")


def test_other_import_errors_are_not_swallowed(fake_torchvision):
    fake_torchvision("raise RuntimeError('operator torchvision::roi_align does not exist')")
    with pytest.raises(RuntimeError, match="roi_align"):
        import_torchvision()
    fake_torchvision("import a_package_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        import_torchvision()


def test_partial_import_is_forgotten_before_the_second_try(fake_torchvision, monkeypatch):
    monkeypatch.setattr(sys, "torchvision_tries", [], raising=False)
    fake_torchvision("""
        import sys
        from torchvision import part
        part.runs += 1
        sys.torchvision_tries.append(part.runs)
        if len(sys.torchvision_tries) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
    """)
    import_torchvision()
    assert sys.torchvision_tries == [1, 1]
