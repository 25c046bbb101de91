"""Permutation groups from traced graphs, against the networks themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import (
    OURS,
    Tied,
    differs,
    shuffled,
    stirred,
)
from torch import Tensor, nn

from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import CannotTrace, trace
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.torchvision_compat import import_torchvision


def check(module: nn.Module, x: Tensor, unmoved: int) -> Symmetry:
    """A random permutation of every group leaves the function alone, and moves all parameters but ``unmoved``."""
    module = stirred(module)
    symmetry = trace(module, x)
    module = module.double()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moved = symmetry.permute(state, shuffled(symmetry))
    assert differs(module, moved, x) < 1e-11
    still = [n for n, p in module.named_parameters() if p.numel() > 1 and torch.equal(moved[n], state[n])]
    assert len(still) == unmoved, still
    # Each group by itself is one that the function has; moved in one tensor alone it is none.
    for i, group in enumerate(symmetry.groups[:6]):
        broken = dict(state)
        permutations = symmetry.identity()
        permutations[i] = torch.roll(torch.arange(group.size), 1)
        name = group.tensor
        broken[name] = symmetry.permute(state, permutations)[name]
        assert differs(module, broken, x) > 1e-9, group.name
    return symmetry


@pytest.mark.parametrize("name", OURS)
def test_our_architectures_move_freely(name: str) -> None:
    torch.manual_seed(0)
    family, options = OURS[name]
    symmetry = check(models.build(family, (3, 32, 32), 10, **options), torch.randn(2, 3, 32, 32), unmoved=1)
    assert symmetry.pinned_by == {}


def _vgg(models: Any) -> nn.Module:
    with torch.device("meta"):  # its classifier alone has a hundred million weights
        module = models.VGG(nn.Identity(), 10, init_weights=False)
    module.features = models.vgg.make_layers([8, "M", 12, 8, "M"], batch_norm=True)
    module.classifier = nn.Sequential(nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10))
    return module


def _mobilenet(models: Any) -> nn.Module:
    block = models.mobilenetv3.InvertedResidualConfig
    blocks = [
        block(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        block(16, 3, 24, 24, False, "RE", 2, 1, 1.0),
        block(24, 5, 32, 24, True, "HS", 1, 1, 1.0),
    ]
    return models.MobileNetV3(blocks, 32, 10)


def _efficientnet(models: Any) -> nn.Module:
    block = models.efficientnet.MBConvConfig
    return models.EfficientNet(
        [block(1, 3, 1, 24, 20, 1), block(2, 3, 2, 20, 24, 1), block(2, 5, 1, 24, 24, 1)], 0.2, 0.2, 10, None, 32
    )


def _convnext(models: Any) -> nn.Module:
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(12, 16, 1), block(16, None, 2)], num_classes=10)


# torchvision's architectures, whole or with few and narrow ones of all their kinds of block.
TORCHVISIONS: dict[str, Callable[[Any], nn.Module]] = {
    "resnet18": lambda m: m.resnet18(weights=None, num_classes=10),
    "shufflenet": lambda m: m.ShuffleNetV2([1, 2, 1], [24, 16, 24, 32, 48], num_classes=10),
    "resnet50": lambda m: m.ResNet(m.resnet.Bottleneck, [1, 2, 1, 1], 10, width_per_group=8),
    "resnext50": lambda m: m.ResNet(m.resnet.Bottleneck, [1, 2, 1, 1], 10, groups=4, width_per_group=8),
    "vgg_bn": _vgg,
    "vit": lambda m: m.VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=10),
    "densenet": lambda m: m.DenseNet(4, (2, 3, 2), 8, num_classes=10),
    "convnext": _convnext,
    "mobilenet_v3": _mobilenet,
    "efficientnet": _efficientnet,
}


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvisions_classifiers_move_freely(name: str) -> None:
    torch.manual_seed(0)
    module = stirred(TORCHVISIONS[name](import_torchvision().models))
    x = torch.randn(2, 3, 32, 32)
    symmetry = trace(module, x)
    module = module.double()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moved = symmetry.permute(state, shuffled(symmetry))
    assert differs(module, moved, x) < 1e-10
    still = [n for n, p in module.named_parameters() if p.numel() > 1 and torch.equal(moved[n], state[n])]
    if name != "shufflenet":
        assert len(still) == 1, still


def test_every_attention_head_has_its_own_permutations() -> None:
    torch.manual_seed(0)
    family, options = OURS["vit"]
    symmetry = check(models.build(family, (3, 32, 32), 10, **options), torch.randn(2, 3, 32, 32), unmoved=1)
    # In each of two blocks, for three heads: eight dimensions of queries and keys, and eight of values and outputs.
    assert sorted(g.size for g in symmetry.groups) == sorted([24, 3, 3, 48, 48, *[8] * 12])
    torchvisions = import_torchvision().models.VisionTransformer(32, 8, 1, 3, 24, 48, num_classes=5)
    symmetry = check(torchvisions, torch.randn(2, 3, 32, 32), unmoved=1)  # one matrix for queries, keys and values
    assert sorted(g.size for g in symmetry.groups) == sorted([24, 3, 48, *[8] * 6])


class Crossed(nn.Module):
    """Two heads of three, and something done between heads that leaves them no permutations of their own."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), act
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self, x).flatten(1))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 3))


CROSSED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a scale that heads share": lambda m, x: F.relu(heads(m.a(x))) * m.scale,  # type: ignore[operator]
    "attention between heads": lambda m, x: (heads(m.a(x)) @ heads(m.b(x)).mT).softmax(-1) @ heads(m.b(x)),  # type: ignore[operator]
    "a softmax over heads": lambda m, x: heads(m.a(x)).softmax(1),  # type: ignore[operator]
    "a norm over heads": lambda m, x: F.layer_norm(heads(m.a(x)).mT, (2,)).mT,  # type: ignore[operator]
    "heads rolled": lambda m, x: heads(m.a(x)) + heads(m.b(x)).roll(1, 1),  # type: ignore[operator]
    "heads summed": lambda m, x: heads(m.a(x)) * heads(m.b(x)).sum(1, keepdim=True),  # type: ignore[operator]
    "one head chosen": lambda m, x: heads(m.a(x)) * heads(m.b(x))[:, :1],  # type: ignore[operator]
    "heads in another order": lambda m, x: heads(m.a(x)) * torch.cat(heads(m.b(x)).split(1, 1)[::-1], 1),  # type: ignore[operator]
    "every head with every": lambda m, x: (heads(m.a(x))[:, :, None] * heads(m.b(x))[:, None]).sum(2),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", CROSSED)
def test_heads_that_meet_are_told_apart_no_more_than_they_are(name: str) -> None:
    torch.manual_seed(0)
    module, x = Crossed(CROSSED[name]).eval(), torch.randn(5, 4)
    symmetry = trace(module, x)
    for seed in range(3):
        moved = symmetry.permute(module.double().state_dict(), shuffled(symmetry, seed))
        assert differs(module, moved, x) < 1e-12
    assert any(g.size > 1 for g in symmetry.groups) or name == "one head chosen"


def test_a_grouped_convolution_permutes_inside_each_of_its_groups() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    symmetry = check(module, torch.randn(2, 3, 4, 4), unmoved=1)
    assert sorted(g.size for g in symmetry.groups) == [2, 2, 2, 3, 3]
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moves = symmetry.moves(state, shuffled(symmetry))
    assert "2.weight" in moves
    assert torch.equal(
        state["2.weight"].flatten()[moves["2.weight"].flatten()].view(4, 3, 3, 3),
        symmetry.permute(state, shuffled(symmetry))["2.weight"],
    )


def test_tied_weights_move_together_and_unread_ones_stay() -> None:
    torch.manual_seed(0)
    module = Tied()
    symmetry = check(module, torch.randn(3, 4), unmoved=3)  # the head's bias, and what is never read
    assert [g.size for g in symmetry.groups] == [6]
    moved = symmetry.permute(module.state_dict(), shuffled(symmetry))
    assert torch.equal(moved["second.weight"], moved["third.weight"])


class Mixed(nn.Module):
    """Concatenation, a split, a grouped, a depthwise and a transposed convolution, group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.norm = nn.GroupNorm(3, 24)
        self.up = nn.ConvTranspose2d(24, 6, 2, stride=2)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = F.gelu(self.norm(self.depthwise(F.relu(self.grouped(x)))))
        a, b = x.split([8, 16], dim=1)
        x = F.adaptive_avg_pool2d(self.up(torch.cat([torch.sigmoid(b), a], dim=1)), 2)
        return self.head(x.flatten(1))


def test_a_network_with_everything() -> None:
    torch.manual_seed(0)
    symmetry = check(Mixed(), torch.randn(2, 3, 8, 8), unmoved=1)
    assert len(symmetry.groups) >= 4


class Awkward(nn.Module):
    """One hidden layer of eight between linear maps, and what is done to it."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 8), nn.Linear(8, 3), act
        self.low = nn.Parameter(torch.linspace(-1, 1, 8))
        self.W = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self, self.a(x)))


AWKWARD: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "clamp by a tensor": lambda m, h: torch.clamp(h, min=m.low),  # type: ignore[call-overload]
    "logical and": lambda m, h: torch.logical_and(h > 0, m.low > 0).to(h.dtype),  # type: ignore[operator, arg-type]
    "strides turned": lambda m, h: h @ torch.as_strided(m.W * 1, (8, 8), (1, 8)),  # type: ignore[operator, arg-type]
    "a mask": lambda m, h: h * m.mask,  # type: ignore[operator]
    "an empty slice": lambda m, h: torch.cat([h[:, :0], h], 1),
    "slices that meet": lambda m, h: torch.cat([h[:, :4], h[:, 4:4], F.relu(h[:, 4:])], 1),
    "a sum of all": lambda m, h: h * h.sum().sum(0),
    "a softmax": lambda m, h: torch.softmax(h, 1),
    "sorted": lambda m, h: h.sort(1).values,
    "shifted": lambda m, h: h + h.roll(1, 1),
    "cumulated": lambda m, h: h.cumsum(1),
    "the largest's place": lambda m, h: h * h.argmax(1, keepdim=True),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_no_symmetry_is_claimed_that_does_not_hold(name: str) -> None:
    torch.manual_seed(0)
    module = Awkward(AWKWARD[name]).eval()
    x = torch.randn(5, 4)
    symmetry = trace(module, x)
    moved = symmetry.permute(module.double().state_dict(), shuffled(symmetry))
    assert differs(module, moved, x) < 1e-12
    assert torch.equal(moved["mask"], module.mask)  # a buffer is no coordinate of a path, so it stays


def test_pooled_positions_move_with_their_channels() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 6, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            _, at = F.max_pool2d(self.a(x), 2, return_indices=True)
            return self.b(at.to(x.dtype).mean((2, 3)))

    torch.manual_seed(0)
    module, x = Positions().eval(), torch.randn(2, 1, 8, 8)
    symmetry = trace(module, x)
    moved = symmetry.permute(module.double().state_dict(), shuffled(symmetry))
    assert differs(module, moved, x) < 1e-12


class Layers(nn.Module):
    """Three layers, to be joined by operations that do not leave every unit free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)


def test_an_operation_that_is_not_known_pins_and_is_named() -> None:
    class Sorted(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(self.a(x).sort(dim=1).values)))

    symmetry = check(Sorted(), torch.randn(2, 4), unmoved=3)
    assert symmetry.pinned_by == {"sort": ["a.weight[0]", "a.bias[0]"]}
    assert [g.size for g in symmetry.groups] == [7]


def test_an_operation_that_needs_an_order_is_named_and_one_that_takes_no_freedom_is_not() -> None:
    class Summing(Layers):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(6)
            mask[2:4] = 1.0  # copies into a constant
            return self.c(F.relu(self.b(self.a(x) * mask)).cumsum(1).sort(1).values)

    symmetry = trace(Summing(), torch.randn(2, 4))
    assert symmetry.pinned_by == {"cumsum": ["b.weight[0]", "b.bias[0]"], "sort": ["c.weight[1]"]}


def test_a_module_that_cannot_be_traced_says_why() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CannotTrace, match="Branching cannot be traced"):
        trace(Branching(), torch.randn(2, 4))
