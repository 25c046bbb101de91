"""Permutation groups against the networks themselves, and matching against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modeconn_cli.errors import UserError
from modeconn_cli.matching.activation import activation_matching
from modeconn_cli.matching.weight import WeightProblem, ascend, assign, prices_of, weight_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.axes import (
    Axis,
    Family,
    Leaf,
    concatenation,
    homeless,
    leaves,
    permuted,
    pin,
    places,
    product,
    size,
    split_product,
    split_sum,
    unify,
)
from modeconn_cli.symmetry.graph import CannotTrace, regroup, trace
from modeconn_cli.symmetry.groups import Symmetry, symmetry_of
from modeconn_cli.symmetry.written import read_groups, write_groups
from modeconn_cli.torchvision_compat import import_torchvision

# ------------------------------------------------------------------------------------------------------- axes


def along(axis: Axis, permutations: dict[Leaf, Tensor]) -> Tensor:
    """Where each new index of an axis comes from."""
    return permuted(torch.arange(size(axis)), places([axis]), permutations)


def test_a_flattened_dimension_is_the_product_of_its_parts() -> None:
    channels, height, width = Leaf(3), Leaf(2, pinned=True), Leaf(2, pinned=True)
    flat = Leaf(12)
    unify(product([channels, height, width]), flat)
    moved = along(flat, {channels: torch.tensor([2, 0, 1])})
    expected = torch.arange(12).view(3, 2, 2)[[2, 0, 1]].reshape(-1)
    assert torch.equal(moved, expected)


def test_a_concatenation_moves_part_by_part() -> None:
    a, b = Leaf(2), Leaf(3)
    whole = Leaf(5)
    unify(whole, concatenation([a, b]))
    moved = along(whole, {a: torch.tensor([1, 0]), b: torch.tensor([0, 2, 1])})
    assert moved.tolist() == [1, 0, 2, 4, 3]


def test_sums_with_different_cuts_are_cut_at_both() -> None:
    a, b, c, d = Leaf(2), Leaf(4), Leaf(3), Leaf(3)
    unify(concatenation([a, b]), concatenation([c, d]))
    assert [size(x) for x in leaves(concatenation([a, b]))] == [2, 1, 3]
    assert [*leaves(concatenation([a, b]))] == [*leaves(concatenation([c, d]))]


def test_pinning_reaches_what_a_leaf_became() -> None:
    whole = Leaf(6)
    parts = split_product(whole, 2)
    assert parts is not None
    pin(parts[1])
    assert [leaf.pinned for leaf in leaves(whole)] == [False, True, True]
    other = Leaf(6, pinned=True)
    unify(whole, other)
    assert all(leaf.pinned for leaf in leaves(whole))


def test_what_is_inside_an_index_moves_there_alone_and_goes_where_it_goes() -> None:
    heads, inner = split_product(Leaf(6), 2) or []
    assert isinstance(inner, Family)
    first, second = leaves(inner)
    moved = along(product([heads, inner]), {heads: torch.tensor([1, 0]), first: torch.tensor([2, 0, 1])})  # type: ignore[dict-item]
    assert moved.tolist() == [5, 3, 4, 0, 1, 2]
    # Over two dimensions: row i is permuted as its own member says.
    grid = torch.arange(6).view(2, 3)
    turned = permuted(grid, places([heads, inner]), {second: torch.tensor([1, 2, 0])})
    assert turned.tolist() == [[0, 1, 2], [4, 5, 3]]
    assert homeless([inner]) == [inner]
    assert homeless([heads, inner]) == homeless([product([heads, inner])]) == []


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@given(SHAPES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_regrouping_agrees_with_reshape(shape: list[int], random: object) -> None:
    """Permuting factors before a reshape is permuting the reshaped axes after it."""
    axes: list[Axis] = [Leaf(n) for n in shape]
    total = math.prod(shape)
    for target in ([total], [*shape[:1], total // shape[0]], [total // shape[-1], shape[-1]], shape):
        regrouped = regroup(axes, target)
        assert regrouped is not None
        free = [leaf for axis in axes for leaf in leaves(axis) if leaf.size > 1]
        generator = torch.Generator().manual_seed(total)
        permutations = {leaf: torch.randperm(leaf.size, generator=generator) for leaf in free}
        x = torch.arange(total).view(shape)
        moved = permuted(x, places(axes), permutations)
        after = permuted(x.reshape(target), places(regrouped), permutations)
        assert torch.equal(moved.reshape(target), after)


@given(st.integers(2, 5), st.integers(2, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_of_a_product_is_a_sum(first: int, second: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, first * second - 1))
    a, b = Leaf(first), Leaf(second)
    whole = product([a, b])
    pieces = split_sum(whole, [at, first * second - at])
    assert pieces is not None
    free = [*dict.fromkeys(leaves(concatenation(pieces)))]
    permutations = {leaf: torch.randperm(leaf.size) for leaf in free}
    moved = along(whole, permutations)
    assert sorted(moved.tolist()) == list(range(first * second))
    assert {*moved[:at].tolist()} == set(range(at))
    for place in places([whole]):
        assert place.at.shape[0] == place.leaf.size
        assert len(place.at.unique()) == place.at.numel()


# ------------------------------------------------------------------------------------------------------ groups


def stirred(module: nn.Module) -> nn.Module:
    """The module in evaluation mode with no two channels alike, BatchNorm's statistics included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape, generator=generator))
                value.add_(0.5 if name.endswith("running_var") else 0.0)
    return module.eval()


def differs(module: nn.Module, state: dict[str, Tensor], x: Tensor) -> float:
    """The largest difference of the outputs, relative to the largest output, in float64."""
    module = module.double()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        wanted = module(x.double())
        module.load_state_dict({k: v.to(before[k].dtype) for k, v in state.items()})
        found = module(x.double())
        module.load_state_dict(before)
    return float((wanted - found).abs().max() / wanted.abs().max())


def shuffled(symmetry: Symmetry, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(g.size, generator=generator) for g in symmetry.groups]


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


OURS: dict[str, tuple[str, dict[str, object]]] = {
    "mlp": ("mlp", {"width": 16}),
    "convfc": ("convfc", {}),
    "vgg11": ("vgg", {"depth": 11, "width": 0.25}),
    "vgg11_bn": ("vgg", {"depth": 11, "batch_norm": True, "width": 0.25}),
    "resnet20": ("resnet", {"depth": 20, "width": 0.5}),
    "resnet20_ln": ("resnet", {"depth": 20, "width": 0.5, "norm": "layer"}),
    "preresnet20": ("preresnet", {"depth": 20}),
    "preresnet29": ("preresnet", {"depth": 56}),
    "wrn10": ("wrn", {"depth": 10, "widen": 1}),
    "vit": ("vit", {"dim": 24, "heads": 3, "depth": 2}),
}


@pytest.mark.parametrize("name", OURS)
def test_our_architectures_move_freely(name: str) -> None:
    torch.manual_seed(0)
    family, options = OURS[name]
    symmetry = check(models.build(family, (3, 32, 32), 10, **options), torch.randn(2, 3, 32, 32), unmoved=1)
    assert symmetry.held_by == {}


@pytest.mark.parametrize(
    ("name", "unmoved"),
    [
        ("resnet18", 1),
        ("resnet50", 1),
        ("vgg16_bn", 1),
        ("vit_b_16", 1),
        ("densenet121", 1),
        ("convnext_tiny", 1),
        ("mobilenet_v3_large", 1),
        ("efficientnet_b0", 1),
        ("resnext50_32x4d", 1),
        ("shufflenet_v2_x0_5", None),
    ],
)
def test_torchvisions_classifiers_move_freely(name: str, unmoved: int | None) -> None:
    torch.manual_seed(0)
    side = 224 if name.startswith("vit") else 64
    module = getattr(import_torchvision().models, name)(weights=None, num_classes=10)
    module = stirred(module)
    x = torch.randn(2, 3, side, side)
    symmetry = trace(module, x)
    module = module.double()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    moved = symmetry.permute(state, shuffled(symmetry))
    assert differs(module, moved, x) < 1e-10
    still = [n for n, p in module.named_parameters() if p.numel() > 1 and torch.equal(moved[n], state[n])]
    if unmoved is not None:
        assert len(still) == unmoved, still


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6)
        self.third = self.second
        self.unread = nn.Linear(5, 5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.third(F.relu(self.second(F.relu(self.first(x)))))))


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
    assert symmetry.held_by == {"sort": ["a.weight[0]", "a.bias[0]"]}
    assert [g.size for g in symmetry.groups] == [7]


def test_an_operation_that_needs_an_order_is_named_and_one_that_takes_no_freedom_is_not() -> None:
    class Summing(Layers):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(6)
            mask[2:4] = 1.0  # copies into a constant
            return self.c(F.relu(self.b(self.a(x) * mask)).cumsum(1).sort(1).values)

    symmetry = trace(Summing(), torch.randn(2, 4))
    assert symmetry.held_by == {"cumsum": ["b.weight[0]", "b.bias[0]"]}


def test_a_module_that_cannot_be_traced_says_why() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CannotTrace, match="Branching cannot be traced"):
        trace(Branching(), torch.randn(2, 4))


# ---------------------------------------------------------------------------------------------------- matching


def parameters(module: nn.Module) -> list[str]:
    return [n for n, _ in module.named_parameters()]


def inner(a: dict[str, Tensor], b: dict[str, Tensor], names: list[str]) -> float:
    return float(sum((a[n].double() * b[n].double()).sum() for n in names))


PLANTED: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.build("mlp", (64,), 10, width=48),
    "vgg": lambda: models.build("vgg", (3, 32, 32), 10, depth=11, width=0.25),
    "resnet20": lambda: models.build("resnet", (3, 32, 32), 10, depth=20, width=0.5),
    "vit": lambda: models.build("vit", (3, 32, 32), 10, dim=24, heads=3, depth=2),
    "grouped": lambda: nn.Sequential(
        *(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_of_a_trained_network_is_recovered_whole(name: str) -> None:
    torch.manual_seed(0)
    module = PLANTED[name]()
    x = torch.randn(64, *((64,) if name == "mlp" else (3, 32, 32)))
    y = torch.randint(0, 10, (64,))
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    symmetry = trace(module, x[:2])
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = symmetry.permute(a, shuffled(symmetry, seed=5))
    found = weight_matching(symmetry, a, b, parameters(module), restarts=0)
    back = symmetry.permute(b, found.permutations)
    assert all(torch.equal(back[k], a[k]) for k in a)


def test_tiny_networks_are_matched_as_brute_force_would() -> None:
    def tiny() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    symmetry = trace(tiny(), torch.randn(2, 3))
    assert [g.size for g in symmetry.groups] == [4, 4]
    every = torch.tensor(list(itertools.permutations(range(4))))
    optimal, cases = 0, 200
    for case in range(cases):
        torch.manual_seed(case)
        a, b = (dict(tiny().state_dict()) for _ in range(2))
        first = (a["0.weight"] * b["0.weight"][every]).sum((1, 2)) + (a["0.bias"] * b["0.bias"][every]).sum(1)
        last = (a["4.weight"] * b["4.weight"][:, every].movedim(1, 0)).sum((1, 2)) + (a["4.bias"] * b["4.bias"]).sum()
        middle = (a["2.weight"] * b["2.weight"][every][:, :, every].movedim(2, 1)).sum((2, 3))
        second = (a["2.bias"] * b["2.bias"][every]).sum(1)
        best = float((first[None, :] + (middle + second[:, None]) + last[:, None]).max())
        found = weight_matching(symmetry, a, b, list(a), seed=case)
        reached = inner(a, symmetry.permute(b, found.permutations), list(a))
        assert reached == pytest.approx(found.objective[-1], abs=1e-5)
        assert reached < best + 1e-5
        optimal += reached > best - 1e-5
    assert optimal >= 0.95 * cases


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_kept_of_a_cost_matrix_is_what_it_would_be_anew(name: str) -> None:
    torch.manual_seed(0)
    a, b = (PLANTED[name]() for _ in range(2))
    symmetry = trace(a, torch.randn(2, *((64,) if name == "mlp" else (3, 32, 32))))
    states, names = [dict(m.state_dict()) for m in (a, b)], parameters(a)
    problem = WeightProblem(symmetry, *states, names)
    every = [range(len(runs)) for runs in problem.runs]
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        g = int(torch.randint(len(problem.groups), (), generator=generator))
        size = problem.groups[g].size
        relative = torch.arange(size)
        some = torch.randperm(size, generator=generator)[: (size if step % 4 == 0 else max(2, size // 8))]
        relative[some] = relative[some.roll(1)]  # all of them, or a few
        problem.move(g, relative)
        asked = (g + step % 3) % len(problem.groups)
        problem.cost(asked, every[asked])
    anew = WeightProblem(symmetry, *states, names, begin=problem.permutations)
    assert all(torch.equal(x, y) for x, y in zip(problem.b, anew.b, strict=True))
    for g in range(len(problem.groups)):
        kept, fresh = problem.cost(g, every[g])[0], anew.cost(g, every[g])[0]
        assert np.abs(kept - fresh).max() <= 2e-5 * np.abs(fresh).max()


class Joined(nn.Module):
    """Two branches of three channels each, flattened and joined, before four hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 2), nn.Conv2d(1, 3, 2)
        self.after, self.last = nn.Linear(24, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = [branch(x).relu().flatten(1) for branch in (self.left, self.right)]
        return self.last(self.after(torch.cat(both, 1)).relu())


def test_what_is_open_counts_as_the_mean_over_its_permutations() -> None:
    torch.manual_seed(0)
    a, b = Joined(), Joined()
    symmetry = trace(a, torch.randn(2, 1, 3, 3))
    states = [dict(m.state_dict()) for m in (a, b)]
    units = next(g for g, group in enumerate(symmetry.groups) if group.size == 4)
    branches = [g for g in range(len(symmetry.groups)) if g != units]
    assert len(branches) == 2
    problem = WeightProblem(symmetry, *states, list(states[0]))
    every = range(len(problem.runs[units]))
    for open_ in ([branches[0]], [branches[1]], branches):
        costs = []
        for drawn in itertools.product(itertools.permutations(range(3)), repeat=len(open_)):
            begin = symmetry.identity()
            for g, permutation in zip(open_, drawn, strict=True):
                begin[g] = torch.tensor(permutation)
            costs.append(WeightProblem(symmetry, *states, list(states[0]), begin).cost(units, every)[0])
        known = [r for r in every if not problem.beside[units][r] & {*open_}]
        assert 0 < len(known) < len(every)
        found = problem.cost(units, known, open_)[0]
        assert np.abs(found - np.mean(costs, axis=0)).max() < 1e-6
        assert np.ptp(costs, axis=0).max() > 0.1


def _open_cases() -> Iterator[Any]:
    """Axes of one tensor, the group that is solved and those that are open."""
    h, c, p, x = Leaf(3), Leaf(3), Leaf(2), Leaf(4)
    pixels = product([c, Leaf(2, pinned=True)])
    for name, group, open_ in [("h", h, [c]), ("c", c, [h])]:
        yield pytest.param([h, pixels], group, open_, id=f"flattened, {name}")
    for name, group, open_ in [("h", h, [c, p]), ("h, c settled", h, [p]), ("c", c, [p]), ("c, p settled", c, [h])]:
        yield pytest.param([h, product([c, p])], group, open_, id=f"product, {name}")
    for name, axes in [
        ("before", [h, concatenation([x, h])]),
        ("after", [h, concatenation([h, x])]),
        ("and pinned", [h, concatenation([h, x, Leaf(2, pinned=True)])]),
    ]:
        yield pytest.param(axes, x, [h], id=f"beside itself, {name}")
    yield pytest.param([concatenation([h, x]), concatenation([h, p])], x, [h], id="on both sides, in front")
    yield pytest.param([concatenation([x, h]), concatenation([h, p])], x, [h], id="on both sides, behind")
    yield pytest.param([x, concatenation([h, h])], x, [h], id="twice along a side")
    heads, inner = Leaf(2), [Leaf(3), Leaf(3)]
    attention = [product([heads, Family(heads, [*inner])]), c]
    for name, group, open_ in [
        ("stream", c, [heads, *inner]),
        ("stream, heads settled", c, inner),
        ("stream, heads alone", c, [heads]),
        ("inside", inner[0], [c]),
        ("heads", heads, [c]),
    ]:
        yield pytest.param(attention, group, open_, id=f"attention, {name}")
    channels, read = [Leaf(2), Leaf(2)], [Leaf(3), Leaf(3)]
    grouped = [product([heads, Family(heads, [*channels])]), Family(heads, [*read])]
    yield pytest.param(grouped, read[0], [channels[0]], id="grouped convolution")


@pytest.mark.parametrize(("axes", "group", "open_"), [*_open_cases()])
def test_the_mean_over_permutations_is_exact(axes: list[Axis], group: Leaf, open_: list[Leaf]) -> None:
    symmetry = symmetry_of({"w": axes})
    number = {g.leaf: i for i, g in enumerate(symmetry.groups)}
    torch.manual_seed(0)
    a, b = ({"w": torch.randn([size(axis) for axis in axes]) + 0.3} for _ in range(2))
    problem = WeightProblem(symmetry, a, b, ["w"])
    for r in range(len(problem.runs[number[group]])):
        terms = []
        for drawn in itertools.product(*(itertools.permutations(range(leaf.size)) for leaf in open_)):
            begin = symmetry.identity()
            for leaf, permutation in zip(open_, drawn, strict=True):
                begin[number[leaf]] = torch.tensor(permutation)
            terms.append(WeightProblem(symmetry, a, b, ["w"], begin).term(number[group], (r,)).numpy())
        found = problem._average(number[group], r, {number[leaf] for leaf in open_}).numpy()
        assert np.abs(found - np.mean(terms, axis=0)).max() < 1e-5


class Attention(nn.Module):
    """Attention whose weights are packed into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(4, 12)
        self.mix = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        return self.head(self.mix(a, b, b, need_weights=False)[0].mean(1))


class Rotated(nn.Module):
    """Attention whose heads keep the order of their first two features."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 15), nn.Linear(4, 15), nn.Linear(4, 15), nn.Linear(15, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, 5)).transpose(1, 2) for f in (self.q, self.k, self.v))
        c, s = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.5, 0.9]])
        q, k = (torch.cat([z[..., :2] * c + z[..., :2].flip(-1) * s, z[..., 2:]], -1) for z in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


NESTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (PLANTED["vit"], (3, 32, 32)),
    "grouped": (PLANTED["grouped"], (3, 32, 32)),
    "packed": (Attention, (5, 4)),
    "rotated": (Rotated, (5, 4)),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_solved_group_never_loses(name: str) -> None:
    make, shape = NESTED[name]
    torch.manual_seed(0)
    symmetry = trace(make(), torch.randn(2, *shape))
    assert symmetry.inside
    for seed in range(6):
        torch.manual_seed(seed)
        a, b = (dict(stirred(make()).state_dict()) for _ in range(2))
        problem = WeightProblem(symmetry, a, b, list(a), begin=shuffled(symmetry, seed))
        now = problem.objective()
        for g in [*symmetry.inside, *range(len(problem.groups))] * 2:
            problem.solve(g)
            before, now = now, problem.objective()
            assert now >= before - 1e-5 * abs(before)


def test_what_is_inside_follows_all_that_placed_its_group() -> None:
    make, shape = NESTED["vit"]
    torch.manual_seed(0)
    symmetry = trace(make(), torch.randn(2, *shape))
    a, b = (dict(stirred(make()).state_dict()) for _ in range(2))
    problem = WeightProblem(symmetry, a, b, list(a), begin=shuffled(symmetry, 0))
    several = 0
    for outer in symmetry.inside:
        if not problem.solve(outer, list(problem.nested[outer])):
            continue
        runs: dict[int, list[int]] = {}
        for g, k in (x for parts in problem.nested[outer].values() for part in parts for x in part):
            runs.setdefault(g, []).append(k)
        for g, chosen in runs.items():
            several += len(chosen) > 1
            cost, worth = problem.cost(g, chosen)
            assert worth == pytest.approx(cost[np.arange(len(cost)), assign(cost)].sum(), abs=1e-5)
    assert several


def test_packed_heads_are_matched_with_what_is_inside_them() -> None:
    torch.manual_seed(0)
    symmetry = trace(Attention(), torch.randn(2, 5, 4))
    (outer,) = symmetry.inside
    inside = sorted({g for members in symmetry.inside[outer] for here in members for g in here})
    for seed in range(5):
        torch.manual_seed(seed)
        a, b = (dict(stirred(Attention()).state_dict()) for _ in range(2))

        def reached(heads: tuple[int, ...], a: dict[str, Tensor] = a, b: dict[str, Tensor] = b) -> float:
            begin = symmetry.identity()
            symmetry.turn(begin, outer, torch.tensor(heads))
            problem = WeightProblem(symmetry, a, b, list(a), begin)
            while any(problem.solve(g) for g in inside):
                pass
            return problem.objective()

        best = max(reached(heads) for heads in itertools.permutations(range(3)))
        problem = WeightProblem(symmetry, a, b, list(a))
        problem.solve(outer)
        while any(problem.solve(g) for g in inside):
            pass
        assert problem.objective() == pytest.approx(best, abs=1e-4)


def test_a_group_on_both_sides_is_asked_until_it_stays() -> None:
    torch.manual_seed(0)
    symmetry = trace(Tied(), torch.randn(3, 4))
    for seed in range(10):
        torch.manual_seed(seed)
        a, b = (dict(Tied().state_dict()) for _ in range(2))
        problem = WeightProblem(symmetry, a, b, list(a))
        for _ in ascend(problem, np.random.default_rng(seed)):
            pass
        clock = problem.clock
        assert not any(problem.solve(g) for g in range(len(problem.groups)))
        assert problem.clock == clock  # what was only tried moved nothing


def test_activations_that_one_group_has_twice_are_matched_to_an_end() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 7), nn.Linear(49, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.b(torch.tanh((h[:, :, None] * h[:, None, :] + 0.3 * h[:, :, None]).flatten(1)))

    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    symmetry = trace(Products(), x)
    for seed in range(3, 7):
        torch.manual_seed(seed)
        a, b = (dict(Products().state_dict()) for _ in range(2))
        found = activation_matching(symmetry, a, b, [x])
        assert all(after >= before for before, after in itertools.pairwise(found.objective))


def test_prices_do_not_change_what_is_assigned() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 30, 300):
        cost = rng.normal(size=(n, n)) + 3 * np.eye(n)
        best = assign(cost)
        prices = prices_of(cost, rng.normal(size=n), rounds=5, rows=64)
        assert cost[range(n), assign(cost - prices)].sum() == pytest.approx(cost[range(n), best].sum(), abs=1e-9)
    # Where every row takes its own number and rounds suffice, they prove it: no row would rather have another column.
    cost = rng.normal(size=(40, 40)) + 12 * np.eye(40)
    prices = prices_of(cost, np.zeros(40), rounds=40)
    assert ((cost - prices).max(1) - np.diag(cost - prices)).max() <= 1e-9


def test_the_objective_never_falls_and_seeds_repeat() -> None:
    torch.manual_seed(0)
    a, b = (PLANTED["resnet20"]() for _ in range(2))
    symmetry = trace(a, torch.randn(2, 3, 32, 32))
    runs = [
        weight_matching(symmetry, a.state_dict(), b.state_dict(), parameters(a), seed=1, restarts=1) for _ in range(2)
    ]
    steps = runs[0].objective
    assert all(after >= before - 1e-4 * abs(before) for before, after in itertools.pairwise(steps))
    assert all(torch.equal(p, q) for p, q in zip(runs[0].permutations, runs[1].permutations, strict=True))


def test_weights_with_one_group_on_both_sides_are_matched_uphill() -> None:
    torch.manual_seed(0)
    a, b = Tied(), Tied()
    symmetry = trace(a, torch.randn(3, 4))
    names = ["first.weight", "first.bias", "second.weight", "second.bias", "head.weight"]
    every = [torch.tensor(p) for p in itertools.permutations(range(6))]
    sa, sb = dict(a.state_dict()), dict(b.state_dict())
    best = max(inner(sa, symmetry.permute(sb, [p]), names) for p in every)
    found = weight_matching(symmetry, sa, sb, names, restarts=10)
    assert found.objective[0] <= found.objective[-1] <= best + 1e-5
    assert inner(sa, symmetry.permute(sb, found.permutations), names) >= best - 0.1 * abs(best)


# ---------------------------------------------------------------------------------------------- groups as a text


@pytest.mark.parametrize("name", [*OURS, "packed"])
def test_groups_that_are_written_are_read_again(name: str) -> None:
    if name == "packed":
        module = import_torchvision().models.VisionTransformer(32, 8, 1, 3, 24, 48, num_classes=5)
    else:
        module = models.build(OURS[name][0], (3, 32, 32), 10, **OURS[name][1])
    x = torch.randn(2, 3, 32, 32)
    symmetry, module = trace(module, x), stirred(module)
    again = read_groups(write_groups(symmetry, module.state_dict()), module.state_dict(), "a file")
    assert [g.size for g in again.groups] == [g.size for g in symmetry.groups]
    moved = again.permute(module.double().state_dict(), shuffled(again))
    assert differs(module, moved, x) < 1e-11


WRONG = {
    "a: [": "not YAML",
    "a: [1\nb: 2": "not YAML: .* in line 2, column 2",
    "a: \x01": "not YAML: unacceptable character",
    "- a": "names no tensor",
    "wait: [a, b]": "no tensor 'wait'",
    "0.weight: [a]": "give a list of 2",
    "0.weight: [a!, b]": "is no dimension",
    "0.weight: [7, b]": "has 5 indices, and what is written has 7",
    "0.weight: [5 * a + 1, b]": "are no multiple of 5",
    "0.weight: [a * b, c]": "leave the size of a open",
    "0.weight: [a:5, a:4]": "two index sets",
    "0.weight: [a:5, b:4(c)]": "no dimension runs along c",
    "{0.weight: [a, b], 2.weight: [3, d(a)]}": "an index set for each of a, and no one dimension",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_text_that_does_not_fit_says_where(text: str) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(UserError, match=WRONG[text]):
        read_groups(text, module.state_dict(), "groups.yaml")
