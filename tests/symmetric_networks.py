"""Networks whose symmetries are known or awkward, and what tests of symmetry and matching ask of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry

State = dict[str, Tensor]


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


def parameters(module: nn.Module) -> list[str]:
    return [n for n, _ in module.named_parameters()]


OURS: dict[str, tuple[str, dict[str, object]]] = {
    "mlp": ("mlp", {"width": 16}),
    "convfc": ("convfc", {}),
    "vgg11": ("vgg", {"depth": 11, "width": 0.25}),
    "vgg11_bn": ("vgg", {"depth": 11, "batch_norm": True, "width": 0.25}),
    "resnet20": ("resnet", {"depth": 20, "width": 0.5}),
    "resnet20_ln": ("resnet", {"depth": 20, "width": 0.5, "norm": "layer"}),
    "preresnet20": ("preresnet", {"depth": 20}),
    "preresnet47": ("preresnet", {"depth": 47}),
    "wrn10": ("wrn", {"depth": 10, "widen": 1}),
    "vit": ("vit", {"dim": 24, "heads": 3, "depth": 2}),
}


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


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def tiny_states(case: int, n: int = 2) -> list[State]:
    """Random states of a network with two hidden layers of four units."""
    torch.manual_seed(case)
    return [dict(_tiny().state_dict()) for _ in range(n)]


def tiny(case: int, n: int = 2) -> tuple[Symmetry, list[State]]:
    """The groups of :func:`tiny_states`, and these."""
    return trace(_tiny(), torch.randn(2, 3)), tiny_states(case, n)


def inner(a: State, b: State, names: Iterable[str] | None = None) -> float:
    """The inner product of two states, over these names or all of the first's."""
    return float(sum((a[n].double() * b[n].double()).sum() for n in names or a))


def largest_inner_product(a: State, b: State) -> float:
    """Of two of :func:`tiny_states`, over all permutations of the second's two groups of four."""
    every = torch.tensor([*itertools.permutations(range(4))])
    first = (a["0.weight"] * b["0.weight"][every]).sum((1, 2)) + (a["0.bias"] * b["0.bias"][every]).sum(1)
    last = (a["4.weight"] * b["4.weight"][:, every].movedim(1, 0)).sum((1, 2)) + (a["4.bias"] * b["4.bias"]).sum()
    middle = (a["2.weight"] * b["2.weight"][every][:, :, every].movedim(2, 1)).sum((2, 3))
    second = (a["2.bias"] * b["2.bias"][every]).sum(1)
    return float((first[None, :] + (middle + second[:, None]) + last[:, None]).max())
