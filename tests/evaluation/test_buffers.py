"""What a network has besides weights at a point between networks, against closed forms and plain PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from modeconn_cli.evaluation.buffers import Kinds, midpoint
from modeconn_cli.evaluation.evaluator import Evaluator
from modeconn_cli.evaluation.options import BatchNorm, Interpolation
from modeconn_cli.evaluation.spectral import settle
from modeconn_cli.tasks.classify import Classify
from modeconn_cli.weights import FlatModule


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def drawn(module):
    """The module with other weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


# ------------------------------------------------------------------------------------------------ spectral norm


def new_norm(layer):
    return nn.utils.parametrizations.spectral_norm(layer)


def scaled_before(layer):
    """A spectral norm of what another parametrisation makes of the weight."""

    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    return new_norm(layer)


def weight_of(layer):
    if hasattr(layer, "weight_orig"):
        return layer.weight_orig
    return layer.parametrizations.weight.original


@pytest.mark.parametrize("norm", [new_norm, nn.utils.spectral_norm, scaled_before])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (lambda: nn.Linear(4, 6), torch.ones(2, 4)),
        (lambda: nn.Conv2d(2, 3, 3), torch.ones(2, 2, 5, 5)),
        (lambda: nn.ConvTranspose2d(2, 3, 3), torch.ones(2, 2, 5, 5)),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_settled_spectral_norm_divides_by_the_largest_singular_value(norm, layer, x):
    made = norm(drawn(layer()))
    drawn(made)
    settle(made)
    made.eval()(x)  # the older one computes its weight then
    dim = 1 if isinstance(made, nn.ConvTranspose2d) else 0
    matrix = weight_of(made).detach().movedim(dim, 0).flatten(1).double()
    wanted = weight_of(made).detach().double() / torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(made.weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_settling_leaves_modes_and_weights_alone():
    module = nn.Sequential(new_norm(nn.Linear(3, 4)), new_norm(nn.Linear(4, 2))).train()
    before = [p.clone() for p in module.parameters()]
    settle(module)
    assert all(m.training for m in module.modules())
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("policy", BatchNorm)
def test_a_point_of_a_path_has_its_own_singular_vectors(policy, make_data):
    """Whatever was visited before; at its ends a path is its endpoints, as their vectors are."""
    data = make_data(dtype=torch.float32)
    net = FlatModule(nn.Sequential(new_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)))
    ends = [FlatModule(drawn(nn.Sequential(new_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)))) for _ in "ab"]
    W, buffers = torch.stack([e.point for e in ends]), [e.rest() for e in ends]
    evaluator = Evaluator(net, Classify(data), Interpolation(batch_norm=policy))
    for t in (0.0, 0.5, 1.0, 0.5, 0.25):
        evaluator.at(W, np.array([1 - t, t]), buffers)
        if t in (0, 1):
            assert all(torch.equal(v, net.rest()[k]) for k, v in buffers[int(t)].items())
            continue
        original = (1 - t) * weight_of(ends[0].module[0]) + t * weight_of(ends[1].module[0])
        wanted = original / torch.linalg.matrix_norm(original.double(), 2)
        torch.testing.assert_close(net.module[0].weight.double(), wanted.double(), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------- constants and the rest


class Several(nn.Module):
    """Buffers of many kinds that no training moves."""

    def __init__(self, other=0.0):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.1]))
        self.register_buffer("partly", torch.tensor([0.0, -math.inf, other]))
        self.register_buffer("opened", torch.tensor([0.0, -math.inf if other else 0.0]))
        self.register_buffer("average", torch.full((2,), 1.0 + other))
        self.register_buffer("wave", torch.tensor([1 + 1j, other * 1j]))
        self.register_buffer("calls", torch.tensor(7 + int(other)))
        self.register_buffer("on", torch.tensor([bool(other), True]))

    def forward(self, x):
        return self.layer(x)


def test_constants_are_kept_and_the_rest_is_by_the_stated_policy():
    ends = [Several().state_dict(), Several(4.0).state_dict()]
    kinds = Kinds.of(Several())
    near = kinds.between(ends, [0.75, 0.25])
    far = kinds.between(ends, [0.25, 0.75])
    assert near["mask"].tolist() == far["mask"].tolist() == pytest.approx([0, -math.inf, 0.1])
    assert torch.equal(near["mask"], ends[0]["mask"])
    assert near["partly"].tolist() == [0, -math.inf, 1]
    assert near["opened"].tolist() == [0, 0]
    assert far["opened"].tolist() == [0, -math.inf]
    assert near["average"].tolist() == [2, 2]
    assert near["wave"].tolist() == [1 + 1j, 1j]
    assert (near["calls"], far["calls"]) == (7, 11)
    assert (near["on"].tolist(), far["on"].tolist()) == ([False, True], [True, True])
    assert kinds.unknown([{k: v for k, v in e.items() if "layer" not in k} for e in ends]) == [
        "partly", "opened", "average", "wave", "calls", "on"
    ]  # fmt: skip
    assert kinds.unknown([ends[0], ends[0]]) == []


def test_what_trains_or_is_computed_is_known():
    module = nn.Sequential(new_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4))
    ends = [{k: torch.rand(v.shape) for k, v in FlatModule(module).rest().items()} for _ in "ab"]
    assert len(ends[0]) == 5
    assert Kinds.of(module).unknown(ends) == []


def test_ends_without_a_share_enter_nothing():
    ends = [{"scale": torch.tensor([v])} for v in (5.0, 7.0, 2.0)]
    assert Kinds.of(nn.Linear(1, 1)).between(ends, [0.0, 0.0, 1.0])["scale"].tolist() == [2]
    assert Kinds.of(nn.Linear(1, 1)).between(ends, [0.0, 0.5, 0.5])["scale"].tolist() == [4.5]


def test_what_is_not_known_is_named_once(make_data):
    net = FlatModule(Several())
    ends = [FlatModule(Several()).rest(), FlatModule(Several(1.0)).rest()]
    evaluator = Evaluator(net, Classify(make_data(dtype=torch.float32)), Interpolation())
    (note,) = evaluator.notes(ends)
    assert note.startswith("partly, opened, average and 3 more: neither weights nor statistics")
    assert evaluator.notes([ends[0], ends[0]]) == []


def test_a_midpoint_is_a_network_of_its_own():
    made = [drawn(nn.Sequential(new_norm(nn.Linear(4, 5)), nn.BatchNorm1d(5))) for _ in "ab"]
    a, b = (m.state_dict() for m in made)
    a["1.running_mean"].fill_(1.0)
    half = midpoint(made[0], a, b)
    assert not any(v.requires_grad for v in half.values())
    assert half["1.running_mean"].tolist() == [0.5] * 5
    original = (a["0.parametrizations.weight.original"] + b["0.parametrizations.weight.original"]) / 2
    torch.testing.assert_close(half["0.parametrizations.weight.original"], original)
    u, v = (half[f"0.parametrizations.weight.0.{k}"].double() for k in ("_u", "_v"))
    assert float(u @ original.double() @ v) == pytest.approx(float(torch.linalg.matrix_norm(original.double(), 2)))
    assert all(torch.equal(v, made[0].state_dict()[k]) for k, v in a.items())
